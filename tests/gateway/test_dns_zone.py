"""The names that the gateway knows itself, as a resolver in the guest sees them."""

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.reversename
import dns.zone
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.config.records import Record, read_records
from qemu_usernat.gateway.dns_message import read_query
from qemu_usernat.gateway.dns_zone import LOOK_INTERVAL, Zone
from qemu_usernat.primitives.addresses import parse_address

ZONE = Zone(parse_address("10.0.2.2"), parse_address("10.0.2.3"), 24)


def look_up(
    name: str, rdtype: str = "A", zone: Zone = ZONE, now: float = 0.0
) -> dns.message.Message | None:
    """The zone's answer, read by dnspython and checked against the question."""
    query = dns.message.make_query(name, rdtype, use_edns=0)
    read = read_query(query.to_wire())
    own = zone.answer(read, now)
    assert zone.may_know(read) or own is None
    if own is None:
        return None
    assert own.outside is None
    wire = own.message(read)
    assert len(wire) <= 512
    message = dns.message.from_wire(wire)
    assert query.is_response(message)
    assert message.flags & dns.flags.AA
    assert message.flags & dns.flags.RA
    assert message.edns == 0
    return message


def records(name: str, rdtype: str = "A", zone: Zone = ZONE, now: float = 0.0) -> list[str]:
    message = look_up(name, rdtype, zone, now)
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
    assert ZONE.answer(read_query(query.to_wire()), 0.0) is None


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


# Names of the user's own


def record_of(name: str, kind: str, *data: str, ttl: int = 60) -> Record:
    table = {"name": name, "type": kind, "data": list(data), "ttl": ttl}
    return read_records([table])[0]


def zone_of(*own: Record, domain: str = "internal") -> Zone:
    gateway, nameserver = parse_address("10.0.2.2"), parse_address("10.0.2.3")
    return Zone(gateway, nameserver, 24, dns.name.from_text(domain), own)


USERS = zone_of(
    record_of("web", "A", "192.168.1.5", "192.168.1.6", ttl=7),
    record_of("web", "AAAA", "fd00::5"),
    record_of("deep.down.internal", "TXT", "here"),
    record_of("www.example.com", "A", "192.168.1.7"),
    record_of("_sip._tcp.example.com", "SRV", "0 5 5060 web"),
    record_of("alias", "CNAME", "web"),
    record_of("out.example.com", "CNAME", "www.elsewhere.test"),
    record_of("given.example.com", "A", "192.168.1.8"),
    record_of("8.1.168.192.in-addr.arpa", "PTR", "another.example.com"),
    record_of("*.wild.test", "A", "192.168.1.9"),
    record_of("*.wild.test", "TXT", "any"),
    record_of("exact.wild.test", "A", "192.168.1.10"),
    record_of("below.empty.wild.test", "A", "192.168.1.11"),
    record_of("*.sub.wild.test", "CNAME", "exact.wild.test"),
)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("web.internal", "A", ["192.168.1.5", "192.168.1.6"]),
        ("WEB.internal", "AAAA", ["fd00::5"]),
        ("deep.down.internal", "TXT", ['"here"']),
        ("www.example.com", "A", ["192.168.1.7"]),
        ("_sip._tcp.example.com", "SRV", ["0 5 5060 web.internal."]),
        ("alias.internal", "A", ["web.internal.", "192.168.1.5", "192.168.1.6"]),
        ("alias.internal", "CNAME", ["web.internal."]),
        ("a.wild.test", "A", ["192.168.1.9"]),
        ("a.b.c.wild.test", "TXT", ['"any"']),
        ("exact.wild.test", "A", ["192.168.1.10"]),
        ("a.sub.wild.test", "A", ["exact.wild.test.", "192.168.1.10"]),
        ("*.wild.test", "A", ["192.168.1.9"]),
    ],
)
def test_names_of_the_user_are_answered(name: str, kind: str, expected: list[str]) -> None:
    """In the network's domain or anywhere else, by themselves, by alias or by wildcard."""
    message = look_up(name, kind, USERS)
    assert message is not None
    assert message.rcode() == dns.rcode.NOERROR
    assert message.answer[0].name == dns.name.from_text(name)
    assert [item.to_text() for rrset in message.answer for item in rrset] == expected


@pytest.mark.parametrize(
    ("name", "kind", "rcode"),
    [
        ("www.example.com", "MX", dns.rcode.NOERROR),
        ("web.internal", "TXT", dns.rcode.NOERROR),
        ("down.internal", "A", dns.rcode.NOERROR),
        ("other.internal", "A", dns.rcode.NXDOMAIN),
        ("a.wild.test", "AAAA", dns.rcode.NOERROR),
        ("exact.wild.test", "TXT", dns.rcode.NOERROR),
    ],
)
def test_a_name_of_the_user_is_ours_with_all_its_types(name: str, kind: str, rcode: int) -> None:
    """What it does not have is absent, whatever the world says; what is above it exists."""
    message = look_up(name, kind, USERS)
    assert message is not None
    assert message.rcode() == rcode
    assert message.answer == []
    assert message.authority[0].rdtype == dns.rdatatype.SOA


@pytest.mark.parametrize(
    "name",
    [
        "example.com",
        "mail.example.com",
        "below.www.example.com",
        "wild.test",
        "empty.wild.test",
        "x.empty.wild.test",
        "x.exact.wild.test",
        "sub.wild.test",
    ],
)
def test_the_names_beside_are_asked_for_outside(name: str) -> None:
    """RFC 4592: a wildcard stands for nothing below a name that exists, though it be empty."""
    assert look_up(name, "A", USERS) is None


def test_ttls_are_the_user_s() -> None:
    """Each record lives as long as the file says."""
    message = look_up("web.internal", "A", USERS)
    assert message is not None
    assert message.answer[0].ttl == 7


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.168.1.5", ["web.internal."]),
        ("fd00::5", ["web.internal."]),
        ("192.168.1.8", ["another.example.com."]),
        ("10.0.2.2", ["gateway.internal."]),
    ],
)
def test_addresses_of_the_user_have_names(address: str, expected: list[str]) -> None:
    """A name of its own, unless the file gives it another."""
    assert records(reverse(address), "PTR", USERS) == expected


def test_a_wildcard_names_no_address() -> None:
    """It has no name of its own to give."""
    assert look_up(reverse("192.168.1.9"), "PTR", USERS) is None


def test_the_gateway_is_known_in_the_network_s_domain() -> None:
    """What guests search is where they find it; the names beside are the world's."""
    zone = zone_of(domain="lab.example.com")
    assert records("gateway.lab.example.com", zone=zone) == ["10.0.2.2"]
    assert records("dns.lab.example.com", zone=zone) == ["10.0.2.3"]
    assert records("host.internal", zone=zone) == ["10.0.2.2"]
    assert look_up("www.lab.example.com", zone=zone) is None


def test_an_alias_to_the_world_says_where_it_leads() -> None:
    """Somebody outside is to be asked for the rest."""
    query = read_query(dns.message.make_query("out.example.com", "A").to_wire())
    own = USERS.answer(query, 0.0)
    assert own is not None
    assert own.outside == dns.name.from_text("www.elsewhere.test")
    assert [rrset.to_text() for rrset in own.rrsets] == [
        "out.example.com. 60 IN CNAME www.elsewhere.test."
    ]


def test_a_wildcard_that_leads_to_itself_is_a_failure() -> None:
    """`*.loop.test` as an alias of `a.loop.test` never ends: SERVFAIL, and at once."""
    zone = zone_of(record_of("*.loop.test", "CNAME", "a.loop.test"))
    query = read_query(dns.message.make_query("b.loop.test", "A").to_wire())
    own = zone.answer(query, 0.0)
    assert own is not None
    assert own.rcode == dns.rcode.SERVFAIL


# Beside dnspython's own zone, and beside the words of RFC 4592

_labels = st.sampled_from(["a", "b", "*", "c"])
_owners = st.lists(_labels, min_size=1, max_size=4).map(lambda labels: ".".join([*labels, "test"]))
_contents = st.dictionaries(
    _owners, st.sampled_from([("A", "192.0.2.1"), ("TXT", "text"), ("AAAA", "fd00::1")]), max_size=6
)


def _stands_for(owners: set[dns.name.Name], name: dns.name.Name) -> dns.name.Name | None:
    """Whose records a name has (RFC 4592, 3.3.1): its own, or those at the closest encloser."""
    if name in owners:
        return name
    existing = {owner.split(n)[1] for owner in owners for n in range(1, len(owner) + 1)}
    if name in existing:
        return None
    encloser = next(
        above
        for n in range(len(name) - 1, 0, -1)
        if (above := name.split(n)[1]) in existing or n == 1
    )
    star = dns.name.from_text("*", encloser)
    return star if star in owners else None


@given(_contents, _owners, st.sampled_from(["A", "TXT"]))
def test_the_zone_answers_as_the_standards_say(
    contents: dict[str, tuple[str, str]], name: str, kind: str
) -> None:
    """Exact names as dnspython's zone has them, others by the closest encloser's wildcard."""
    zone = zone_of(*(record_of(owner, *what) for owner, what in contents.items()))
    text = "".join(f"{owner}. 60 IN {what[0]} {what[1]}\n" for owner, what in contents.items())
    oracle = dns.zone.from_text(text, ".", relativize=False, check_origin=False)
    source = _stands_for(set(oracle.nodes), dns.name.from_text(name))
    message = look_up(name, kind, zone)
    if source is None:
        assert message is None
        return
    assert message is not None
    rdataset = oracle.get_rdataset(source, kind)
    expected = set() if rdataset is None else {item.to_text() for item in rdataset}
    assert {item.to_text() for rrset in message.answer for item in rrset} == expected


# Guests


class Segment:
    """A zone, and who is there."""

    def __init__(self, *own: Record, domain: str = "internal") -> None:
        self.there: list[tuple[str, str]] = []
        self.zone = zone_of(*own, domain=domain)
        self.zone.guests = lambda now: [(parse_address(at), name) for at, name in self.there]
        self.now = 0.0

    def finds(self, name: str, kind: str = "A") -> list[str] | None:
        """What a guest hears a moment later; None where there is nothing of that name here."""
        self.now += LOOK_INTERVAL
        message = look_up(name, kind, self.zone, self.now)
        if message is None or message.rcode() == dns.rcode.NXDOMAIN:
            return None
        return [item.to_text() for rrset in message.answer for item in rrset]


def test_guests_find_each_other_by_name() -> None:
    """For as long as they have their addresses, and back from the address, too."""
    segment = Segment()
    assert segment.finds("web.internal") is None
    segment.there = [("10.0.2.15", "web"), ("10.0.2.16", "db")]
    assert segment.finds("web.internal") == ["10.0.2.15"]
    assert segment.finds("Db.Internal") == ["10.0.2.16"]
    assert segment.finds("web.internal", "AAAA") == []
    assert segment.finds(reverse("10.0.2.16"), "PTR") == ["db.internal."]
    segment.there = []
    assert segment.finds("web.internal") is None
    assert segment.finds(reverse("10.0.2.16"), "PTR") is None


def test_a_guest_takes_no_name_that_is_there() -> None:
    """The gateway's, the user's, another guest's: who has it keeps it, while he is there."""
    segment = Segment(record_of("db", "A", "192.168.1.5"))
    segment.there = [("10.0.2.15", "gateway"), ("10.0.2.16", "db"), ("10.0.2.17", "web")]
    assert segment.finds("gateway.internal") == ["10.0.2.2"]
    assert segment.finds(reverse("10.0.2.15"), "PTR") is None
    assert segment.finds("db.internal") == ["192.168.1.5"]
    assert segment.finds("web.internal") == ["10.0.2.17"]
    segment.there.insert(0, ("10.0.2.14", "web"))
    assert segment.finds("web.internal") == ["10.0.2.17"]
    assert segment.finds(reverse("10.0.2.14"), "PTR") is None
    del segment.there[-1]
    assert segment.finds("web.internal") == ["10.0.2.14"]


def test_guests_are_known_in_the_network_s_domain_only() -> None:
    """One label, below the domain: no guest is `pypi.org`, whatever it calls itself."""
    segment = Segment(domain="lab.example.com")
    segment.there = [("10.0.2.15", "web")]
    assert segment.finds("web.lab.example.com") == ["10.0.2.15"]
    assert segment.finds("web.internal") is None
    assert segment.finds("web") is None
    assert segment.finds("x.web.lab.example.com") is None


@pytest.mark.parametrize("domain", ["internal", "lab.example.com"])
def test_a_wildcard_stands_for_nothing_below_a_guest(domain: str) -> None:
    """RFC 4592, 2.2.1: a guest's name exists, so the wildcard ends where it begins."""
    segment = Segment(record_of(f"*.{domain}", "A", "192.0.2.9"), domain=domain)
    assert segment.finds(f"x.db.{domain}") == ["192.0.2.9"]
    segment.there = [("10.0.2.16", "db")]
    assert segment.finds(f"db.{domain}") == ["10.0.2.16"]
    assert segment.finds(f"x.db.{domain}") is None
    assert segment.finds(f"y.x.DB.{domain}") is None
    assert segment.finds(f"x.web.{domain}") == ["192.0.2.9"]
    segment.there = []
    assert segment.finds(f"x.db.{domain}") == ["192.0.2.9"]


def test_who_keeps_a_name_keeps_it_however_others_come_and_go() -> None:
    """Of two that call themselves alike the first has the name, until he goes or changes it."""
    segment = Segment()
    segment.there = [("10.0.2.15", "web"), ("10.0.2.16", "web"), ("10.0.2.17", "db")]
    assert segment.finds("web.internal") == ["10.0.2.15"]
    segment.there = [("10.0.2.16", "web"), ("10.0.2.15", "web")]
    assert segment.finds("web.internal") == ["10.0.2.15"]
    segment.there = [("10.0.2.16", "web"), ("10.0.2.15", "cache")]
    assert segment.finds("web.internal") == ["10.0.2.16"]
    assert segment.finds("cache.internal") == ["10.0.2.15"]
    assert segment.finds("db.internal") is None


def test_guests_that_stay_are_read_once() -> None:
    """Thousands of names are no work again while nobody comes, goes or changes."""

    class Label(str):
        read = 0

        def encode(self, *args: str) -> bytes:
            Label.read += 1
            return super().encode(*args)

    there = [(parse_address("10.0.2.15"), Label("web")), (parse_address("10.0.2.16"), Label("db"))]
    zone = zone_of()
    zone.guests = lambda now: there
    for n in range(10):
        assert records("web.internal", zone=zone, now=float(n)) == ["10.0.2.15"]
    assert Label.read == 2
    there = [*there, (parse_address("10.0.2.17"), Label("new"))]
    assert records("new.internal", zone=zone, now=20.0) == ["10.0.2.17"]
    assert Label.read == 3


def test_thousands_of_guests_are_not_looked_through_for_each_question() -> None:
    """A flood of questions for names costs few looks at the leases."""
    looks: list[float] = []

    def look(now: float) -> list[tuple[bytes, str]]:
        looks.append(now)
        return []

    zone = zone_of()
    zone.guests = look
    for n in range(1000):
        look_up(f"n{n}.internal", zone=zone, now=n / 1000)
    assert len(looks) <= 11
