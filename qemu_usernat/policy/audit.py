"""The audit: each verdict is one record, with the rule and the reason, and repeats are counted.

A record is one line of JSON with the fields of `AuditRecord` and no others, so that a reader may
rely on the list. A guest that tries the same thing a thousand times a second is told of at once,
and then once a minute with the number of times.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from attrs import asdict, define, evolve, field, fields_dict, frozen

from qemu_usernat.policy.judge import FlowRequest, Speech, Verdict
from qemu_usernat.policy.places import PORT_MAXIMUM
from qemu_usernat.policy.rules import ALLOW, DENY, Rule
from qemu_usernat.policy.why import Why
from qemu_usernat.primitives.addresses import format_address, parse_address
from qemu_usernat.primitives.errors import UserError
from qemu_usernat.primitives.time import MINUTE, NEVER

KEYS_MAXIMUM = 4096
"""Things that are watched for being repeated; the one told of longest ago is forgotten first."""


@frozen(kw_only=True)
class AuditRecord:
    """What became of a flow, a question or a request of a guest."""

    time: float
    """When, in seconds since 1970; in JSON as text (RFC 3339), in UTC."""
    guest: str
    """Its MAC address."""
    link: str
    """The name of its link."""
    network: str | None = None
    """The name of its network, where there are several."""
    source: str | None = None
    """Its IP address."""
    protocol: str
    """``tcp``, ``udp``, ``icmp``; ``dns`` for a question; ``http`` for a later request."""
    address: str | None = None
    """Where to; of a question nowhere."""
    port: int = 0
    name: str | None = None
    """What was asked for, or what the guest says first."""
    redirected: str | None = None
    """Where it goes instead of there."""
    names: tuple[str, ...] = ()
    """Those that the guest was given the address for."""
    speech: str | None = None
    """What the guest speaks: ``tls``, ``http``, ``other``, ``unreadable``; nothing where the
    verdict did not depend on it."""
    verdict: str
    """``allow`` or ``deny``."""
    why: Why
    rule: str | None = None
    """The rule that has decided, or that nearly did, by its name or else as text."""
    logged: tuple[str, ...] = ()
    """The rules that only note."""
    enforced: bool = True
    """Whether the verdict was carried out; not while a policy is being learned."""
    repeated: int = 1
    """How many times this was seen since it was told of last."""

    @classmethod
    def of(
        cls,
        request: FlowRequest,
        verdict: Verdict,
        *,
        time: float,
        guest: str,
        link: str,
        network: str | None = None,
        source: str | None = None,
        asked: str | None = None,
        enforced: bool = True,
    ) -> "AuditRecord":
        """Of what was judged and a verdict that is not open; `asked` is the name in a question."""
        flight, speaks = request.flight, request.protocol not in ("udp", "icmp")
        return cls(
            time=time,
            guest=guest,
            link=link,
            network=network,
            source=source,
            protocol=request.protocol,
            address=format_address(request.destination) if request.destination else None,
            port=request.port,
            name=flight.name if asked is None else asked,
            redirected=None if request.redirect is None else str(request.redirect),
            names=tuple(sorted(request.names)),
            speech=flight.speech.value if speaks and flight.speech is not Speech.OPEN else None,
            verdict=verdict.action or DENY,
            why=verdict.why,
            rule=None if verdict.rule is None else _called(verdict.rule),
            logged=tuple(map(_called, verdict.logged)),
            enforced=enforced,
        )

    def to_json(self) -> str:
        """As one line."""
        values = asdict(self)
        moment = datetime.fromtimestamp(self.time, UTC)
        values["time"] = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        values["why"] = self.why.value
        return json.dumps(values)

    @classmethod
    def from_json(cls, line: str) -> "AuditRecord":
        """Of a line; UserError where it is none."""
        try:
            values = json.loads(line)
            return cls._of(values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"is no record of an audit: {error}") from error

    @classmethod
    def _of(cls, values: Mapping[str, Any]) -> "AuditRecord":
        unknown = values.keys() - fields_dict(cls).keys()
        if unknown:
            raise ValueError(f'"{min(unknown)}" is not known')
        record = cls(
            **{
                **values,
                "time": datetime.fromisoformat(values["time"]).timestamp(),
                "why": Why(values["why"]),
                "names": tuple(values.get("names", ())),
                "logged": tuple(values.get("logged", ())),
            }
        )
        record._check()
        return record

    def _check(self) -> None:
        """ValueError for what no verdict of ours says; an audit may come from anywhere."""
        said = (self.guest, self.link, self.protocol, *self.names, *self.logged)
        some = (self.network, self.source, self.address, self.name, self.rule, self.redirected)
        perhaps = filter(None, some)
        good = (
            set(map(type, (*said, *perhaps))) == {str}
            and self.verdict in (ALLOW, DENY)
            and self.port in range(PORT_MAXIMUM + 1)
            and [type(self.enforced), type(self.repeated)] == [bool, int]
        )
        if not good:
            raise ValueError("a field has a value that it never has")
        if self.speech is not None:
            Speech(self.speech)
        if self.protocol in ("tcp", "udp", "icmp"):
            parse_address(self.address or "")


def _called(rule: Rule) -> str:
    return rule.name or str(rule)


@define
class _Watched:
    """What was told of, and may be repeated."""

    record: AuditRecord
    until: float
    count: int = 0


@define
class Repeats:
    """Counts what is repeated instead of repeating it; a small machine with time from outside."""

    _watched: dict[tuple[object, ...], _Watched] = field(factory=dict)
    """In the order in which they end."""

    def on_record(self, record: AuditRecord, now: float) -> list[AuditRecord]:
        """What is to be told of now that this was seen."""
        told = self.on_deadline(now)
        key = _key(record)
        watched = self._watched.get(key)
        if watched is not None:
            watched.record = record
            watched.count += record.repeated
            return told
        if len(self._watched) >= KEYS_MAXIMUM:
            told += _due(self._watched.pop(next(iter(self._watched))))
        self._watched[key] = _Watched(record, now + MINUTE)
        told.append(record)
        return told

    def deadline(self) -> float:
        """When there may be something to tell."""
        first = next(iter(self._watched.values()), None)
        return NEVER if first is None else first.until

    def on_deadline(self, now: float) -> list[AuditRecord]:
        """What was repeated; what was not for a minute is forgotten."""
        told: list[AuditRecord] = []
        while self._watched:
            key, watched = next(iter(self._watched.items()))
            if watched.until > now:
                break
            del self._watched[key]
            if watched.count:
                told += _due(watched)
                self._watched[key] = _Watched(watched.record, now + MINUTE)
        return told

    def finish(self) -> list[AuditRecord]:
        """What was repeated and not told of yet; the audit ends."""
        told = [record for watched in self._watched.values() for record in _due(watched)]
        self._watched.clear()
        return told


def _due(watched: _Watched) -> list[AuditRecord]:
    return [evolve(watched.record, repeated=watched.count)] if watched.count else []


def _key(record: AuditRecord) -> tuple[object, ...]:
    """What makes two records the same; a name does where it is all that there is."""
    return (
        record.guest,
        record.link,
        record.protocol,
        record.address,
        record.port,
        record.redirected,
        record.verdict,
        record.why,
        record.rule,
        record.name if record.protocol in ("dns", "http") else None,
    )
