"""The names that the gateway knows itself (RFC 1034, 1035, 2308, 4592).

Under `.internal`, the top-level domain that ICANN keeps free for such use, live
`gateway.internal` and `host.internal` (the gateway's address) and `dns.internal` (the name
server's), and the same in the network's domain, where that is another. The reverse names of the
guest's own network are ours too, and `localhost` stays at home (RFC 6761, 6.3). There the zone is
the authority: what it does not have does not exist.

The user's records stand beside these, anywhere in the world's tree: a name that has one is ours,
with all its types, and so is one that a wildcard stands for (RFC 4592: at the closest encloser, and
nowhere where a name exists, or one below it). The names beside them are somebody else's, and are
asked for there; so is what a CNAME leads to that is not ours. An address has the first name that
was given it, unless it was given another.

Guests are known in the network's domain by what they call themselves, for as long as they have
their addresses. They get no name that is there already.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence

import dns.exception
import dns.message
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.rrset
from attrs import define, field, frozen

from qemu_usernat.config.records import INTERNAL, LOCALHOST, Record, own_names
from qemu_usernat.gateway import dns_message
from qemu_usernat.gateway.dns_message import NOERROR, NXDOMAIN, SERVFAIL, Query, record, reply
from qemu_usernat.gateway.dns_weight import is_light
from qemu_usernat.primitives.addresses import LOOPBACK_IPV4, Address, format_address
from qemu_usernat.primitives.time import MS, NEVER

TTL = 60
"""Seconds, of records of our own: a restart may bring another network."""

ABSENCE_TTL = 5
"""Seconds that a name of ours is said to be absent: a guest may just be booting."""

ALIASES_MAXIMUM = 16
"""CNAMEs that are followed for one question."""

LOOK_INTERVAL = 100 * MS
"""How often at most the guests are asked for: there may be thousands."""

A, AAAA, CNAME, PTR, SOA, NS = (
    dns.rdatatype.from_text(text) for text in ("A", "AAAA", "CNAME", "PTR", "SOA", "NS")
)
_DNS = dns.name.from_text("dns.internal")
_REVERSE = dns.name.from_text("in-addr.arpa")
_STAR = b"*"

_SOA_NUMBERS = struct.Struct("!IIIII").pack(1, 3600, 600, 86400, ABSENCE_TTL)
"""Serial, refresh, retry, expire, minimum: nobody transfers this zone, only the last is used."""

Kinds = dict[dns.rdatatype.RdataType, dns.rrset.RRset]
"""All that a name has."""

GuestNames = Callable[[float], Sequence[tuple[Address, str]]]
"""The guests that there are at a time: address, and a name of one label; who came first first. The
same object says that nothing has changed."""


def _wire(name: dns.name.Name) -> bytes:
    return name.to_wire() or b"\0"


_SOA = _wire(_DNS) + _wire(dns.name.from_text("hostmaster.internal")) + _SOA_NUMBERS


def _rrset(
    name: dns.name.Name, kind: dns.rdatatype.RdataType, *texts: str, ttl: int = TTL
) -> dns.rrset.RRset:
    return dns.rrset.from_text(name, ttl, dns.rdataclass.IN, kind, *texts)


def nobody(now: float) -> Sequence[tuple[Address, str]]:
    """No guest has a name."""
    return ()


@frozen
class Own:
    """What the zone says to a question.

    `rrsets` are CNAMEs from the question's name on, and what is at their end; `outside` is where
    they lead, if that is not ours. An absence is one of the names below `origin`. `is_given` if all
    of it is the operator's word, and none a guest's.
    """

    rcode: int
    rrsets: list[dns.rrset.RRset]
    origin: dns.name.Name
    is_given: bool
    outside: dns.name.Name | None = None
    has_end: bool = False

    def message(self, query: Query) -> bytes:
        """The authoritative answer, where nobody outside has to be asked."""
        authority = []
        if not self.has_end and self.rcode != SERVFAIL:
            authority.append(record(int(SOA), ABSENCE_TTL, _SOA, _wire(self.origin)))
        records = dns_message.chain(query, self.rrsets)
        return reply(query, self.rcode, records, authority, authoritative=True)

    def followed(self, query: Query, message: bytes) -> bytes:
        """The answer with what an upstream said of the name outside."""
        rcode = dns_message.rcode_of(message)
        if rcode not in (NOERROR, NXDOMAIN):
            return reply(query, rcode)
        if message[2] << 8 & dns_message.TC:
            return dns_message.truncated(query, reply(query, rcode), dns_message.UDP_SIZE_MINIMUM)
        if not is_light(message):
            return reply(query, SERVFAIL)
        try:
            found = dns.message.from_wire(message, ignore_trailing=True)
            records = dns_message.chain(query, self.rrsets) + list(_records(found.answer))
            absence = [rrset for rrset in found.authority if rrset.rdtype == SOA]
            return reply(query, rcode, records, list(_records(absence)))
        except (dns.exception.DNSException, ValueError, struct.error):
            return reply(query, SERVFAIL)


def _records(rrsets: Iterable[dns.rrset.RRset]) -> Iterator[bytes]:
    for rrset in rrsets:
        for item in rrset:
            yield record(rrset.rdtype, rrset.ttl, item.to_wire() or b"", _wire(rrset.name))


@frozen
class _Found:
    """A name that is ours: what it has; None if it does not exist."""

    kinds: Kinds | None
    origin: dns.name.Name
    is_given: bool = True


@define
class Zone:
    """Answers of the gateway's own, for an IPv4 network of `prefix_length` around `gateway`."""

    gateway: Address
    nameserver: Address
    prefix_length: int
    domain: dns.name.Name = INTERNAL
    records: tuple[Record, ...] = ()
    guests: GuestNames = nobody
    _names: dict[dns.name.Name, Kinds] = field(factory=dict, init=False)
    _existing: set[dns.name.Name] = field(factory=set, init=False)
    """The names that have something, and those above them (RFC 4592, 2.2.2)."""
    _exact: frozenset[bytes] = field(init=False)
    """The names that have something, and what other names of ours end in: both as on the wire."""
    _endings: tuple[bytes, ...] = field(init=False)
    _guests: dict[dns.name.Name, Address] = field(factory=dict, init=False)
    _guests_at: dict[Address, dns.name.Name] = field(factory=dict, init=False)
    _seen: Sequence[tuple[Address, str]] = field(default=(), init=False)
    """Who was there at the last look."""
    _called: dict[str, dns.name.Name] = field(factory=dict, init=False)
    """Their names, by what they call themselves."""
    _next_look: float = field(default=-NEVER, init=False)

    def __attrs_post_init__(self) -> None:
        for rrset in self._own():
            self._add(rrset)
        for each in (each.within(self.domain) for each in self.records):
            self._add(dns.rrset.from_rdata_list(each.name, each.ttl, each.data))
        for rrset in [rrset for kinds in self._names.values() for rrset in kinds.values()]:
            self._name_addresses(rrset)
        self._existing = {above for name in self._names for above in (name, *_above(name))}
        self._exact = frozenset(map(_folded, self._names))
        wildcards = (name.parent() for name in self._names if name.labels[0] == _STAR)
        ours = {INTERNAL, LOCALHOST, _REVERSE, self.domain, *wildcards}
        self._endings = tuple(map(_folded, ours))

    def _own(self) -> Iterator[dns.rrset.RRset]:
        gateway, nameserver = map(format_address, (self.gateway, self.nameserver))
        yield dns.rrset.from_rdata(INTERNAL, TTL, _rdata(SOA, _SOA))
        yield _rrset(INTERNAL, NS, "dns.internal.")
        # The gateway first: where both have one address, that is its name.
        yield _rrset(LOCALHOST, A, format_address(LOOPBACK_IPV4))
        yield _rrset(LOCALHOST, AAAA, "::1")
        for name in dict.fromkeys(own_names(self.domain)):
            yield _rrset(name, A, nameserver if name.labels[0] == b"dns" else gateway)

    def _add(self, rrset: dns.rrset.RRset) -> None:
        self._names.setdefault(rrset.name, {})[rrset.rdtype] = rrset

    def _name_addresses(self, rrset: dns.rrset.RRset) -> None:
        """Give each address the name, unless it has one."""
        if rrset.rdtype in (A, AAAA) and rrset.name.labels[0] != _STAR:
            for item in rrset:
                reverse = dns.reversename.from_address(item.address)
                if PTR not in self._names.get(reverse, {}):
                    self._add(_rrset(reverse, PTR, rrset.name.to_text(), ttl=rrset.ttl))

    # -- answering

    def may_know(self, query: Query) -> bool:
        """Whether `answer` need be asked: of most names a glance tells that it need not."""
        name = query.folded[:-4]  # type and class follow
        return name in self._exact or name.endswith(self._endings)

    def answer(self, query: Query, now: float, alone: Address | None = None) -> Own | None:
        """What is known of the question, or None where the name is not ours. A guest that is
        `alone`, at that address, is told of no other."""
        if query.record_class not in (dns.rdataclass.IN, dns.rdataclass.ANY):
            return None
        name, chain, is_given = query.name, list[dns.rrset.RRset](), True
        origin = name
        for _ in range(ALIASES_MAXIMUM):
            found = self._find(name, now, alone)
            if found is None:
                if not chain:
                    return None
                return Own(NOERROR, chain, origin, is_given, outside=name)
            origin, is_given = found.origin, is_given and found.is_given
            if found.kinds is None:
                return Own(NXDOMAIN, chain, origin, is_given)
            wanted = _wanted(query.record_type, found.kinds)
            if wanted or CNAME not in found.kinds:
                return Own(NOERROR, chain + wanted, origin, is_given, has_end=bool(wanted))
            alias = found.kinds[CNAME]
            chain.append(alias)
            name = alias[0].target
        return Own(SERVFAIL, [], origin, is_given)

    def _find(self, name: dns.name.Name, now: float, alone: Address | None) -> _Found | None:
        """All that a name has, if it is ours."""
        kinds = self._names.get(name)
        if kinds is not None:
            return _Found(kinds, self._origin(name))
        if name.is_subdomain(LOCALHOST):
            return _Found(self._names[LOCALHOST], LOCALHOST)
        guest = self._guest_named(name, now, alone)
        if guest is not None:
            return guest
        for above in () if name in self._existing else _above(name):
            if self._guest_named(above, now, alone) is not None:
                break
            if above in self._existing:
                kinds = self._names.get(dns.name.Name((_STAR, *above.labels)))
                if kinds is not None:
                    return _Found(kinds, self._origin(name))
                break
        if name.is_subdomain(INTERNAL):
            return _Found({} if name in self._existing else None, INTERNAL)
        address = _reversed_address(name)
        if address is not None and self._contains(address):
            return _Found(None, self._origin(name))
        return None

    def _origin(self, name: dns.name.Name) -> dns.name.Name:
        """Whose names `name` is one of, to those who want to know who says that there is none.

        Of the reverse names: the zone cut at the octet in which the network ends.
        """
        if name.is_subdomain(INTERNAL):
            return INTERNAL
        address = _reversed_address(name)
        if address is not None and self._contains(address):
            octets = min(3, -(-self.prefix_length // 8))
            return name.split(len(_REVERSE.labels) + octets)[1]
        return name

    def _contains(self, address: Address) -> bool:
        difference = int.from_bytes(address, "big") ^ int.from_bytes(self.gateway, "big")
        return difference >> (32 - self.prefix_length) == 0

    # -- guests

    def guest(self, label: str, now: float) -> Address | None:
        """Where the guest of that name is; None if there is none."""
        self._look(now)
        return self._guests.get(dns.name.Name((label.encode("ascii"), *self.domain.labels)))

    def _guest_named(self, name: dns.name.Name, now: float, alone: Address | None) -> _Found | None:
        if len(name) == len(self.domain) + 1 and name.is_subdomain(self.domain):
            self._look(now)
            address = self._guests.get(name)
            if address is not None and alone in (None, address):
                text = format_address(address)
                return _Found({A: _rrset(name, A, text)}, self._origin(name), is_given=False)
        address = _reversed_address(name)
        if address is not None and self._contains(address):
            self._look(now)
            owner = self._guests_at.get(address)
            if owner is not None and alone in (None, address):
                kinds = {PTR: _rrset(name, PTR, owner.to_text())}
                return _Found(kinds, self._origin(name), is_given=False)
        return None

    def _look(self, now: float) -> None:
        """Who is there; a name stays with whom it was, while he keeps it."""
        if now < self._next_look:
            return
        self._next_look = now + LOOK_INTERVAL
        there = self.guests(now)
        if there is self._seen or there == self._seen:
            return
        self._seen = there
        before, self._guests = self._guests, {}
        claims, called = [], self._called
        self._called = {}
        for address, label in there:
            owner = called.get(label)
            if owner is None:
                owner = dns.name.Name((label.encode("ascii"), *self.domain.labels))
            self._called[label] = owner
            if owner not in self._names:
                claims.append((owner, address))
        for is_kept in (True, False):
            for owner, address in claims:
                if is_kept is (before.get(owner) == address):
                    self._guests.setdefault(owner, address)
        self._guests_at = {address: owner for owner, address in self._guests.items()}


def _wanted(record_type: int, kinds: Kinds) -> list[dns.rrset.RRset]:
    if record_type == dns.rdatatype.ANY:
        return list(kinds.values())
    return [rrset for kind, rrset in kinds.items() if kind == record_type]


def _above(name: dns.name.Name) -> Iterator[dns.name.Name]:
    """The names above it, the nearest first."""
    while name != dns.name.root:
        name = name.parent()
        yield name


def _folded(name: dns.name.Name) -> bytes:
    return _wire(name.canonicalize())


def _rdata(kind: dns.rdatatype.RdataType, data: bytes) -> dns.rdata.Rdata:
    return dns.rdata.from_wire(dns.rdataclass.IN, kind, data, 0, len(data))


def _reversed_address(name: dns.name.Name) -> Address | None:
    """10.0.2.2 of ``2.2.0.10.in-addr.arpa`` (RFC 1035, 3.5); None for any other kind of name."""
    if len(name.labels) != 4 + len(_REVERSE.labels) or not name.is_subdomain(_REVERSE):
        return None
    octets = name.labels[3::-1]
    if not all(label.isdigit() and len(label) <= 3 and int(label) < 256 for label in octets):
        return None
    return bytes(map(int, octets))
