"""The names that the gateway knows itself (RFC 1035, 2308).

Under `.internal`, the top-level domain that ICANN keeps free for such use, live
`gateway.internal` and `host.internal` (the gateway's address) and `dns.internal` (the name
server's). The reverse names of the guest's own network are ours too, and `localhost` stays at home
(RFC 6761, 6.3). For these names the zone is the authority: what it does not have does not exist.
For all others it has no answer, and somebody else is asked.
"""

from struct import Struct

import dns.name
import dns.rdataclass
import dns.rdatatype
from attrs import define, field

from qemu_usernat.gateway.dns_message import NOERROR, NXDOMAIN, Query, record, reply
from qemu_usernat.primitives.addresses import LOOPBACK_IPV4, Address

TTL = 60
"""Seconds, of records and of their absence: a restart may bring another network."""

_INTERNAL = dns.name.from_text("internal")
_GATEWAY = dns.name.from_text("gateway.internal")
_HOST = dns.name.from_text("host.internal")
_NAMESERVER = dns.name.from_text("dns.internal")
_HOSTMASTER = dns.name.from_text("hostmaster.internal")
_LOCALHOST = dns.name.from_text("localhost")
_REVERSE = dns.name.from_text("in-addr.arpa")

_LOOPBACK_IPV6 = b"\0" * 15 + b"\x01"

_SOA_NUMBERS = Struct("!IIIII").pack(1, 3600, 600, 86400, TTL)
"""Serial, refresh, retry, expire, minimum: nobody transfers this zone, only the last is used."""


def _wire(name: dns.name.Name) -> bytes:
    return name.to_wire() or b"\0"


_SOA = _wire(_NAMESERVER) + _wire(_HOSTMASTER) + _SOA_NUMBERS


@define
class Zone:
    """Answers of the gateway's own, for an IPv4 network of `prefix_length` around `gateway`."""

    gateway: Address
    nameserver: Address
    prefix_length: int
    _records: dict[dns.name.Name, dict[int, bytes]] = field(init=False)
    _names: dict[Address, dns.name.Name] = field(init=False)

    def __attrs_post_init__(self) -> None:
        a, aaaa = int(dns.rdatatype.A), int(dns.rdatatype.AAAA)
        self._records = {
            _INTERNAL: {
                int(dns.rdatatype.SOA): _SOA,
                int(dns.rdatatype.NS): _wire(_NAMESERVER),
            },
            _GATEWAY: {a: self.gateway},
            _HOST: {a: self.gateway},
            _NAMESERVER: {a: self.nameserver},
            _LOCALHOST: {a: LOOPBACK_IPV4, aaaa: _LOOPBACK_IPV6},
        }
        # The gateway last: where both have one address, that is its name.
        self._names = {
            LOOPBACK_IPV4: _LOCALHOST,
            self.nameserver: _NAMESERVER,
            self.gateway: _GATEWAY,
        }

    def answer(self, query: Query) -> bytes | None:
        """The authoritative answer, or None where the name is not ours."""
        if query.record_class not in (dns.rdataclass.IN, dns.rdataclass.ANY):
            return None
        name = query.name
        if name.is_subdomain(_INTERNAL):
            return _answer(query, _INTERNAL, self._records.get(name))
        if name.is_subdomain(_LOCALHOST):
            return _answer(query, _LOCALHOST, self._records[_LOCALHOST])
        address = _reversed_address(name)
        if address is None:
            return None
        owner = self._names.get(address)
        if owner is not None:
            records = {int(dns.rdatatype.PTR): _wire(owner)}
            return _answer(query, self._reverse_origin(name), records)
        if self._contains(address):
            return _answer(query, self._reverse_origin(name), None)
        return None

    def _contains(self, address: Address) -> bool:
        difference = int.from_bytes(address, "big") ^ int.from_bytes(self.gateway, "big")
        return difference >> (32 - self.prefix_length) == 0

    def _reverse_origin(self, name: dns.name.Name) -> dns.name.Name:
        """The reverse zone of `name`, cut at the octet in which the network ends."""
        octets = min(3, -(-self.prefix_length // 8))
        return name.split(len(_REVERSE.labels) + octets)[1]


def _answer(query: Query, origin: dns.name.Name, records: dict[int, bytes] | None) -> bytes:
    """The records of the type asked for; else the SOA, which tells how long to believe in none."""
    found = []
    for record_type, data in (records or {}).items():
        if query.record_type in (record_type, dns.rdatatype.ANY):
            found.append(record(record_type, TTL, data))
    rcode = NOERROR if records is not None else NXDOMAIN
    authority = [] if found else [record(dns.rdatatype.SOA, TTL, _SOA, _wire(origin))]
    return reply(query, rcode, found, authority, authoritative=True)


def _reversed_address(name: dns.name.Name) -> Address | None:
    """10.0.2.2 of ``2.2.0.10.in-addr.arpa`` (RFC 1035, 3.5); None for any other kind of name."""
    if len(name.labels) != 4 + len(_REVERSE.labels) or not name.is_subdomain(_REVERSE):
        return None
    octets = name.labels[3::-1]
    if not all(label.isdigit() and len(label) <= 3 and int(label) < 256 for label in octets):
        return None
    return bytes(map(int, octets))
