"""The names of the hermetic internet (RFC 1034, 1035), by dnspython.

It owns what every name says and which names fail. A name that nobody has defined does not exist,
and that is recorded, as is a question for records that a defined name does not have.
"""

from collections.abc import Iterator
from ipaddress import ip_address

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.rrset
from attrs import define, field
from dns.message import Message
from dns.name import Name
from dns.rdata import Rdata
from dns.rdatatype import RdataType

from qemu_usernat.primitives.addresses import Address, parse_address
from qemu_usernat.testing.internet.records import DnsQuery, Unexpected

TTL = 60  # seconds

MESSAGE_MAXIMUM = 65535  # octets (RFC 1035, 4.2.2)

ALIASES_MAXIMUM = 16
"""CNAMEs that are followed for one question."""

ADDRESSES = (RdataType.A, RdataType.AAAA)
"""Who asks for one of them is content with the other."""

BESIDE = frozenset(
    {
        RdataType.ANY,
        RdataType.CNAME,
        RdataType.NS,
        RdataType.SOA,
        RdataType.DS,
        RdataType.DNSKEY,
        RdataType.SVCB,
        RdataType.HTTPS,
    }
)
"""What resolvers and browsers ask beside what they are after: a defined name need not have it."""

_EXAMPLES = {
    RdataType.A: 'an IPv4 address, like "203.0.113.10"',
    RdataType.AAAA: 'an IPv6 address, like "2001:db8::10"',
}

_TYPES = {4: "A", 6: "AAAA"}

_TEXT_MAXIMUM = 255  # octets of one string in a TXT record (RFC 1035, 3.3.14)


@define(eq=False)
class Names:
    """Records by name and type."""

    unexpected: list[Unexpected]
    """Where a question for a name that is not defined is noted."""
    queries: list[DnsQuery] = field(factory=list)
    _records: dict[Name, dict[RdataType, list[Rdata]]] = field(factory=dict)
    _failing: dict[Name, int | None] = field(factory=dict)
    """Names to the response code of the failure; None where there is no answer at all."""
    _names: dict[Address, str] = field(factory=dict)
    """Addresses to the names that say them."""
    _known_reverse: set[Name] = field(factory=set)
    """Reverse names of addresses that are defined without a name."""

    # -- defining

    def define(self, name: str, record_type: str, values: tuple[str, ...]) -> None:
        """`name` says `values`, and nothing else of this type."""
        owner = parse_name(name)
        if not values:
            raise ValueError(f"no value is given for the {record_type} record of {name!r}")
        try:
            kind = dns.rdatatype.from_text(record_type)
        except dns.exception.DNSException as error:
            raise ValueError(
                f"record_type is {record_type!r}; allowed: a type of DNS records, like A or MX"
            ) from error
        data = [_parse_value(kind, value) for value in values]
        self._records.setdefault(owner, {})[kind] = data
        self._failing.pop(owner, None)
        if kind in (RdataType.A, RdataType.AAAA):
            for value in data:
                self._names.setdefault(parse_address(value.to_text()), name)

    def define_address(self, names: tuple[str, ...], addresses: tuple[str, ...]) -> None:
        """A host: `names` say `addresses`, and these say the first of the names."""
        by_type: dict[str, list[str]] = {}
        for address in addresses:
            by_type.setdefault(_TYPES[ip_address(address).version], []).append(address)
        for name in names:
            for record_type, values in by_type.items():
                self.define(name, record_type, tuple(values))
        for address in addresses:
            reverse = dns.reversename.from_address(address)
            if names:
                self.define(reverse.to_text(), "PTR", (names[0],))
            else:
                self._known_reverse.add(reverse)

    def fail(self, name: str, rcode: str | None) -> None:
        """Questions for `name` fail with `rcode`, or are not answered at all."""
        code = None
        if rcode is not None:
            try:
                code = dns.rcode.from_text(rcode)
            except dns.exception.DNSException as error:
                raise ValueError(
                    f"rcode is {rcode!r}; allowed: a response code, like SERVFAIL or REFUSED"
                ) from error
        self._failing[parse_name(name)] = code

    def name_of(self, address: Address) -> str | None:
        """A name that says `address`."""
        return self._names.get(address)

    def addresses_of(self, name: str) -> list[str]:
        """Those that `name` says, by aliases or by itself."""
        try:
            owner = parse_name(name)
        except ValueError:
            return []
        for _ in range(ALIASES_MAXIMUM):
            records = self._records.get(owner, {})
            if RdataType.CNAME not in records:
                break
            owner = dns.name.from_text(records[RdataType.CNAME][0].to_text())
        return [each.to_text() for kind in ADDRESSES for each in records.get(kind, ())]

    def is_defined(self, name: str) -> bool:
        """Whether the test has said anything of `name`."""
        owner = parse_name(name)
        return owner in self._records or owner in self._failing

    # -- answering

    def answer(
        self,
        message: bytes,
        guest: str,
        transport: str,
        now: float,
        maximum: int | None = None,
    ) -> bytes | None:
        """The answer to a question of `guest`, and a note of it; None for none.

        At most `maximum` octets, if the question does not allow more: what is longer is cut, and
        says so.
        """
        try:
            query = dns.message.from_wire(message, ignore_trailing=True)
            question = query.question[0]
            response = dns.message.make_response(query, recursion_available=True)
        except (dns.exception.DNSException, IndexError, NotImplementedError):
            return None
        silent = not self._fill(response, question.name, question.rdtype, guest, now)
        answers = tuple(item.to_text() for rrset in response.answer for item in rrset)
        outcome = "no answer" if silent else dns.rcode.to_text(response.rcode())
        name, kind = _text(question.name), dns.rdatatype.to_text(question.rdtype)
        self.queries.append(DnsQuery(guest, name, kind, transport, outcome, answers, now))
        if silent:
            return None
        size = MESSAGE_MAXIMUM if maximum is None else max(maximum, query.payload)
        return response.to_wire(max_size=size, prefer_truncation=True, want_shuffle=False)

    def _fill(self, response: Message, name: Name, kind: RdataType, guest: str, now: float) -> bool:
        """What is known of `name`; False where the question is not answered."""
        for _ in range(ALIASES_MAXIMUM):
            if name in self._failing:
                code = self._failing[name]
                if code is not None:
                    response.set_rcode(dns.rcode.Rcode(code))
                return code is not None
            records = self._records.get(name, {})
            response.answer.extend(_matching(name, kind, records))
            alias = records.get(RdataType.CNAME)
            if alias is None or kind in (RdataType.CNAME, RdataType.ANY):
                break
            response.answer.append(dns.rrset.from_rdata_list(name, TTL, alias))
            name = dns.name.from_text(alias[0].to_text())
            records = self._records.get(name, {})
        if not self._exists(name):
            response.set_rcode(dns.rcode.NXDOMAIN)
        if _is_missed(kind, records) and name not in self._known_reverse:
            record_type = dns.rdatatype.to_text(kind)
            note = Unexpected("dns", _text(name), None, record_type, guest, None, now)
            self.unexpected.append(note)
        return True

    def _exists(self, name: Name) -> bool:
        """Whether it is defined, or a name below it is (RFC 8020)."""
        return name in self._records or any(known.is_subdomain(name) for known in self._records)


def _is_missed(kind: RdataType, records: dict[RdataType, list[Rdata]]) -> bool:
    """Whether somebody who asks for `kind` has reached for what is not defined."""
    if not records:
        return True
    if kind in records or kind in BESIDE or RdataType.CNAME in records:
        return False
    return kind not in ADDRESSES or not any(each in records for each in ADDRESSES)


def parse_name(name: str) -> Name:
    """An absolute name; ValueError where it is none."""
    if not isinstance(name, str):
        raise TypeError(f'name is {name!r}; allowed: a domain name, like "example.com"')
    try:
        return dns.name.from_text(name)
    except dns.exception.DNSException as error:
        raise ValueError(
            f'name is {name!r} ({error}); allowed: a domain name, like "example.com"'
        ) from error


def _parse_value(kind: RdataType, value: str) -> Rdata:
    text = value
    if kind is RdataType.TXT and not value.startswith('"'):
        text = " ".join(_quoted(value))
    try:
        return dns.rdata.from_text(
            dns.rdataclass.IN, kind, text, origin=dns.name.root, relativize=False
        )
    except (dns.exception.DNSException, ValueError) as error:
        record_type = dns.rdatatype.to_text(kind)
        if kind in _EXAMPLES:
            raise ValueError(f"value is {value!r}; allowed: {_EXAMPLES[kind]}") from error
        raise ValueError(
            f"{value!r} is no {record_type} record ({error}); allowed: its data as in a zone file, "
            f'like "10 mail.example.com" for MX'
        ) from error


def _quoted(text: str) -> Iterator[str]:
    """The strings of a TXT record, each within its quotes."""
    octets = text.encode()
    for start in range(0, len(octets) or 1, _TEXT_MAXIMUM):
        piece = octets[start : start + _TEXT_MAXIMUM]
        plain = (chr(octet) if bytes((octet,)).isalnum() else f"\\{octet:03}" for octet in piece)
        yield '"' + "".join(plain) + '"'


def _matching(
    name: Name, kind: RdataType, records: dict[RdataType, list[Rdata]]
) -> Iterator[dns.rrset.RRset]:
    for record_type, data in records.items():
        if kind in (record_type, RdataType.ANY):
            yield dns.rrset.from_rdata_list(name, TTL, data)


def _text(name: Name) -> str:
    return name.to_text(omit_final_dot=True).lower()
