"""The names that the gateway knows itself, as a resolver in the guest sees them."""

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.reversename
import pytest

from qemu_usernat.gateway.dns_message import read_query
from qemu_usernat.gateway.dns_zone import Zone
from qemu_usernat.primitives.addresses import parse_address

ZONE = Zone(parse_address("10.0.2.2"), parse_address("10.0.2.3"), 24)


def look_up(name: str, rdtype: str = "A", zone: Zone = ZONE) -> dns.message.Message | None:
    """The zone's answer, read by dnspython and checked against the question."""
    query = dns.message.make_query(name, rdtype, use_edns=0)
    wire = zone.answer(read_query(query.to_wire()))
    if wire is None:
        return None
    assert len(wire) <= 512
    message = dns.message.from_wire(wire)
    assert query.is_response(message)
    assert message.flags & dns.flags.AA
    assert message.flags & dns.flags.RA
    assert message.edns == 0
    return message


def records(name: str, rdtype: str = "A", zone: Zone = ZONE) -> list[str]:
    message = look_up(name, rdtype, zone)
    assert message is not None
    assert message.rcode() == dns.rcode.NOERROR
    return [item.to_text() for rrset in message.answer for item in rrset]


def reverse(address: str) -> str:
    return dns.reversename.from_address(address).to_text()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gateway.internal", "10.0.2.2"),
        ("host.internal", "10.0.2.2"),
        ("dns.internal", "10.0.2.3"),
        ("localhost", "127.0.0.1"),
        ("anything.localhost", "127.0.0.1"),
    ],
)
def test_own_names_have_addresses(name: str, expected: str) -> None:
    """A guest finds gateway, host and name server by name, and itself."""
    assert records(name) == [expected]
    assert records(name, "ANY")[0] == expected


def test_localhost_is_home_over_ipv6_too() -> None:
    """RFC 6761: both loopback addresses."""
    assert records("localhost", "AAAA") == ["::1"]


def test_names_are_found_whatever_their_capitals() -> None:
    """The answer repeats the spelling of the question."""
    message = look_up("GateWay.INTERNAL")
    assert message is not None
    assert message.answer[0].name.labels == (b"GateWay", b"INTERNAL", b"")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.0.2.2", "gateway.internal."),
        ("10.0.2.3", "dns.internal."),
        ("127.0.0.1", "localhost."),
    ],
)
def test_own_addresses_have_names(address: str, expected: str) -> None:
    """Reverse lookups, which traceroute and log files do, are answered at home."""
    assert records(reverse(address), "PTR") == [expected]


def test_one_address_for_both_is_the_gateway() -> None:
    """Where the gateway is the name server, its reverse name is the gateway's."""
    gateway = parse_address("10.0.2.2")
    assert records(reverse("10.0.2.2"), "PTR", Zone(gateway, gateway, 30)) == ["gateway.internal."]


@pytest.mark.parametrize(
    ("name", "rdtype", "origin"),
    [
        ("gateway.internal", "AAAA", "internal."),
        ("host.internal", "TXT", "internal."),
        ("internal", "A", "internal."),
        ("localhost", "MX", "localhost."),
        (reverse("10.0.2.2"), "A", "2.0.10.in-addr.arpa."),
    ],
)
def test_another_type_of_an_own_name_is_no_data(name: str, rdtype: str, origin: str) -> None:
    """The name exists, the type does not: NOERROR and the SOA (RFC 2308), so it is cached."""
    message = look_up(name, rdtype)
    assert message is not None
    assert message.rcode() == dns.rcode.NOERROR
    assert message.answer == []
    assert message.authority[0].rdtype == dns.rdatatype.SOA
    assert message.authority[0].name.to_text() == origin


@pytest.mark.parametrize(
    "name", ["nothere.internal", "www.gateway.internal", reverse("10.0.2.77"), reverse("10.0.2.0")]
)
@pytest.mark.parametrize("rdtype", ["A", "PTR", "AAAA"])
def test_other_names_of_the_zone_do_not_exist(name: str, rdtype: str) -> None:
    """NXDOMAIN with the SOA: nobody upstream is bothered with our private names."""
    message = look_up(name, rdtype)
    assert message is not None
    assert message.rcode() == dns.rcode.NXDOMAIN
    assert message.authority[0].rdtype == dns.rdatatype.SOA


@pytest.mark.parametrize(
    "name",
    [
        "www.example",
        "internal.example",
        "notinternal",
        "evillocalhost",
        "com",
        ".",
        reverse("10.0.3.2"),
        reverse("192.0.2.1"),
        reverse("fd00::1"),
        "2.0.10.in-addr.arpa",
        "x.2.0.10.in-addr.arpa",
        "256.2.0.10.in-addr.arpa",
        "1.2.2.0.10.in-addr.arpa",
    ],
)
def test_other_names_are_not_ours(name: str) -> None:
    """What is outside is asked outside."""
    assert look_up(name) is None


def test_a_query_of_another_class_is_not_ours() -> None:
    """`version.bind CH TXT` and its like go to who knows about them."""
    query = dns.message.make_query("gateway.internal", "TXT", "CH")
    assert ZONE.answer(read_query(query.to_wire())) is None


@pytest.mark.parametrize(
    ("prefix", "gateway", "inside", "outside", "origin"),
    [
        (8, "10.0.0.2", "10.255.1.9", "11.0.0.9", "10.in-addr.arpa."),
        (20, "10.0.16.2", "10.0.31.9", "10.0.32.9", "31.0.10.in-addr.arpa."),
        (30, "10.0.2.2", "10.0.2.1", "10.0.2.5", "2.0.10.in-addr.arpa."),
    ],
)
def test_the_reverse_zone_is_the_network_s(
    prefix: int, gateway: str, inside: str, outside: str, origin: str
) -> None:
    """Of any size: the network's addresses are ours, and not one beyond."""
    zone = Zone(parse_address(gateway), parse_address(gateway), prefix)
    message = look_up(reverse(inside), "PTR", zone)
    assert message is not None
    assert message.rcode() == dns.rcode.NXDOMAIN
    assert message.authority[0].name.to_text() == origin
    assert look_up(reverse(outside), "PTR", zone) is None


def test_the_zone_tells_of_itself() -> None:
    """Its SOA and name server are there for who asks, with names that exist."""
    assert records("internal", "NS") == ["dns.internal."]
    assert records("internal", "SOA")[0].startswith("dns.internal. hostmaster.internal. ")
