"""Which frames are meant: expressions that are written as one would say them.

    capture.frames(tcp.port == 443)
    faults.drop(from_guest & udp & ~dns)
    capture.assert_none(ip.destination.within("203.0.113.0/24") & tcp.syn)

A comparison is about frames that have the field: ``tcp.port != 443`` are the TCP segments of other
ports, while ``~(tcp.port == 443)`` are all frames but those of the port. A field may have several
values (`tcp.port` are both ports): one that fits is enough, and none may for ``!=``.

An expression is combined with ``&``, ``|`` and ``~`` and never asked for its truth: Python's
``and`` would throw half of it away, so that raises TypeError. What is compared is checked when it
is written: a port of 70000 would be met by no frame, and a test with it could not fail.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterable
from ipaddress import IPv4Network, ip_address
from typing import Any, Generic, NoReturn, TypeVar

from attrs import field, frozen
from dns import rcode as dns_rcode
from dns import rdatatype

from qemu_usernat.testing import values
from qemu_usernat.testing.frames import Frame

_PARENTHESES = "put parentheses around each comparison: (tcp.port == 443) & from_guest"
_COMPARE = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

T = TypeVar("T", bound=Hashable)


class Filter(ABC):
    """An expression over frames."""

    @abstractmethod
    def matches(self, frame: Frame) -> bool:
        """Whether `frame` is one of those meant."""

    def nearness(self, frame: Frame) -> float:
        """How nearly `frame` is one, from 0 to 1: what is shown first when there is none."""
        return float(self.matches(frame))

    def guests(self) -> frozenset[str]:
        """The guests that are named in it; whoever knows which there are can say if one is not."""
        return frozenset()

    def __and__(self, other: "Filter") -> "Filter":
        return _Both(self, require_filter(other))

    def __or__(self, other: "Filter") -> "Filter":
        return _Either(self, require_filter(other))

    def __invert__(self) -> "Filter":
        return _Not(self)

    def __rand__(self, other: object) -> NoReturn:
        raise TypeError(f"{other!r} & {self!r}: {_PARENTHESES}")

    __ror__ = __rand__

    def __bool__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} is an expression over frames and has no truth of its own: "
            "combine expressions with & for `and`, | for `or`, ~ for `not`"
        )


def require_filter(what: object, guests: Collection[str] = ()) -> Filter:
    """`what`, if it is an expression; TypeError otherwise.

    Where it is known which `guests` there are, ValueError if it names another one.
    """
    if not isinstance(what, Filter):
        raise TypeError(
            f"{what!r} is not a filter such as tcp.port == 443; if it is a part of one, "
            f"{_PARENTHESES}"
        )
    for name in sorted(what.guests() - set(guests)) if guests else ():
        raise ValueError(f"guest is {name!r}; allowed: {', '.join(map(repr, guests))}")
    return what


# -- how expressions are combined


@frozen(eq=False, repr=False)
class _Both(Filter):
    left: Filter
    right: Filter

    def matches(self, frame: Frame) -> bool:
        return self.left.matches(frame) and self.right.matches(frame)

    def nearness(self, frame: Frame) -> float:
        return (self.left.nearness(frame) + self.right.nearness(frame)) / 2

    def guests(self) -> frozenset[str]:
        return self.left.guests() | self.right.guests()

    def __repr__(self) -> str:
        return f"{_inner(self.left)} & {_inner(self.right)}"


@frozen(eq=False, repr=False)
class _Either(Filter):
    left: Filter
    right: Filter

    def matches(self, frame: Frame) -> bool:
        return self.left.matches(frame) or self.right.matches(frame)

    def nearness(self, frame: Frame) -> float:
        return max(self.left.nearness(frame), self.right.nearness(frame))

    def guests(self) -> frozenset[str]:
        return self.left.guests() | self.right.guests()

    def __repr__(self) -> str:
        return f"{_inner(self.left)} | {_inner(self.right)}"


@frozen(eq=False, repr=False)
class _Not(Filter):
    inner: Filter

    def matches(self, frame: Frame) -> bool:
        return not self.inner.matches(frame)

    def guests(self) -> frozenset[str]:
        return self.inner.guests()

    def __repr__(self) -> str:
        return f"~{_inner(self.inner)}"


def _inner(part: Filter) -> str:
    return repr(part) if isinstance(part, (_Truth, _Not)) else f"({part!r})"


# -- what there is to say of a frame


@frozen(eq=False, repr=False)
class _Truth(Filter):
    """Something that is so or not, by name."""

    _word: str
    _read: Callable[[Frame], Any]

    def matches(self, frame: Frame) -> bool:
        return bool(self._read(frame))

    def __repr__(self) -> str:
        return self._word


@frozen(eq=False, repr=False)
class _Test(Filter):
    """Something that is so of a field's values; `text` is the expression."""

    text: str
    has: Callable[[Frame], bool]
    test: Callable[[Frame], bool]
    named: frozenset[str] = frozenset()
    """Guests."""

    def matches(self, frame: Frame) -> bool:
        return self.test(frame)

    def guests(self) -> frozenset[str]:
        return self.named

    def nearness(self, frame: Frame) -> float:
        if self.test(frame):
            return 1.0
        return 0.5 if self.has(frame) else 0.0  # of the same kind, with another value

    def __repr__(self) -> str:
        return self.text


@frozen(eq=False, repr=False)
class Field(Generic[T]):
    """A field of a frame, to be compared; a frame has no values of it, one, or several."""

    name: str
    read: Callable[[Frame], Iterable[T]]
    accept: Callable[[str, Any], T] = field(kw_only=True)
    """The value that was written, as frames have it; TypeError or ValueError by name."""

    def _test(self, text: str, test: Callable[[T], bool], *wanted: T) -> Filter:
        read = self.read
        return _Test(
            f"{self.name}{text}",
            lambda frame: any(True for _ in read(frame)),
            lambda frame: any(test(value) for value in read(frame)),
            self._guests(*wanted),
        )

    def _guests(self, *wanted: T) -> frozenset[str]:
        """Those of the values that are names of guests."""
        return frozenset()

    def __eq__(self, value: T) -> Filter:  # type: ignore[override]
        wanted = self.accept(self.name, value)
        return self._test(f" == {value!r}", lambda found: found == wanted, wanted)

    def __ne__(self, value: T) -> Filter:  # type: ignore[override]
        wanted, read = self.accept(self.name, value), self.read

        def differs(frame: Frame) -> bool:
            found = tuple(read(frame))
            return bool(found) and wanted not in found

        has = self._test("", lambda found: True).matches
        return _Test(f"{self.name} != {value!r}", has, differs, self._guests(wanted))

    __hash__ = None  # type: ignore[assignment]

    def one_of(self, *allowed: T) -> Filter:
        """It is any of `allowed`."""
        wanted = {self.accept(self.name, value) for value in allowed}
        if not wanted:
            raise ValueError(f"{self.name}.one_of() needs at least one value")
        text = ", ".join(map(repr, allowed))
        return self._test(f".one_of({text})", lambda found: found in wanted, *wanted)

    def __and__(self, other: object) -> NoReturn:
        raise TypeError(f"{self.name} & …: {_PARENTHESES}")

    __or__ = __rand__ = __ror__ = __and__

    def __bool__(self) -> NoReturn:
        raise TypeError(f"{self.name} has no truth of its own: compare it, as in tcp.port == 443")

    def __repr__(self) -> str:
        return self.name


class NumberField(Field[int]):
    """A number."""

    def _compare(self, sign: str, value: int) -> Filter:
        compare, limit = _COMPARE[sign], self.accept(self.name, value)
        return self._test(f" {sign} {value!r}", lambda found: compare(found, limit))

    def __lt__(self, value: int) -> Filter:
        return self._compare("<", value)

    def __le__(self, value: int) -> Filter:
        return self._compare("<=", value)

    def __gt__(self, value: int) -> Filter:
        return self._compare(">", value)

    def __ge__(self, value: int) -> Filter:
        return self._compare(">=", value)


class AddressField(Field[str]):
    """An IPv4 address."""

    def within(self, network: str) -> Filter:
        """It is of `network`, written as ``203.0.113.0/24``."""
        try:
            inside = IPv4Network(network)
        except ValueError as error:
            raise ValueError(
                f'{self.name}.within({network!r}): {error}; allowed: a network, like "10.0.2.0/24"'
            ) from error
        return self._test(f".within({network!r})", lambda found: ip_address(found) in inside)


class NameField(Field[str]):
    """A domain name, whatever its case, with or without the final dot."""

    def under(self, domain: str) -> Filter:
        """It is `domain`, or a name below it."""
        wanted = self.accept(self.name, domain)
        return self._test(
            f".under({domain!r})",
            lambda found: found == wanted or found.endswith(f".{wanted}"),
        )


class GuestField(Field[str]):
    """The name of a guest."""

    def _guests(self, *wanted: str) -> frozenset[str]:
        return frozenset(wanted)


class OctetsField(Field[bytes]):
    """Octets."""

    def contains(self, octets: bytes) -> Filter:
        """`octets` are among them, in one piece."""
        wanted = self.accept(self.name, octets)
        if not wanted:
            raise ValueError(
                f"{self.name}.contains(b''): every frame does; allowed: an octet or more"
            )
        return self._test(f".contains({octets!r})", lambda found: wanted in found)


# -- the words


def _each(read: Callable[[Frame], Any], *attributes: str) -> Callable[[Frame], tuple[Any, ...]]:
    """Those attributes of what `read` finds; nothing where it finds nothing."""

    def found(frame: Frame) -> tuple[Any, ...]:
        content = read(frame)
        if content is None:
            return ()
        return tuple(getattr(content, attribute) for attribute in attributes)

    return found


def _ip_of(frame: Frame) -> Any:
    return frame.ip


def _tcp_of(frame: Frame) -> Any:
    return frame.tcp


def _udp_of(frame: Frame) -> Any:
    return frame.udp


def _icmp_of(frame: Frame) -> Any:
    return frame.icmp


def _names(frame: Frame) -> tuple[str, ...]:
    if frame.dns is None:
        return ()
    names = [entry.name for entry in (*frame.dns.question, *frame.dns.answer)]
    return tuple(name.to_text(omit_final_dot=True).lower() for name in names)


def _record_types(frame: Frame) -> tuple[str, ...]:
    if frame.dns is None:
        return ()
    return tuple(rdatatype.to_text(asked.rdtype) for asked in frame.dns.question)


def _response_codes(frame: Frame) -> tuple[str, ...]:
    if frame.dns is None or not _is_answer(frame):
        return ()
    return (dns_rcode.to_text(frame.dns.rcode()),)


def _is_answer(frame: Frame) -> bool:
    return frame.dns is not None and bool(frame.dns.flags & 0x8000)  # QR (RFC 1035, 4.1.1)


class _Ethernet:
    """The Ethernet header; every frame has it."""

    source = Field("eth.source", lambda frame: (frame.source,), accept=values.mac)
    destination = Field("eth.destination", lambda frame: (frame.destination,), accept=values.mac)
    address = Field(
        "eth.address", lambda frame: (frame.source, frame.destination), accept=values.mac
    )
    type = NumberField("eth.type", lambda frame: (frame.ethertype,), accept=values.port)


class _Ip(_Truth):
    """IPv4."""

    source = AddressField("ip.source", _each(_ip_of, "source"), accept=values.address)
    destination = AddressField(
        "ip.destination", _each(_ip_of, "destination"), accept=values.address
    )
    address = AddressField(
        "ip.address", _each(_ip_of, "source", "destination"), accept=values.address
    )
    protocol = NumberField("ip.protocol", _each(_ip_of, "protocol"), accept=values.octet)
    ttl = NumberField("ip.ttl", _each(_ip_of, "ttl"), accept=values.octet)
    fragment = _Truth("ip.fragment", lambda frame: frame.ip and frame.ip.is_fragment)


class _Tcp(_Truth):
    """TCP."""

    source_port = NumberField("tcp.source_port", _each(_tcp_of, "source_port"), accept=values.port)
    destination_port = NumberField(
        "tcp.destination_port", _each(_tcp_of, "destination_port"), accept=values.port
    )
    port = NumberField(
        "tcp.port", _each(_tcp_of, "source_port", "destination_port"), accept=values.port
    )
    syn = _Truth("tcp.syn", lambda frame: frame.tcp and frame.tcp.syn)
    ack = _Truth("tcp.ack", lambda frame: frame.tcp and frame.tcp.ack)
    fin = _Truth("tcp.fin", lambda frame: frame.tcp and frame.tcp.fin)
    rst = _Truth("tcp.rst", lambda frame: frame.tcp and frame.tcp.rst)
    psh = _Truth("tcp.psh", lambda frame: frame.tcp and frame.tcp.psh)
    payload = OctetsField("tcp.payload", _each(_tcp_of, "payload"), accept=values.octets)


class _Udp(_Truth):
    """UDP."""

    source_port = NumberField("udp.source_port", _each(_udp_of, "source_port"), accept=values.port)
    destination_port = NumberField(
        "udp.destination_port", _each(_udp_of, "destination_port"), accept=values.port
    )
    port = NumberField(
        "udp.port", _each(_udp_of, "source_port", "destination_port"), accept=values.port
    )
    payload = OctetsField("udp.payload", _each(_udp_of, "payload"), accept=values.octets)


class _Icmp(_Truth):
    """ICMP."""

    type = NumberField("icmp.type", _each(_icmp_of, "type"), accept=values.octet)
    code = NumberField("icmp.code", _each(_icmp_of, "code"), accept=values.octet)


class _Dns(_Truth):
    """DNS: `name` is any that is asked for or answered, `type` what is asked for."""

    name = NameField("dns.name", _names, accept=values.domain)
    type = Field("dns.type", _record_types, accept=values.record_type)
    rcode = Field("dns.rcode", _response_codes, accept=values.response_code)
    query = _Truth("dns.query", lambda frame: frame.dns and not _is_answer(frame))
    answer = _Truth("dns.answer", _is_answer)


eth = _Ethernet()
"""The Ethernet header: `source`, `destination`, `address` (either), `type`."""

arp = _Truth("arp", lambda frame: frame.arp is not None)
"""It is ARP."""

ip = _Ip("ip", lambda frame: frame.ip is not None)
"""It is IPv4, with `source`, `destination`, `address` (either), `protocol`, `ttl`, `fragment`."""

tcp = _Tcp("tcp", lambda frame: frame.tcp is not None)
"""It is TCP, with ports, flags and `payload`."""

udp = _Udp("udp", lambda frame: frame.udp is not None)
"""It is UDP, with ports and `payload`."""

icmp = _Icmp("icmp", lambda frame: frame.icmp is not None)
"""It is ICMP, with `type` and `code`."""

dns = _Dns("dns", lambda frame: frame.dns is not None)
"""It is DNS, with `name`, `type`, `rcode`, `query` and `answer`."""

dhcp = _Truth("dhcp", lambda frame: frame.dhcp is not None)
"""It is DHCP."""

malformed = _Truth("malformed", lambda frame: frame.malformed is not None)
"""It is broken: a wrong checksum, a length that cannot be."""

unknown = _Truth("unknown", lambda frame: frame.unknown is not None)
"""It is of a protocol that the server does not speak: IPv6, a VLAN, IGMP."""

from_guest = _Truth("from_guest", lambda frame: frame.from_guest)
"""The guest has sent it."""

to_guest = _Truth("to_guest", lambda frame: frame.to_guest)
"""It is on its way to the guest."""

anything = _Truth("anything", lambda frame: True)
"""Every frame."""

guest = GuestField("guest", lambda frame: (frame.guest,), accept=values.text)
"""The name of the guest whose wire it was on."""

length = NumberField("length", lambda frame: (len(frame),), accept=values.size)
"""How many octets it has, from the Ethernet header on."""
