"""DNS over TCP at the name server's address: a connection to us that no socket carries."""

import dns.message
import dns.rcode
import pytest

from qemu_usernat.dns_service import ANSWERS_MAXIMUM
from qemu_usernat.gateway.dns import PATIENCE
from qemu_usernat.nat.tcp.guest_half import TIME_WAIT
from qemu_usernat.primitives.addresses import parse_address
from qemu_usernat.wire.packets import ACK, FIN, PSH, RST
from tests.scripted_guest import (
    NAMESERVER,
    ScriptedConnection,
    ScriptedGuest,
    ScriptedNetwork,
)

UPSTREAM = (parse_address("192.0.2.53"), 53)


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


def query(name: str, kind: str = "A", identifier: int = 7) -> bytes:
    return framed(dns.message.make_query(name, kind, id=identifier).to_wire())


def answers(octets: bytes) -> list[dns.message.Message]:
    found = []
    while octets:
        end = 2 + int.from_bytes(octets[:2], "big")
        found.append(dns.message.from_wire(octets[2:end]))
        octets = octets[end:]
    return found


@pytest.fixture
def network() -> ScriptedNetwork:
    return ScriptedNetwork(mtu=1500, dns=[UPSTREAM])


@pytest.fixture
def guest(network: ScriptedNetwork) -> ScriptedGuest:
    return network.guest()


@pytest.fixture
def connection(guest: ScriptedGuest) -> ScriptedConnection:
    return guest.connects(destination=NAMESERVER, dport=53)


def test_the_gateway_s_own_names_are_answered_over_tcp(connection: ScriptedConnection) -> None:
    """`dig +tcp gateway.internal` connects at once and is answered, without a socket."""
    guest = connection.guest
    guest.sends(connection.segment(ACK | PSH, query("gateway.internal")))
    (answer,) = answers(connection.reads())
    assert answer.answer[0].to_text() == "gateway.internal. 60 IN A 10.0.2.2"
    assert guest.network.host.servers == []


def test_a_query_in_pieces_is_a_query(connection: ScriptedConnection) -> None:
    """TCP keeps no boundaries: the length may come alone, and two queries together."""
    guest = connection.guest
    octets = query("gateway.internal", identifier=1) + query("dns.internal", identifier=2)
    for at in (slice(0, 1), slice(1, 2), slice(2, 10), slice(10, None)):
        guest.sends(connection.segment(ACK, octets[at]))
    assert [answer.id for answer in answers(connection.reads())] == [1, 2]


def test_a_later_answer_comes_later(connection: ScriptedConnection) -> None:
    """What an upstream must be asked does not keep the next question waiting."""
    guest, network = connection.guest, connection.guest.network
    guest.sends(connection.segment(ACK, query("example.org", identifier=1)))
    guest.sends(connection.segment(ACK, query("gateway.internal", identifier=2)))
    assert [answer.id for answer in answers(connection.reads())] == [2]
    ((upstream, transport, asked, token),) = network.resolvers.asked
    assert (upstream, transport) == (UPSTREAM, "tcp")
    reply = dns.message.make_response(dns.message.from_wire(asked))
    network.router.dns.on_answer(token, reply.to_wire(), network.now)
    network.end_turn()
    assert [answer.id for answer in answers(connection.reads())] == [1]


def test_a_question_after_a_pause_waits_like_any_other(connection: ScriptedConnection) -> None:
    """An hour of silence is not held against the upstream that is asked then."""
    guest, network = connection.guest, connection.guest.network
    network.advance(3600)
    guest.sends(connection.segment(ACK, query("example.org")))
    assert network.router.dns.deadline() == network.now + PATIENCE


def test_the_end_comes_after_the_last_answer(connection: ScriptedConnection) -> None:
    """A guest that asks and ends its direction gets its answer, and then our FIN."""
    guest, network = connection.guest, connection.guest.network
    guest.sends(connection.segment(ACK | FIN, query("gateway.internal")))
    (answer,) = answers(connection.reads())
    assert answer.rcode() == dns.rcode.NOERROR
    network.advance(TIME_WAIT)
    network.assert_nothing_left()


def test_a_broken_stream_ends_the_connection(connection: ScriptedConnection) -> None:
    """A length of zero is no DNS: we end it, in order, and forget it."""
    guest, network = connection.guest, connection.guest.network
    guest.sends(connection.segment(ACK, b"\0\0"))
    assert connection.reads() == b""
    guest.sends(connection.segment(ACK | FIN))
    network.advance(TIME_WAIT)
    network.assert_nothing_left()


def test_an_answer_to_a_guest_that_is_gone_is_nobody_s(connection: ScriptedConnection) -> None:
    """The connection is reset while an upstream thinks: its answer meets nothing."""
    guest, network = connection.guest, connection.guest.network
    guest.sends(connection.segment(ACK, query("example.org")))
    guest.sends(connection.segment(RST | ACK))
    guest.frames()
    ((_, _, asked, token),) = network.resolvers.asked
    reply = dns.message.make_response(dns.message.from_wire(asked))
    network.router.dns.on_answer(token, reply.to_wire(), network.now)
    network.end_turn()
    assert guest.hears() == []
    network.assert_nothing_left()


def test_a_guest_that_asks_and_does_not_read_has_its_bound(connection: ScriptedConnection) -> None:
    """Answers wait in bounded memory: beyond it queries are not taken, and the window closes."""
    guest, network = connection.guest, connection.guest.network
    question = query("gateway.internal") * 30
    asked = 0
    guest.sends(connection.segment(ACK, window=0))
    for _ in range(1000):
        guest.sends(connection.segment(ACK, question, window=0))
        asked += 30
        window = guest.hears()[-1].tcp.window
        if window < len(question):
            break
    assert window < len(question)
    (flow,) = network.router.connections.flows.values()
    assert flow.receiver.queued > 100_000
    assert len(flow.host._answers) < ANSWERS_MAXIMUM + 100_000  # type: ignore[attr-defined]
    read = b""
    for _ in range(1000):
        read += connection.reads()
        if len(answers_in(read)) >= asked:
            break
    assert len(answers(read)) == asked


def answers_in(octets: bytes) -> list[int]:
    """Where whole answers begin."""
    at, starts = 0, []
    while at + 2 <= len(octets) and at + 2 + int.from_bytes(octets[at : at + 2], "big") <= len(
        octets
    ):
        starts.append(at)
        at += 2 + int.from_bytes(octets[at : at + 2], "big")
    return starts
