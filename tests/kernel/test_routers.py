"""Ping, traceroute and path MTU through three real routers, with the tools that people use."""

import errno
import re
import shlex
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

import pytest
from attrs import frozen

from qemu_usernat.testing import tap
from qemu_usernat.testing.namespace import NamespaceGuest, connect_unix
from tests.kernel.laboratory import ServerProcess, carry, some_octets
from tests.kernel.routers import (
    BLACK_HOLE,
    HOST,
    NARROW,
    NEIGHBOUR,
    NO_HOST,
    NO_NETWORK,
    PROHIBITED,
    ROUTERS,
    SITE,
    Internetwork,
    Kernel,
    internetwork,
)
from tests.test_documents import ALLOW_PINGS
from tests.tshark import complaints, fields

pytestmark = pytest.mark.kernel

GATEWAY = "10.0.2.2"
HOPS = [GATEWAY, *ROUTERS, SITE]

NOT_RAW = ("setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw", "--")
KINDS: dict[str, tuple[int | None, tuple[str, ...]]] = {
    "datagram": (0, NOT_RAW),
    "raw": (None, ()),
    "neither": (None, NOT_RAW),
}
"""ICMP sockets: the group that may open datagram ones, and how the server is run."""

ETH_P_ALL, PACKET_OUTGOING = 3, 4  # linux/if_ether.h, linux/if_packet.h
IP_RECVERR, MSG_ERRQUEUE = 11, 0x2000  # linux/in.h, linux/socket.h
IP_MTU_DISCOVER, PMTUDISC_DO = 10, 2
ECHO = struct.Struct(">BBHHH")


@frozen
class Room:
    """A guest, its server, and the internet behind it."""

    net: Internetwork
    server: ServerProcess
    guest: NamespaceGuest

    def ask(self, words: str) -> str:
        """What a program in the guest says, however it ends."""
        done = subprocess.run(
            self.guest.command(words.split()),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def room_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Room]]:
    """A room for each kind of ICMP socket, made when it is asked for first."""
    for tool in ("nft", "ping", "setpriv", "traceroute", "tracepath"):
        assert shutil.which(tool), f"{tool} is missing: scripts/setup installs it"
    with ExitStack() as ends:
        net = ends.enter_context(internetwork())

        @cache
        def room(kind: str) -> Room:
            prefix = tuple(net.host.command(KINDS[kind][1]))
            server = ServerProcess(tmp_path_factory.mktemp(kind), 65520, prefix=prefix)
            server.start()
            ends.callback(server.end)
            guest = ends.enter_context(NamespaceGuest(connect_unix(server.path)))
            return Room(net, server, guest)

        def room_allowed(kind: str) -> Room:
            net.allow_pings(KINDS[kind][0])
            return room(kind)

        yield room_allowed


@pytest.fixture
def room(room_of: Callable[[str], Room]) -> Room:
    return room_of("datagram")


# -- ping


@pytest.mark.parametrize("size", [0, 56, 1000, 1400, 8000, 65507])
@pytest.mark.parametrize("kind", ["datagram", "raw"])
def test_ping(room_of: Callable[[str], Room], kind: str, size: int) -> None:
    """Every octet comes back, at every size; ping(8) itself looks at each."""
    said = room_of(kind).ask(f"ping -n -c 2 -i 0.01 -W 5 -M dont -s {size} {SITE}")
    assert "2 received" in said
    assert "wrong data" not in said
    assert said.count(f"{size + 8} bytes from {SITE}: icmp_seq=") == 2
    assert "DUP" not in said


@pytest.mark.parametrize("kind", ["datagram", "raw"])
def test_identifier_sequence_and_payload_are_exact(
    room_of: Callable[[str], Room], kind: str
) -> None:
    """Though Linux sends under an identifier of its own; two guests' programs may have the same."""
    room = room_of(kind)
    with room.guest.open_socket(socket.SOCK_RAW, socket.IPPROTO_ICMP) as ours:
        for identifier, sequence in ((0, 0), (1, 0xFFFF), (0xFFFF, 1), (4711, 2)):
            payload = some_octets(99)
            ours.sendto(_echo(8, identifier, sequence, payload), (SITE, 0))
            packet, (source, _) = ours.recvfrom(65535)
            assert (source, packet[20:]) == (SITE, _echo(0, identifier, sequence, payload))


def _ones_complement(octets: bytes) -> int:
    words = struct.unpack(f">{(len(octets) + 1) // 2}H", octets + b"\0" * (len(octets) % 2))
    return int(-sum(words) % 0xFFFF)


@pytest.mark.parametrize("kind", ["datagram", "raw"])
def test_hops_are_counted_back(room_of: Callable[[str], Room], kind: str) -> None:
    """The site's 64, less three routers, less ourselves."""
    assert " ttl=60 " in room_of(kind).ask(f"ping -n -c 1 -W 5 {SITE}")


def test_many_pings_at_once(room: Room) -> None:
    """A flood, and eight programs side by side: each gets its own answers, all of them."""
    said = room.ask(f"ping -n -q -f -c 500 -W 5 {SITE}")
    assert "500 received" in said
    programs = [
        subprocess.Popen(
            room.guest.command(f"ping -n -q -c 20 -i 0.01 -W 5 {SITE}".split()),
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    for program in programs:
        assert "20 received, 0% packet loss" in program.communicate(timeout=30)[0]
    assert room.server.report()["icmp.unsolicited"] == 0


@pytest.mark.parametrize("kind", ["datagram", "raw"])
def test_two_guests_under_the_same_identifier(room_of: Callable[[str], Room], kind: str) -> None:
    """Each hears its own answers, and no other's."""
    room = room_of(kind)
    ask = f"ping -n -e 77 -c 20 -i 0.01 -W 5 {SITE}".split()
    with NamespaceGuest(connect_unix(room.server.path), address="10.0.2.99/24") as other:
        programs = [
            subprocess.Popen(guest.command(ask), stdout=subprocess.PIPE, text=True)
            for guest in (room.guest, other)
        ]
        for program in programs:
            said = program.communicate(timeout=30)[0]
            assert "20 received" in said, said
            assert "DUP" not in said, said


@pytest.mark.parametrize("kind", ["datagram", "raw"])
def test_only_an_answer_is_passed_on(room_of: Callable[[str], Room], kind: str) -> None:
    """Not what is damaged, too short, of another sequence number, or a request in its turn."""
    room = room_of(kind)
    site, icmp = room.net.site, socket.IPPROTO_ICMP
    site.sysctl(icmp_echo_ignore_all="1")
    with (
        site.open_socket(socket.SOCK_RAW, icmp) as theirs,
        room.guest.open_socket(socket.SOCK_RAW, icmp) as ours,
    ):
        ours.sendto(_echo(8, 4711, 7, b"anybody?"), (SITE, 0))
        # Both hear all ICMP of their machine, perhaps of the test before.
        packet = b""
        while not packet.endswith(b"anybody?"):
            packet, peer = theirs.recvfrom(1000)
        _, _, _, identifier, sequence = ECHO.unpack_from(packet, 20)
        good = _echo(0, identifier, sequence, b"the answer")
        for said in (
            good[:-1] + b"!",
            good[:6],
            _echo(0, identifier, sequence + 1, b"to nothing"),
            _echo(8, identifier, sequence, b"a question"),
            good,
        ):
            theirs.sendto(said, peer)
        packet = _heard_by(4711, ours)
        assert packet[20:] == _echo(0, 4711, 7, b"the answer")
        ours.settimeout(0)
        with pytest.raises(BlockingIOError):
            _heard_by(4711, ours)
    site.sysctl(icmp_echo_ignore_all="0")


def _heard_by(identifier: int, sock: socket.socket) -> bytes:
    """The next packet for who pings under that identifier; an error that quotes it is none."""
    while True:
        packet, _ = sock.recvfrom(1000)
        if len(packet) >= 28 and ECHO.unpack_from(packet, 20)[3] == identifier:
            return packet


def _echo(kind: int, identifier: int, sequence: int, payload: bytes) -> bytes:
    message = ECHO.pack(kind, 0, 0, identifier, sequence) + payload
    return ECHO.pack(kind, 0, _ones_complement(message), identifier, sequence) + payload


def test_without_any_icmp_socket_nothing_is_silent(room_of: Callable[[str], Room]) -> None:
    """The person who starts the server reads what to enable, the guest hears of it at once."""
    room = room_of("neither")
    assert "From 10.0.2.2 icmp_seq=1 Packet filtered" in room.ask(f"ping -n -c 1 -W 5 {SITE}")
    words = room.server.words()
    assert "net.ipv4.ping_group_range" in words
    assert "CAP_NET_RAW" in words
    assert "Packet filtered" not in room.ask(f"ping -n -c 1 -W 5 {GATEWAY}")


def test_what_the_notice_says_helps_at_once(room_of: Callable[[str], Room]) -> None:
    """The command that it gives, as the README has it; nothing is to be started again."""
    room = room_of("neither")
    assert ALLOW_PINGS in room.server.words()
    room.net.host.run(*shlex.split(ALLOW_PINGS))
    assert "1 received" in room.ask(f"ping -n -c 1 -W 5 {SITE}")


@pytest.mark.parametrize("kind", ["datagram", "raw"])
def test_with_an_icmp_socket_there_is_no_notice(room_of: Callable[[str], Room], kind: str) -> None:
    """Whoever can ping is not told how to."""
    assert "ping_group_range" not in room_of(kind).server.words()


# -- guests, as the world sees them


def test_two_guests_meet_at_the_host_s_address(room: Room) -> None:
    """Hairpinning (RFC 4787, REQ-9): each reaches the other where the world would."""
    with (
        NamespaceGuest(connect_unix(room.server.path), address="10.0.2.99/24") as other,
        room.guest.open_socket(socket.SOCK_DGRAM) as one,
        other.open_socket(socket.SOCK_DGRAM) as two,
        room.net.site.open_socket(socket.SOCK_DGRAM) as rendezvous,
    ):
        rendezvous.bind(("", 0))
        outside = {}
        for each in (one, two):
            each.sendto(b"?", (SITE, rendezvous.getsockname()[1]))
            outside[each] = rendezvous.recvfrom(10)[1]
        assert {host for host, _ in outside.values()} == {HOST}
        two.sendto(b"opens its filter", outside[one])
        two.sendto(b"and that has passed", (SITE, rendezvous.getsockname()[1]))
        rendezvous.recvfrom(100)
        one.sendto(b"hello", outside[two])
        assert two.recvfrom(100) == (b"hello", outside[one])
        two.sendto(b"hello yourself", outside[one])
        while (heard := one.recvfrom(100))[0] == b"opens its filter":
            pass
        assert heard == (b"hello yourself", outside[two])


# -- who is on the way
#
# Three probes at once (-N 3): of errors beyond 50 in a row and 1,000 a second some are held back,
# by us and by these routers alike (RFC 1812, 4.3.2.8).


@pytest.mark.parametrize("kind", ["datagram", "raw"])
@pytest.mark.parametrize("form", ["", "-U", "-I", "-T -p 9"])
def test_traceroute(room_of: Callable[[str], Room], kind: str, form: str) -> None:
    """The gateway first, then every router by its own address, and the site at the end."""
    said = room_of(kind).ask(f"traceroute -n -N 3 -q 1 -w 5 {form} {SITE}")
    assert re.findall(r"^ *\d+  (\S+)", said, re.M) == HOPS, said


def test_traceroute_of_a_place_that_is_nowhere(room: Room) -> None:
    """As far as it goes, and what the last router says of it: nobody pretends to be the site."""
    for place, last in ((NO_HOST, "!H"), (PROHIBITED, "!X")):
        for form in ("-I", "-U", "-T"):
            said = room.ask(f"traceroute -n -N 3 -q 1 -w 5 {form} {place}")
            hops = re.findall(r"^ *\d+  (\S+)", said, re.M)
            assert hops == [*HOPS[:3], ROUTERS[1]], said
            assert said.rstrip().endswith(last), said


def test_tracepath(room: Room) -> None:
    """It finds where the way gets narrow, and by the hops left of each answer the way back."""
    said = room.ask(f"tracepath -n {SITE}")
    assert list(dict.fromkeys(re.findall(r"^ *\d+:  (\S+)", said, re.M))) == HOPS, said
    assert f"Resume: pmtu {NARROW} hops 5 back 5" in said, said
    assert "asymm" not in said, said


# -- errors


@pytest.mark.parametrize(
    ("place", "router", "said"),
    [
        (NO_HOST, ROUTERS[1], "Destination Host Unreachable"),
        (PROHIBITED, ROUTERS[1], "Packet filtered"),
        (NO_NETWORK, ROUTERS[0], "Destination Net Unreachable"),
    ],
)
@pytest.mark.parametrize("kind", ["datagram", "raw"])
def test_a_ping_that_a_router_refuses(
    room_of: Callable[[str], Room], kind: str, place: str, router: str, said: str
) -> None:
    """The guest hears which router it was, and what it said."""
    assert f"From {router} icmp_seq=1 {said}" in room_of(kind).ask(f"ping -n -c 1 -W 5 {place}")


@pytest.mark.parametrize("kind", ["datagram", "raw"])
def test_what_the_host_itself_finds_out_the_gateway_says(
    room_of: Callable[[str], Room], kind: str
) -> None:
    """A neighbour of the host that is not there; the guest does not learn the host's address."""
    said = room_of(kind).ask(f"ping -n -c 1 -W 5 {NEIGHBOUR}")
    assert f"From {GATEWAY} icmp_seq=1 Destination Host Unreachable" in said


def test_a_host_that_says_nothing_is_not_answered_for(room: Room) -> None:
    """Nobody forges an answer; and nobody else waits."""
    said = room.ask(f"ping -n -c 3 -i 0.1 -W 1 {BLACK_HOLE}")
    assert "0 received, 100% packet loss" in said
    assert "From" not in said


ERRORS = [
    pytest.param(NO_HOST, ROUTERS[1], 1, errno.EHOSTUNREACH, id="host unreachable"),
    pytest.param(PROHIBITED, ROUTERS[1], 13, errno.EHOSTUNREACH, id="prohibited"),
    pytest.param(NO_NETWORK, ROUTERS[0], 0, errno.ENETUNREACH, id="network unreachable"),
    pytest.param(SITE, SITE, 3, errno.ECONNREFUSED, id="port unreachable"),
]


@pytest.mark.parametrize(("place", "router", "code", "number"), ERRORS)
def test_what_is_said_against_a_datagram(
    room: Room, place: str, router: str, code: int, number: int
) -> None:
    """The guest's kernel gives the program the very error, from whom it is, about its own words."""
    with room.guest.open_socket(socket.SOCK_DGRAM) as ours:
        ours.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        ours.connect((place, 7))
        ours.send(b"is anybody there?")
        with pytest.raises(OSError, match=r"\[Errno \d+\]") as caught:
            ours.recv(100)
        assert caught.value.errno == number
        octets, ancillary, _, peer = ours.recvmsg(1000, 1000, MSG_ERRQUEUE)
    assert (octets, peer) == (b"is anybody there?", (place, 7))
    (detail,) = (detail for _, kind, detail in ancillary if kind == IP_RECVERR)
    _, origin, icmp_type, icmp_code = struct.unpack_from("=IBBB", detail)
    assert (origin, icmp_type, icmp_code) == (2, 3, code)
    assert socket.inet_ntoa(detail[20:24]) == router


@pytest.mark.parametrize(("place", "router", "code", "number"), ERRORS[:3])
def test_what_is_said_against_a_connection(
    room: Room, place: str, router: str, code: int, number: int
) -> None:
    """connect(2) fails at once, with the router's own words."""
    with room.guest.open_socket(socket.SOCK_RAW, socket.IPPROTO_ICMP) as watch:
        with pytest.raises(OSError, match=r"\[Errno \d+\]") as caught:
            room.guest.connect((place, 80))
        assert caught.value.errno == number
        packet, (source, _) = watch.recvfrom(1000)
    assert (source, packet[20], packet[21]) == (router, 3, code)
    quoted = packet[28:]
    assert (quoted[9], quoted[16:20]) == (6, socket.inet_aton(place))
    assert struct.unpack_from(">H", quoted, 22) == (80,)


def test_a_refused_port_is_a_reset(room: Room) -> None:
    """And no ICMP."""
    with pytest.raises(ConnectionRefusedError):
        room.guest.connect((SITE, 81))


# -- the narrow link


def test_ping_that_may_not_be_cut_is_told_how_much_fits(room_of: Callable[[str], Room]) -> None:
    """By the router before the narrow link; after that the guest's own kernel knows."""
    room = _with_no_memory(room_of("raw"))
    ask = f"ping -n -c 1 -W 5 -M do -s 1400 {SITE}"
    assert f"From {ROUTERS[1]} icmp_seq=1 Frag needed and DF set (mtu = {NARROW})" in room.ask(ask)
    assert f"message too long, mtu={NARROW}" in room.ask(ask)


@pytest.mark.parametrize("kind", ["datagram", "raw"])
def test_ping_that_is_too_large_for_the_host_s_own_link(
    room_of: Callable[[str], Room], kind: str
) -> None:
    """Then nobody but the gateway can say so."""
    room = _with_no_memory(room_of(kind))
    ask = f"ping -n -c 1 -W 5 -M do -s 2000 {SITE}"
    assert f"From {GATEWAY} icmp_seq=1 Frag needed and DF set (mtu = 1500)" in room.ask(ask)


def test_datagrams_learn_the_width_of_their_path(room: Room) -> None:
    """The first is too large, the program hears of it; the second gets there, in fragments."""
    room = _with_no_memory(room)
    octets = some_octets(5000)
    with _udp_echo(room.net.site, 2) as port, room.guest.open_socket(socket.SOCK_DGRAM) as ours:
        ours.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DO)
        ours.connect((SITE, port))
        ours.send(octets[:1400])
        with pytest.raises(OSError, match="too long"):
            ours.recv(65535)
        with pytest.raises(OSError, match="too long"):
            ours.send(octets[:1400])
        ours.send(octets[: NARROW - 28])
        assert ours.recv(65535) == octets[: NARROW - 28]
        ours.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, 0)
        ours.send(octets)
        assert ours.recv(65535) == octets


def test_a_connection_over_the_narrow_link_needs_nothing_from_the_guest(room: Room) -> None:
    """The guest's segments are of 64 KiB, the link's of 1240 octets, and none of them asks it."""
    room = _with_no_memory(room)
    octets = some_octets(5 << 20)
    with room.net.site.open_socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        ours = room.guest.connect((SITE, listener.getsockname()[1]))
        theirs, _ = listener.accept()
        with ours, theirs:
            theirs.settimeout(30)
            carry(octets, ours, theirs)
            carry(octets, theirs, ours)
            assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) > 60_000


def _with_no_memory(room: Room) -> Room:
    """Nobody remembers how narrow the way was."""
    room.guest.run(["ip", "route", "flush", "cache"])
    room.net.host.run("ip", "route", "flush", "cache")
    return room


# -- a stranger's reading


def test_tshark_finds_nothing_wrong_in_a_session(room: Room, tmp_path: Path) -> None:
    """Of all that the guest heard and said: nothing malformed, no checksum wrong, no error."""
    room = _with_no_memory(room)
    with _frames_to(room.guest) as frames:
        for words in (
            f"ping -n -c 1 -W 5 -s 20000 {SITE}",
            f"ping -n -c 1 -W 5 -M do -s 1400 {SITE}",
            f"ping -n -c 1 -W 5 {PROHIBITED}",
            f"ping -n -c 1 -W 5 -s 9000 {GATEWAY}",
            f"traceroute -n -N 3 -q 1 -w 5 {SITE}",
            f"traceroute -n -N 3 -q 1 -w 5 -T -p 9 {NO_HOST}",
            f"tracepath -n {SITE}",
        ):
            room.ask(words)
        with _udp_echo(room.net.site, 1) as port, room.guest.open_socket(socket.SOCK_DGRAM) as ours:
            ours.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, 0)
            ours.sendto(bytes(30_000), (SITE, port))
            assert len(ours.recv(65535)) == 30_000
    said = fields(frames, tmp_path, "icmp.type", "icmp.code")
    kinds = {(kind.split(",")[0], code.split(",")[0]) for kind, code in said}  # then the quoted
    assert {("0", "0"), ("3", "4"), ("3", "13"), ("11", "0"), ("3", "3"), ("3", "1")} <= kinds
    assert complaints(frames, tmp_path) == []


@contextmanager
def _frames_to(guest: NamespaceGuest) -> Iterator[list[bytes]]:
    """The frames that its card hears meanwhile."""
    frames: list[bytes] = []
    with guest.inside():
        card = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    with card:
        card.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        card.bind((tap.DEVICE, ETH_P_ALL))
        yield frames
        card.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                frame, (_, _, way, *_) = card.recvfrom(1 << 16)
                if way != PACKET_OUTGOING:
                    frames.append(frame)


# -- servers at the site


@contextmanager
def _udp_echo(kernel: Kernel, answers: int) -> Iterator[int]:
    """Says back what it is told, at the port given, so many times."""
    with kernel.open_socket(socket.SOCK_DGRAM) as server:
        server.bind(("", 0))

        def serve() -> None:
            for _ in range(answers):
                octets, peer = server.recvfrom(65535)
                server.sendto(octets, peer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()
