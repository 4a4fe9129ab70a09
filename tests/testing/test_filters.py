"""Filters mean what they say, and whatever cannot be meant is refused when it is written."""

import struct
from collections.abc import Callable
from typing import Any

import dns.message
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.testing import filters
from qemu_usernat.testing.filters import (
    Filter,
    anything,
    arp,
    dhcp,
    eth,
    from_guest,
    guest,
    icmp,
    ip,
    length,
    malformed,
    tcp,
    to_guest,
    udp,
    unknown,
)
from qemu_usernat.testing.filters import (
    dns as dns_,
)
from qemu_usernat.testing.frames import Frame
from qemu_usernat.wire.packets import ACK, SYN
from tests.scripted_guest import GATEWAY_MAC, GUEST, GUEST_MAC, SERVER, ethernet, ipv4
from tests.testing.sample_frames import (
    FRAMES,
    arp_frame,
    numbered,
    ping_frame,
    seen,
    tcp_frame,
    udp_frame,
)

SAMPLES = st.builds(lambda octets, way: seen(octets, from_guest=way), FRAMES, st.booleans())

LEAVES: list[Filter] = [
    tcp, udp, arp, icmp, ip, dns_, dhcp, malformed, unknown, from_guest, to_guest, anything,
    tcp.port == 443, tcp.port != 443, tcp.source_port < 1024, tcp.destination_port.one_of(80, 443),
    tcp.syn, tcp.ack, tcp.payload.contains(b"GET"), udp.port >= 80, ip.source == GUEST,
    ip.address.within("203.0.113.0/24"), icmp.type == 8, length > 100, eth.type == 0x0806,
]  # fmt: skip

EXPRESSIONS = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a: ~a, inner),
    ),
    max_leaves=6,
)


def dns_frame(*, answers: bool = False) -> bytes:
    query = dns.message.make_query("Www.Example.com", "AAAA", id=7)
    message = dns.message.make_response(query) if answers else query
    if answers:
        message.set_rcode(dns.rcode.NXDOMAIN)
    return udp_frame(message.to_wire(), 53)


# -- what they mean


@pytest.mark.parametrize(
    ("which", "meant", "not_meant"),
    [
        (tcp, tcp_frame(), udp_frame()),
        (tcp.port == 443, tcp_frame(dport=443), tcp_frame(dport=80)),
        (tcp.port == 443, tcp_frame(sport=443, dport=1), udp_frame(dport=443)),
        (tcp.port != 443, tcp_frame(dport=80), udp_frame(dport=80)),
        (tcp.port != 443, tcp_frame(dport=80), tcp_frame(dport=443)),
        (tcp.source_port == 40000, tcp_frame(), tcp_frame(sport=443)),
        (tcp.destination_port <= 443, tcp_frame(), tcp_frame(dport=444)),
        (tcp.syn & ~tcp.ack, tcp_frame(), tcp_frame(flags=SYN | ACK)),
        (tcp.fin | tcp.rst | tcp.psh, tcp_frame(flags=8), tcp_frame()),
        (tcp.payload == b"GET", tcp_frame(payload=b"GET"), tcp_frame(payload=b"GET /")),
        (tcp.payload.contains(b"word"), tcp_frame(payload=b"a word"), udp_frame(b"a word")),
        (udp.port.one_of(9, 10), udp_frame(), udp_frame(dport=53)),
        (ip.source == GUEST, udp_frame(), arp_frame()),
        (ip.address.within("198.51.100.0/24"), udp_frame(), ping_frame()),
        (ip.destination == SERVER, udp_frame(), ping_frame()),
        (icmp.type == 8, ping_frame(), udp_frame()),
        (arp, arp_frame(), udp_frame()),
        (eth.source == "52-54-00-12-34-56", udp_frame(), bytes(60)),
        (length > 60, udp_frame(bytes(60)), udp_frame(b"")),
        (dns_.name == "www.example.com.", dns_frame(), udp_frame()),
        (dns_.name.under("example.COM"), dns_frame(answers=True), udp_frame(b"junk", 53)),
        (dns_.type == "aaaa", dns_frame(), udp_frame(dport=53)),
        (dns_.rcode == "NXDOMAIN", dns_frame(answers=True), dns_frame()),
        (dns_.query, dns_frame(), dns_frame(answers=True)),
        (dns_.answer, dns_frame(answers=True), dns_frame()),
        (unknown, numbered(1), udp_frame()),
        (unknown & ~malformed, ethernet(ipv4(GUEST, SERVER, 2, bytes(8)), GUEST_MAC), udp_frame()),
        (malformed, tcp_frame()[:-1] + b"\1", tcp_frame()),
    ],
    ids=repr,
)
def test_what_is_meant(which: Filter, meant: bytes, not_meant: bytes) -> None:
    """A filter takes the frames that a reader of it would take, and no others."""
    assert which.matches(seen(meant))
    assert not which.matches(seen(not_meant))


def test_directions_and_guests() -> None:
    """Which way, and whose wire, is a part of what may be asked."""
    frame = Frame(udp_frame(), 0.0, from_guest=False, guest="two")
    assert (to_guest & (guest == "two")).matches(frame)
    assert not from_guest.matches(frame)


def test_a_fragment_has_no_ports() -> None:
    """What a part of a packet carries is not guessed at, and it is not broken."""
    fragment = seen(ethernet(ipv4(GUEST, SERVER, 17, bytes(64), fragment=3), GUEST_MAC))
    assert ip.fragment.matches(fragment)
    assert not (udp | malformed).matches(fragment)


# -- laws


@given(EXPRESSIONS, EXPRESSIONS, SAMPLES)
def test_de_morgan(left: Filter, right: Filter, frame: Frame) -> None:
    """Not both is either not; not either is both not; not not is."""
    assert (~(left & right)).matches(frame) == (~left | ~right).matches(frame)
    assert (~(left | right)).matches(frame) == (~left & ~right).matches(frame)
    assert (~~left).matches(frame) == left.matches(frame)


@given(EXPRESSIONS, SAMPLES)
def test_its_repr_is_the_expression(which: Filter, frame: Frame) -> None:
    """What a failure shows can be written into the next test as it stands."""
    again = eval(repr(which), vars(filters).copy())
    assert repr(again) == repr(which)
    assert again.matches(frame) == which.matches(frame)


@given(EXPRESSIONS, SAMPLES)
def test_whatever_matches_is_nearest(which: Filter, frame: Frame) -> None:
    """Nearness is from 0 to 1, and 1 is reached by those that match."""
    assert 0 <= which.nearness(frame) <= 1
    assert (which.nearness(frame) == 1) == which.matches(frame)


def plain_ports(octets: bytes, protocol: int) -> tuple[int, int] | None:
    """The ports of a well-made frame, by struct."""
    if len(octets) < 38 or octets[12:14] != b"\x08\0" or octets[23] != protocol:
        return None
    return struct.unpack(">HH", octets[34:38])


@given(SAMPLES.filter(lambda frame: not malformed.matches(frame)), st.sampled_from([53, 80, 443]))
def test_ports_agree_with_a_plain_reading(frame: Frame, port: int) -> None:
    """Fifteen lines of struct say the same of every frame that is not broken."""
    for protocol, which in ((6, tcp), (17, udp)):
        ports = plain_ports(frame.octets, protocol)
        assert which.matches(frame) == (ports is not None)
        assert (which.port == port).matches(frame) == (ports is not None and port in ports)
        assert (which.source_port == port).matches(frame) == (
            ports is not None and ports[0] == port
        )
        assert (which.port != port).matches(frame) == (ports is not None and port not in ports)


@given(st.binary(max_size=120), st.booleans())
def test_no_frame_makes_it_stumble(octets: bytes, broken: bool) -> None:
    """Whatever a guest sends has a repr, and an answer to every question."""
    frame = seen(octets if broken else GATEWAY_MAC + GUEST_MAC + b"\x08\0" + octets)
    assert repr(frame)
    for which in LEAVES:
        assert which.matches(frame) in (True, False)


# -- mistakes


@pytest.mark.parametrize(
    "write",
    [
        lambda: bool(tcp.syn),
        lambda: tcp.syn and tcp.ack,  # type: ignore[redundant-expr]
        lambda: not tcp.syn,
        lambda: 1 < tcp.port < 5,
    ],
)
def test_and_is_not_for_filters(write: Callable[[], Any]) -> None:
    """`and` would throw away one side without a word; the error says what to write."""
    with pytest.raises(TypeError, match="with & for `and`"):
        write()


@pytest.mark.parametrize(
    "write",
    [
        lambda: from_guest & tcp.port == 443,
        lambda: tcp.port == 443 & from_guest,
        lambda: tcp.port | from_guest,
        lambda: from_guest & True,  # type: ignore[operator]
    ],
)
def test_a_comparison_wants_parentheses(write: Callable[[], Any]) -> None:
    """& binds more tightly than ==, as everybody forgets."""
    with pytest.raises(TypeError, match="put parentheses around each comparison"):
        write()


@pytest.mark.parametrize(
    ("write", "error", "words"),
    [
        (
            lambda: tcp.port == "443",
            TypeError,
            "tcp.port is '443'; allowed: a number from 0 to 65535",
        ),
        (lambda: tcp.port == True, TypeError, "True; allowed: a number"),  # noqa: E712
        (lambda: tcp.port == 70000, ValueError, "tcp.port is 70000; allowed: a number from 0"),
        (
            lambda: ip.source == "10.0.2.300",
            ValueError,
            "ip.source is .10.0.2.300.; allowed: an address",
        ),
        (lambda: ip.source == 10, TypeError, "ip.source is 10; allowed: an address"),
        (lambda: ip.address.within("10.0.2.15/24"), ValueError, "ip.address.within.*host bits"),
        (lambda: eth.source == "52:54", ValueError, "eth.source is .52:54.; allowed: a MAC"),
        (lambda: dns_.type == "AAAAA", ValueError, "allowed: a type of DNS records"),
        (lambda: dns_.rcode == "NXDOMAN", ValueError, "allowed: a response code"),
        (lambda: tcp.payload == "GET", TypeError, "tcp.payload is .GET.; allowed: bytes"),
        (lambda: tcp.payload.contains(b""), ValueError, "every frame does"),
        (lambda: dns_.name.under(""), ValueError, "dns.name is ''; allowed: a domain name"),
        (lambda: dns_.name == "http://a.example/", ValueError, "allowed: a domain name alone"),
        (lambda: tcp.port.one_of(), ValueError, "at least one value"),
        (lambda: bool(tcp.port), TypeError, "tcp.port has no truth of its own"),
    ],
)
def test_what_no_frame_could_meet_is_refused(
    write: Callable[[], Any], error: type[Exception], words: str
) -> None:
    """A test with such a filter could not fail; it is told when it is written, by name."""
    with pytest.raises(error, match=words):
        write()
