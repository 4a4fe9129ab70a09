"""Learn: from the audit of what guests did to a policy that admits it, and little else.

Names come before addresses, and ports are exact. Whether a record is admitted is asked of the
judge: what the names do not admit (a name that no guest was given, TLS that says none) is admitted
by its address. Left out, and said so: names that were only looked up, and QUIC to a name, whose
clients fall back to TCP.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from attrs import evolve, field, frozen

from qemu_usernat.policy.audit import AuditRecord
from qemu_usernat.policy.groups import Groups
from qemu_usernat.policy.judge import UNREAD, Flight, FlowRequest, Judge, Speech
from qemu_usernat.policy.places import (
    NamePlace,
    NetworkPlace,
    Place,
    Service,
    normalised,
    parse_place,
)
from qemu_usernat.policy.rules import ALLOW, DENY, NetworkPolicy, Rule
from qemu_usernat.policy.settings import PolicySettings, to_toml
from qemu_usernat.policy.why import Why
from qemu_usernat.primitives.addresses import format_address, parse_address
from qemu_usernat.primitives.errors import UserError

_NEVER = frozenset(
    {
        Why.MARTIAN,
        Why.SPOOFED,
        Why.NAME_SERVICE,
        Why.QUESTION,
        Why.UNCARRIED,
        Why.CONNECT,
        Why.UPGRADE,
        Why.FRAMING,
    }
)
"""Reasons that no rule takes away."""


@frozen
class Learned:
    """A policy, and what it leaves out."""

    policy: NetworkPolicy
    left_out: tuple[str, ...] = field(default=())

    def to_toml(self) -> str:
        """As a file has it."""
        notes = "".join(f"# {line}\n" for line in self.left_out)
        return f"{to_toml(PolicySettings(policy=self.policy))}{notes}"


def learn_file(path: Path, groups: Groups) -> Learned:
    """Of a file of records, one a line; UserError names the line."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(AuditRecord.from_json(line))
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from error
    return learn(records, groups)


def learn(records: Iterable[AuditRecord], groups: Groups) -> Learned:
    """A policy that admits what was seen."""
    wanted: dict[FlowRequest, None] = {}
    asked: set[str] = set()
    for record in records:
        if record.protocol == "dns" and record.name is not None and record.why not in _NEVER:
            asked.add(record.name)
        elif record.protocol in ("tcp", "udp", "icmp") and record.why not in _NEVER:
            wanted[_request(record)] = None
    by_name = NetworkPolicy(DENY, tuple(_rules(filter(None, map(_by_name, wanted)))))
    judge = Judge(by_name, groups)
    missing = [request for request in wanted if judge.judge(request).action != ALLOW]
    quic = [request for request in missing if _is_quic(judge, request)]
    rest = [request for request in missing if request not in quic]
    policy = NetworkPolicy(DENY, (*by_name.rules, *_rules(map(_by_address, rest))))
    learned = Judge(policy, groups)
    notes = [
        f"QUIC to {', '.join(map(_harmless, sorted(request.names)))} is left out: clients fall "
        "back to TCP"
        for request in quic
    ]
    notes += [
        f"{_harmless(name)} was only looked up"
        for name in sorted(asked)
        if learned.judge_name(name).action != ALLOW
    ]
    return Learned(policy, tuple(dict.fromkeys(notes)))


def _harmless(name: str) -> str:
    """A guest asks for what it likes, also for line ends."""
    try:
        return normalised(name)
    except ValueError:
        return json.dumps(name)


def _request(record: AuditRecord) -> FlowRequest:
    """What was judged. What was not waited for counts as what a well-behaved guest says."""
    names = frozenset(record.names)
    flight = UNREAD
    if record.protocol == "tcp":
        flight = Flight(Speech(record.speech), record.name) if record.speech else _usual(record)
    return FlowRequest(
        record.protocol, parse_address(record.address or ""), record.port, names, flight
    )


def _usual(record: AuditRecord) -> Flight:
    name = min(record.names, default=None)
    if name is None:
        return Flight(Speech.OTHER)
    return Flight(Speech.HTTP if record.port == 80 else Speech.TLS, name)


def _service(request: FlowRequest) -> Service:
    if request.protocol == "icmp":
        return Service("icmp")
    return Service(request.protocol, request.port, request.port)


def _by_name(request: FlowRequest) -> tuple[Service, Place] | None:
    """The name that would admit a flow: the one that is said, else one of the address."""
    said = request.flight.name
    name = said if said in request.names else min(request.names, default=None)
    if name is None or _service(request) == Service("udp", 443, 443):
        return None
    try:
        return _service(request), NamePlace(normalised(name))
    except ValueError:
        return None


def _by_address(request: FlowRequest) -> tuple[Service, Place]:
    return _service(request), parse_place(format_address(request.destination))


def _is_quic(judge: Judge, request: FlowRequest) -> bool:
    """Whether a name would admit the flow if it were TCP's."""
    if (request.protocol, request.port) != ("udp", 443) or not request.names:
        return False
    name = next(
        (name for name in sorted(request.names) if judge.judge_name(name).action == ALLOW), None
    )
    over_tcp = evolve(request, protocol="tcp", flight=Flight(Speech.TLS, name))
    return name is not None and judge.judge(over_tcp).action == ALLOW


def _rules(found: Iterable[tuple[Service, Place]]) -> Iterator[Rule]:
    """Few: places with the same services share a rule."""
    services: dict[Place, list[Service]] = {}
    for service, place in sorted(dict.fromkeys(found), key=lambda each: _order(*each)):
        services.setdefault(place, []).append(service)
    alike: dict[tuple[Service, ...], list[Place]] = {}
    for place, on in services.items():
        alike.setdefault(tuple(on), []).append(place)
    for shared, places in alike.items():
        yield Rule(ALLOW, places, shared)


def _order(service: Service, place: Place) -> tuple[object, ...]:
    if isinstance(place, NetworkPlace):
        network = place.network
        where: tuple[object, ...] = (1, network.version, int(network.network_address))
    else:
        where = (0, str(place))
    return (*where, service.protocol or "", service.first)
