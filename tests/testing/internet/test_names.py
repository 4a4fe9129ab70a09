"""Names that a test defines, as a guest asks for them at its gateway."""

from ipaddress import IPv4Network

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
import trio

from qemu_usernat.config.configuration import Config
from qemu_usernat.config.network import Network
from qemu_usernat.server import Server
from qemu_usernat.testing.internet import Internet
from qemu_usernat.testing.internet.names import Names
from tests.scripted_guest import NAMESERVER
from tests.testing.internet.room import ADDRESS, Guest, guest_with, jumping


@pytest.fixture
def internet() -> Internet:
    return Internet(seed=1)


async def ask(guest: Guest, name: str, record_type: str = "A") -> dns.message.Message:
    """The gateway's answer over UDP."""
    query = dns.message.make_query(name, record_type)
    await guest.sends(guest.says.datagram(5353, NAMESERVER, 53, query.to_wire()))
    answer = dns.message.from_wire((await guest.hears()).udp.payload)
    assert answer.id == query.id
    return answer


def data(answer: dns.message.Message) -> list[str]:
    return [item.to_text() for rrset in answer.answer for item in rrset]


@jumping
async def test_a_host_s_name_says_its_addresses_and_they_say_it(internet: Internet) -> None:
    """By itself, for every name and address that it has, and whatever the capitals."""
    internet.host("example.com", ADDRESS, "203.0.113.11", aliases=["www.example.com"])
    async with guest_with(internet) as guest:
        for name in ("example.com", "WWW.example.COM"):
            assert data(await ask(guest, name)) == [ADDRESS, "203.0.113.11"]
        for name in ("10.113.0.203.in-addr.arpa", "11.113.0.203.in-addr.arpa"):
            assert data(await ask(guest, name, "PTR")) == ["example.com."]
        assert (await ask(guest, "example.com")).flags & dns.flags.RA
        answer = await ask(guest, "example.com", "AAAA")
        assert (answer.rcode(), data(answer)) == (dns.rcode.NOERROR, [])
    internet.assert_nothing_unexpected()


@jumping
async def test_a_host_has_an_address_without_being_given_one(internet: Internet) -> None:
    """One that is nobody else's, the same in each run, and outside of the guests' own network."""
    internet.host("one.example", "198.18.0.1")
    two, three = internet.host("two.example"), internet.host(None)
    assert (two.addresses, three.addresses) == (("198.18.0.2",), ("198.18.0.3",))
    with pytest.raises(ValueError, match=r"name 'two\.example' is taken.*internet\.dns\("):
        internet.host("two.example")
    assert "two.example (198.18.0.2), 198.18.0.3 (198.18.0.3); 0 unexpected" in repr(internet)
    async with guest_with(internet) as guest:
        assert data(await ask(guest, "two.example")) == ["198.18.0.2"]
    other = Internet()
    server = Server(
        Config(network=Network(subnet=IPv4Network("198.18.0.0/24"))), make_world=other.make_world
    )
    server.close()
    assert other.host("one.example").addresses == ("198.18.1.0",)


@jumping
async def test_any_type_of_record(internet: Internet) -> None:
    """As a zone file writes it; a TXT record needs no quotes, whatever it is and however long."""
    internet.host("example.com", ADDRESS)
    internet.dns("example.com", "MX", "10 mail.example.com", "20 mx.example.net.")
    internet.dns("example.com", "TXT", "v=spf1 -all", 'a "quoted" ; word ü', "x" * 300)
    internet.dns("_sip._tcp.example.com", "SRV", "1 2 5060 sip.example.com")
    internet.dns("example.com", "AAAA", "2001:db8::1")
    async with guest_with(internet) as guest:
        assert data(await ask(guest, "example.com", "MX")) == [
            "10 mail.example.com.",
            "20 mx.example.net.",
        ]
        (texts,) = (await ask(guest, "example.com", "TXT")).answer
        assert [b"".join(text.strings) for text in texts] == [
            b"v=spf1 -all",
            'a "quoted" ; word ü'.encode(),
            b"x" * 300,
        ]
        assert data(await ask(guest, "_sip._tcp.example.com", "SRV")) == [
            "1 2 5060 sip.example.com."
        ]
        assert data(await ask(guest, "example.com", "AAAA")) == ["2001:db8::1"]
        everything = (await ask(guest, "example.com", "ANY")).answer
        assert sorted(dns.rdatatype.to_text(rrset.rdtype) for rrset in everything) == [
            "A", "AAAA", "MX", "TXT",
        ]  # fmt: skip
    internet.assert_nothing_unexpected()


@jumping
async def test_an_alias_is_followed(internet: Internet) -> None:
    """The answer has the CNAME and what it leads to; where that is nothing, this is noted."""
    internet.host("example.com", ADDRESS)
    internet.dns("www.example.com", "CNAME", "web.example.com")
    internet.dns("web.example.com", "CNAME", "example.com")
    internet.dns("loop.example.com", "CNAME", "loop.example.com")
    internet.dns("cdn.example.com", "CNAME", "edge.example.net")
    async with guest_with(internet) as guest:
        assert data(await ask(guest, "www.example.com")) == [
            "web.example.com.",
            "example.com.",
            ADDRESS,
        ]
        assert data(await ask(guest, "loop.example.com")) == ["loop.example.com."]
        assert data(await ask(guest, "cdn.example.com", "CNAME")) == ["edge.example.net."]
        assert internet.unexpected == []
        answer = await ask(guest, "cdn.example.com")
        assert (answer.rcode(), data(answer)) == (dns.rcode.NXDOMAIN, ["edge.example.net."])
    assert [note.destination for note in internet.unexpected] == ["edge.example.net"]


@jumping
async def test_a_name_that_nobody_defined_does_not_exist_and_is_noted(internet: Internet) -> None:
    """NXDOMAIN; what is above a defined name exists, but is noted all the same."""
    internet.host("a.b.example.com", ADDRESS)
    async with guest_with(internet) as guest:
        assert (await ask(guest, "example.com")).rcode() == dns.rcode.NOERROR
        assert [str(note) for note in internet.unexpected] == ["DNS query for example.com (A)"]
        internet.unexpected.clear()
        assert (await ask(guest, "nosuch.example")).rcode() == dns.rcode.NXDOMAIN
        assert (await ask(guest, "nosuch.example", "MX")).rcode() == dns.rcode.NXDOMAIN
    assert {note.host for note in internet.unexpected} == {"nosuch.example"}
    assert [str(note) for note in internet.unexpected] == [
        "DNS query for nosuch.example (A)",
        "DNS query for nosuch.example (MX)",
    ]
    with pytest.raises(AssertionError) as caught:
        internet.assert_nothing_unexpected()
    assert 'internet.host("nosuch.example")' in str(caught.value)
    assert 'internet.dns("nosuch.example", "MX", ...)' in str(caught.value)


@jumping
async def test_the_reverse_of_a_host_without_a_name_is_no_surprise(internet: Internet) -> None:
    """Tools ask for the name of whatever they meet; it has none, and that was meant."""
    internet.host(None, "203.0.113.9")
    async with guest_with(internet) as guest:
        answer = await ask(guest, "9.113.0.203.in-addr.arpa", "PTR")
        assert answer.rcode() == dns.rcode.NXDOMAIN
        internet.assert_nothing_unexpected()
        await ask(guest, "8.113.0.203.in-addr.arpa", "PTR")
    assert len(internet.unexpected) == 1


@jumping
async def test_names_fail_as_a_test_wishes(internet: Internet) -> None:
    """A response code, or silence, which the gateway makes SERVFAIL of after four seconds; a
    definition that comes later mends it."""
    internet.host("example.com", ADDRESS)
    async with guest_with(internet) as guest:
        internet.dns_fails("example.com")
        assert (await ask(guest, "example.com")).rcode() == dns.rcode.SERVFAIL
        internet.dns_fails("example.com", "REFUSED")
        assert (await ask(guest, "example.com")).rcode() == dns.rcode.REFUSED
        internet.dns_is_silent("example.com")
        started = trio.current_time()
        assert (await ask(guest, "example.com")).rcode() == dns.rcode.SERVFAIL
        assert trio.current_time() - started == pytest.approx(4)
        internet.dns("example.com", "A", "203.0.113.99")
        assert data(await ask(guest, "example.com")) == ["203.0.113.99"]
    internet.assert_nothing_unexpected()


@jumping
async def test_questions_are_noted_with_what_they_were_told(internet: Internet) -> None:
    """What a test of names asserts on; the gateway's own names are none of the internet's."""
    internet.host("example.com", ADDRESS)
    internet.dns_latency = 0.5
    async with guest_with(internet) as guest:
        started = trio.current_time()
        await ask(guest, "example.com")
        assert trio.current_time() - started == pytest.approx(0.5)
        await ask(guest, "nosuch.example", "TXT")
        await ask(guest, "gateway.internal")
    one, other = internet.dns_queries
    assert (one.name, one.type, one.transport, one.outcome) == (
        "example.com", "A", "udp", "NOERROR",
    )  # fmt: skip
    assert (one.answers, one.time) == ((ADDRESS,), started)
    assert (other.name, other.type, other.outcome) == ("nosuch.example", "TXT", "NXDOMAIN")
    assert other.answers == ()


@jumping
async def test_an_answer_too_long_for_a_datagram_comes_over_tcp(internet: Internet) -> None:
    """The guest is told that it is cut, asks the gateway over TCP, and gets it whole."""
    internet.dns("example.com", "TXT", *(f"{number}" * 100 for number in range(10, 30)))
    async with guest_with(internet) as guest:
        assert (await ask(guest, "example.com", "TXT")).flags & dns.flags.TC
        connection = await guest.connects(53, NAMESERVER)
        query = dns.message.make_query("example.com", "TXT").to_wire()
        await connection.send_all(len(query).to_bytes(2, "big") + query)
        length = int.from_bytes(await connection.receives(2), "big")
        answer = dns.message.from_wire(await connection.receives(length))
        assert len(data(answer)) == 20
        await connection.send_eof()
        await connection.receives_all()
    assert [query.transport for query in internet.dns_queries] == ["udp", "tcp"]


@jumping
async def test_a_name_server_of_the_guest_s_own_choice(internet: Internet) -> None:
    """8.8.8.8 knows what the gateway knows, over UDP and TCP; what is too long for a datagram it
    cuts, and says so."""
    internet.host("dns.google", "8.8.8.8").name_server()
    internet.host("example.com", ADDRESS)
    internet.dns("example.com", "TXT", *(f"{number}" * 100 for number in range(10, 14)))
    internet.dns_is_silent("silent.example")
    async with guest_with(internet) as guest:
        for maximum, flags in ((0, dns.flags.TC), (1232, 0)):
            for name, record_type in (("silent.example", "A"), ("example.com", "TXT")):
                query = dns.message.make_query(name, record_type, payload=maximum or None)
                await guest.sends(guest.says.datagram(5353, "8.8.8.8", 53, query.to_wire()))
            payload = (await guest.hears()).udp.payload
            answer = dns.message.from_wire(payload)
            assert (answer.id, answer.flags & dns.flags.TC) == (query.id, flags)
            assert len(payload) <= max(maximum, 512)
        connection = await guest.connects(53, "8.8.8.8")
        queries = [
            dns.message.make_query(name, record_type).to_wire()
            for name, record_type in (
                ("silent.example", "A"),
                ("example.com", "A"),
                ("example.com", "TXT"),
            )
        ]
        octets = b"".join(len(query).to_bytes(2, "big") + query for query in queries)
        await connection.send_all(octets[:40])
        await connection.send_all(octets[40:])
        for number in (1, 4):
            length = int.from_bytes(await connection.receives(2), "big")
            assert len(data(dns.message.from_wire(await connection.receives(length)))) == number
        await connection.send_eof()
        assert await connection.receives_all() == b""
    internet.assert_nothing_unexpected()


def test_names_of_addresses_of_either_family() -> None:
    """A and AAAA, and both have their reverse names; hosts with IPv6 come with a later issue."""
    names = Names([])
    names.define_address(("example.com",), ("203.0.113.10", "2001:db8::1"))
    for name, record_type, value in (
        ("example.com", "A", "203.0.113.10"),
        ("example.com", "AAAA", "2001:db8::1"),
        (f"1.{'0.' * 23}8.b.d.0.1.0.0.2.ip6.arpa", "PTR", "example.com."),
    ):
        answer = names.answer(dns.message.make_query(name, record_type).to_wire(), "", "udp", 0.0)
        assert answer is not None
        assert data(dns.message.from_wire(answer)) == [value]
    assert names.name_of(bytes.fromhex("20010db8000000000000000000000001")) == "example.com"


@jumping
async def test_an_address_known_by_name_only_is_told_by_it(internet: Internet) -> None:
    """A name that was defined without its host: the note of what was reached for has the name."""
    internet.dns("api.example.com", "A", "203.0.113.77")
    async with guest_with(internet) as guest:
        assert (await guest.connects(443, "203.0.113.77")).was_reset
    (note,) = internet.unexpected
    assert (note.name, note.host) == ("api.example.com", "api.example.com")
    with pytest.raises(AssertionError, match=r'internet\.host\("api\.example\.com", "203\.0\.113'):
        internet.assert_nothing_unexpected()


def test_mistakes_are_told_with_what_is_allowed(internet: Internet) -> None:
    """Each names what is wrong, and shows what is right."""
    with pytest.raises(ValueError, match="record_type is 'NOSUCH'; allowed: a type of DNS records"):
        internet.dns("example.com", "NOSUCH", "x")
    with pytest.raises(ValueError, match=r"no value is given for the MX record of 'example\.com'"):
        internet.dns("example.com", "MX")
    with pytest.raises(ValueError, match=r"value is '203\.0\.113\.999'; allowed: an IPv4 address"):
        internet.dns("example.com", "A", "203.0.113.999")
    with pytest.raises(ValueError, match=r"value is '203\.0\.113\.9'; allowed: an IPv6 address"):
        internet.dns("example.com", "AAAA", "203.0.113.9")
    with pytest.raises(ValueError, match=r"'mail' is no MX record .* like \"10 mail\.example"):
        internet.dns("example.com", "MX", "mail")
    with pytest.raises(ValueError, match=r"name is 'a\.\.b'"):
        internet.dns("a..b", "A", ADDRESS)
    with pytest.raises(ValueError, match="rcode is 'NOPE'; allowed: a response code"):
        internet.dns_fails("example.com", "NOPE")
    with pytest.raises(ValueError, match=r"name is 'x{64}'"):
        internet.host("x" * 64, ADDRESS)
    with pytest.raises(ValueError, match="dns_latency is -1"):
        internet.dns_latency = -1
