"""A flow as a person writes it, and what a policy says of it.

    tcp github.com:443    udp [2001:db8::1]:53    icmp 192.0.2.7    dns github.com

A name stands for the guest that does all as it should: it asks our resolver, is given a public
address for the name, and says the name in the first octets. So a flow that is denied here is denied
to every guest, and one that is allowed may still fail to one that says something else.
"""

import re
from ipaddress import ip_address, ip_network

from attrs import evolve, frozen

from qemu_usernat.policy.groups import Groups
from qemu_usernat.policy.judge import HTTP_PORT, Flight, FlowRequest, Judge, Speech, Verdict
from qemu_usernat.policy.places import PORT_MAXIMUM, normalised
from qemu_usernat.policy.rules import ALLOW, NetworkPolicy
from qemu_usernat.primitives.addresses import Address, format_address, parse_address
from qemu_usernat.primitives.errors import UserError

FLOWS_ALLOWED = (
    '"tcp github.com:443", "udp 192.0.2.7:53", "tcp [2001:db8::1]:22", "icmp 192.0.2.7" or '
    '"dns github.com"'
)

SOMEWHERE = ip_network("203.0.113.113/32")
"""Stands for whatever public address a name has: one of those that are kept for examples
(RFC 5737), and called public here."""

_WITH_PORT = re.compile(r"(tcp|udp)\s+(\[[^\]\s]*\]|[^\[\]:\s]+):([0-9]{1,5})")
_WITHOUT_PORT = re.compile(r"(icmp|dns)\s+(\S+)()")


@frozen
class WrittenFlow:
    """To whom, by what protocol, on which port."""

    protocol: str
    """``tcp``, ``udp``, ``icmp``, or ``dns`` for a question."""
    port: int
    """0 where there are none."""
    name: str | None = None
    address: Address | None = None
    """One of the two; both, if the address of the name is known."""

    def __str__(self) -> str:
        host = self.name or format_address(self.address or b"")
        if self.protocol not in ("tcp", "udp"):
            return f"{self.protocol} {host}"
        return (
            f"{self.protocol} [{host}]:{self.port}"
            if ":" in host
            else (f"{self.protocol} {host}:{self.port}")
        )

    def at(self, text: str | None) -> "WrittenFlow":
        """The same, where the name has this address; UserError."""
        if text is None:
            return self
        if self.name is None or self.protocol == "dns":
            raise UserError(f'"{self}" has no name that could have the address "{text}"')
        try:
            return evolve(self, address=parse_address(text))
        except ValueError as error:
            raise UserError(f'"{text}" is no address; allowed: one like 192.0.2.7') from error


def parse_flow(text: str) -> WrittenFlow:
    """The flow that `text` is; UserError."""
    mistake = UserError(f'"{text}" is no flow; allowed: {FLOWS_ALLOWED}')
    found = _WITH_PORT.fullmatch(text.strip()) or _WITHOUT_PORT.fullmatch(text.strip())
    if not found:
        raise mistake
    protocol, host, port = found[1], found[2], int(found[3] or 0)
    if port > PORT_MAXIMUM:
        raise mistake
    try:
        address: Address | None = parse_address(host.strip("[]"))
    except ValueError:
        address = None
    if address is not None:
        if protocol == "dns":
            raise mistake
        return WrittenFlow(protocol, port, address=address)
    try:
        return WrittenFlow(protocol, port, normalised(host))
    except ValueError as error:
        raise UserError(f'"{text}" is no flow: {error}; allowed: {FLOWS_ALLOWED}') from error


def judge_for(policy: NetworkPolicy, groups: Groups) -> Judge:
    """A judge for written flows: to it, the address that stands for all public ones is public."""
    return Judge(policy, evolve(groups, public=(*groups.public, SOMEWHERE)))


def request_of(flow: WrittenFlow, groups: Groups) -> FlowRequest:
    """What is judged of it, before the guest has spoken."""
    address = flow.address
    guests = _is_of_guest(flow, groups)
    names = frozenset({flow.name}) if flow.name is not None and not guests else frozenset[str]()
    if address is None and guests:
        hosts = (each.packed for each in groups.lan[0].hosts())
        address = next(each for each in hosts if each not in groups.gateway)
    if address is None:
        own = flow.name is not None and groups.is_own_name(flow.name) and groups.gateway
        address = min(groups.gateway) if own else SOMEWHERE.network_address.packed
    return FlowRequest(flow.protocol, address, flow.port, names)


def flight_of(flow: WrittenFlow) -> Flight:
    """What a guest says first that does all as it should."""
    if flow.name is None:
        return Flight(Speech.OTHER)
    return Flight(Speech.HTTP if flow.port == HTTP_PORT else Speech.TLS, flow.name)


def judge_flow(judge: Judge, flow: WrittenFlow) -> Verdict:
    """The verdict over a guest that does all as it should."""
    if flow.name is not None:
        verdict = judge.judge_name(flow.name)
        own = judge.groups.is_own_name(flow.name) or _is_of_guest(flow, judge.groups)
        if flow.protocol == "dns" or (verdict.action != ALLOW and flow.address is None and not own):
            return verdict
    request = request_of(flow, judge.groups)
    return judge.judge(evolve(request, flight=flight_of(flow)))


def _is_of_guest(flow: WrittenFlow, groups: Groups) -> bool:
    return flow.name is not None and bool(groups.lan) and groups.is_guests_name(flow.name)


def described(flow: WrittenFlow, groups: Groups) -> str:
    """What is taken for granted of it."""
    if flow.name is None or flow.protocol == "dns":
        return ""
    if _is_of_guest(flow, groups):
        where = "an address" if flow.address is None else str(ip_address(flow.address))
        return f"{where} of the guests' network: no rule by name means what guests are called"
    where = "a public address" if flow.address is None else str(ip_address(flow.address))
    if flow.address is None and groups.is_own_name(flow.name):
        where = "an address of the gateway"
    return f"{where} that the guest was given for {flow.name}"
