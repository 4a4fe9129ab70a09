"""How losses are repaired: by the server's own count, by the guest's, and beside two kernels.

That the octets arrive says little: a sender that waits for its timer each time brings them, too.
"""

import socket
import struct

import pytest

from tests.kernel.conditions import DOWN, LOSS, REORDERED, REPEATED, UP, WAYS, WHOLE, Condition
from tests.kernel.laboratory import MIB, Connection, Laboratory, ServerProcess, carry, some_octets

pytestmark = pytest.mark.kernel

HARMLESS = {
    "tcp.tail_probe",
    "tcp.retransmitted",
    "tcp.repeated_needlessly",
    "tcp.window_probe",
}
"""What a machine that is busy elsewhere for some milliseconds brings forth."""


def carried(
    lab: Laboratory, condition: Condition, way: str, size: int
) -> tuple[ServerProcess, Connection]:
    """After a transfer through a server that nobody else uses."""
    server = lab.own_server(condition.mtu)
    connection = lab.connection(condition, server=server)
    carry(some_octets(size), *connection.source_and_sink(way))
    return server, connection


def retransmissions(sock: socket.socket) -> int:
    """Segments that a kernel has sent again on this connection."""
    told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int(struct.unpack_from("I", told, 100)[0])  # tcpi_total_retrans, linux/tcp.h


@pytest.mark.parametrize("way", WAYS)
def test_a_whole_wire_needs_no_repair(lab: Laboratory, way: str) -> None:
    """Nothing is dropped, nothing is out of place, and what is sent twice is a probe."""
    server, connection = carried(lab, WHOLE, way, 20 * MIB)
    told = server.report()
    assert {name for name in told if name.startswith(("tcp.", "link."))} <= HARMLESS
    assert told["tcp.retransmitted"] <= told["tcp.tail_probe"]
    assert retransmissions(connection.guest) <= 2


def test_what_we_repeat_is_what_was_lost(lab: Laboratory) -> None:
    """The guest's selective acknowledgments name the holes; hardly one has to wait for a timer."""
    server, connection = carried(lab, LOSS, DOWN, 10 * MIB)
    told, lost = server.report(), connection.relay.counts().to_guest["lost"]
    assert lost > 40
    assert told["tcp.loss_recovery"] > 0
    assert told["tcp.retransmitted"] <= lost + lost // 4
    assert told["tcp.retransmission_timeout"] <= lost // 10


def test_what_the_guest_repeats_is_what_was_lost(lab: Laboratory) -> None:
    """Ours name them to the guest's kernel, too."""
    _, connection = carried(lab, LOSS, UP, 10 * MIB)
    lost = connection.relay.counts().to_host["lost"]
    assert lost > 40
    assert retransmissions(connection.guest) <= lost + lost // 4


def test_a_wire_that_repeats_makes_nobody_repeat(lab: Laboratory) -> None:
    """A copy that comes twice is no sign of a loss."""
    server, connection = carried(lab, REPEATED, DOWN, 10 * MIB)
    told, repeated = server.report(), connection.relay.counts().to_guest["repeated"]
    assert repeated > 400
    assert told["tcp.retransmitted"] < repeated // 10
    assert told["tcp.retransmission_timeout"] == 0


def test_a_wire_that_reorders_makes_us_repeat_little(lab: Laboratory) -> None:
    """Who is overtaken comes late: that is learned, and waited for (RFC 8985, 6.2)."""
    server, connection = carried(lab, REORDERED, DOWN, 40 * MIB)
    told, reordered = server.report(), connection.relay.counts().to_guest["reordered"]
    assert reordered > 200
    # Some 100 of 1,400; one each, as Linux does, where the machine is busy elsewhere.
    assert told["tcp.retransmitted"] < 2 * reordered
    assert told["tcp.retransmission_timeout"] <= 2


@pytest.mark.parametrize("way", WAYS)
def test_a_guest_without_selective_acknowledgments(lab: Laboratory, way: str) -> None:
    """Three duplicate ACKs tell of a loss, too: few are left to a timer (RFC 6582)."""
    server = lab.own_server(1500)
    guest, relay = lab.harmed_guest(1500, LOSS.harm, server=server)
    guest.run(["sysctl", "-qw", "net.ipv4.tcp_sack=0"])
    connection = Connection(*lab.pair(guest), relay)
    carry(some_octets(4 * MIB), *connection.source_and_sink(way))
    told, lost = server.report(), relay.counts().to_guest["lost"]
    assert told["tcp.retransmission_timeout"] <= lost // 3


@pytest.mark.parametrize("control", ["reno", "cubic"])
def test_with_congestion_control(lab: Laboratory, control: str) -> None:
    """Whoever asks for it gets the same octets, and what is repeated is what was lost."""
    server = lab.own_server(1500, "--congestion", control)
    connection = lab.connection(LOSS, server=server)
    carry(some_octets(10 * MIB), connection.host, connection.guest)
    told, lost = server.report(), connection.relay.counts().to_guest["lost"]
    assert told["tcp.retransmitted"] <= lost + lost // 4
    assert told["tcp.retransmission_timeout"] <= lost // 10


@pytest.mark.parametrize("way", WAYS)
def test_losses_cost_about_what_they_cost_two_kernels(lab: Laboratory, way: str) -> None:
    """Not ten times as much: a timer for each would cost a hundred times as much.

    What it costs exactly is the business of `tools.goodput`: short runs on busy machines vary.
    """
    octets = some_octets(10 * MIB)
    ours = carry(octets, *lab.connection(LOSS).source_and_sink(way))
    bare = carry(octets, *lab.bare_connection(LOSS).source_and_sink(way))
    assert ours > bare / 10
