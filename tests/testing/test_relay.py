"""The harmful wire does what it is asked, and nothing else, and the same again from one seed."""

import contextlib
import socket
from collections import Counter

from qemu_usernat.testing.relay import (
    BACKLOG_LIMIT,
    ETHERNET_HEADER,
    IPV4,
    LENGTH,
    REORDER_TIME,
    Harm,
    HarmfulWire,
    Relay,
)

MIB = 1 << 20
FRAMES = [bytes(12) + IPV4 + number.to_bytes(2, "big") * 43 for number in range(2000)]


def framed(frames: list[bytes]) -> bytes:
    """Frames as the stream carries them."""
    return b"".join(LENGTH.pack(len(frame)) + frame for frame in frames)


def unframed(stream: bytes) -> list[bytes]:
    """The frames of a stream that ends with a whole one."""
    frames = []
    while stream:
        end = LENGTH.size + LENGTH.unpack_from(stream)[0]
        frames.append(stream[LENGTH.size : end])
        stream = stream[end:]
    return frames


def carried(harm: Harm, seed: int = 1, together: int = 1) -> tuple[list[bytes], HarmfulWire]:
    """What comes out when some frames go in together, one every 10 µs."""
    wire, out = HarmfulWire(harm, seed), b""
    for number in range(0, len(FRAMES), together):
        now = number * 1e-5
        stream = framed(FRAMES[number : number + together])
        assert wire.take(memoryview(stream), now) == len(stream)
        out += b"".join(wire.leave(now))
    out += b"".join(wire.leave(1e9))
    assert wire.deadline() is None
    return unframed(out), wire


def test_a_wire_that_does_no_harm() -> None:
    """Every frame, once, in order, as it was."""
    assert carried(Harm())[0] == FRAMES
    assert carried(Harm(), together=100)[0] == FRAMES


def test_a_frame_that_is_not_whole_waits_for_its_rest() -> None:
    """Octets come as the socket has them; only whole frames enter the wire."""
    wire = HarmfulWire(Harm(), 1)
    stream = memoryview(framed(FRAMES[:2]))
    whole = len(stream) // 2
    assert wire.take(stream[:-1], 0.0) == whole
    assert wire.take(stream[whole : whole + 3], 0.0) == 0
    assert wire.take(stream[whole:], 0.0) == whole
    assert b"".join(wire.leave(0.0)) == stream


def test_one_seed_one_fate() -> None:
    """A failure that one seed has shown can be shown again; another seed is another fate."""
    harm = Harm(loss=0.1, repeat=0.1, reorder=0.1, corrupt=0.1, delay=0.001, jitter=0.001)
    assert carried(harm)[0] == carried(harm)[0]
    assert carried(harm)[0] != carried(harm, seed=2)[0]


def test_fate_does_not_ask_who_travels_together() -> None:
    """Which frames are harmed, and how, depends on their number alone."""
    harm = Harm(loss=0.1, repeat=0.1, corrupt=0.1)
    assert carried(harm)[0] == carried(harm, together=7)[0] == carried(harm, together=2000)[0]


def test_loss_takes_about_as_many_as_asked() -> None:
    """A tenth is lost; the others are what they were."""
    out, wire = carried(Harm(loss=0.1))
    assert 150 < wire.counts["lost"] < 250
    assert len(out) == len(FRAMES) - wire.counts["lost"]
    assert sorted(set(out)) == sorted(out)


def test_certain_loss_leaves_nothing() -> None:
    """A wire that is cut."""
    assert carried(Harm(loss=1.0))[0] == []


def test_repetition_adds_and_takes_nothing() -> None:
    """Some frames come twice, side by side."""
    out, wire = carried(Harm(repeat=0.1))
    assert len(out) == len(FRAMES) + wire.counts["repeated"] > len(FRAMES) + 100
    assert list(dict.fromkeys(out)) == FRAMES


def test_reordering_loses_nothing() -> None:
    """All frames come, some of them after later ones."""
    out, wire = carried(Harm(reorder=0.1))
    assert wire.counts["reordered"] > 100
    assert out != FRAMES
    assert sorted(out) == FRAMES


def test_corruption_is_one_bit_behind_the_ethernet_header() -> None:
    """One bit is one that every checksum finds; addresses that none guards are left alone."""
    out, wire = carried(Harm(corrupt=0.1))
    bent = [(was, now) for was, now in zip(FRAMES, out, strict=True) if was != now]
    assert len(bent) == wire.counts["corrupted"] > 100
    for was, now in bent:
        difference = int.from_bytes(was, "big") ^ int.from_bytes(now, "big")
        assert difference.bit_count() == 1
        assert was[:ETHERNET_HEADER] == now[:ETHERNET_HEADER]


def test_what_has_no_checksum_of_its_own_is_not_corrupted() -> None:
    """A wrong address that ARP had told would be believed for minutes."""
    wire, stream = HarmfulWire(Harm(corrupt=1.0), 1), framed([bytes(12) + b"\x08\x06" + bytes(28)])
    wire.take(memoryview(stream), 0.0)
    assert wire.leave(0.0) == [stream]
    assert not wire.counts["corrupted"]


def test_jitter_delays_and_keeps_the_order() -> None:
    """A frame leaves when its delay is over, never before one that came earlier."""
    assert carried(Harm(delay=0.01, jitter=0.01))[0] == FRAMES
    wire, stream = HarmfulWire(Harm(delay=0.01, jitter=0.01), 1), framed(FRAMES[:1])
    wire.take(memoryview(stream), 5.0)
    deadline = wire.deadline()
    assert deadline is not None
    assert 5.01 <= deadline <= 5.02
    assert wire.leave(deadline - 1e-6) == []
    assert wire.leave(deadline) == [stream]


def test_every_frame_has_a_jitter_of_its_own() -> None:
    """Frames that came together do not leave together."""
    wire = HarmfulWire(Harm(jitter=0.01), 1)
    wire.take(memoryview(framed(FRAMES[:10])), 0.0)
    assert 0 < len(wire.leave(0.005)) < 10


def test_a_held_frame_leaves_though_none_follows() -> None:
    """Reordering delays the last frame of a conversation; it does not keep it."""
    wire, stream = HarmfulWire(Harm(reorder=1.0), 1), framed(FRAMES[:1])
    wire.take(memoryview(stream), 0.0)
    assert wire.leave(REORDER_TIME) == [stream]


def read_exactly(sock: socket.socket, count: int) -> bytes:
    """So many octets."""
    octets = bytearray()
    while len(octets) < count:
        octets += sock.recv(min(MIB, count - len(octets)))
    return bytes(octets)


def test_the_relay_carries_frames_however_they_are_cut() -> None:
    """Bytes in, bytes out, both ways; and when one side closes the other side hears of it."""
    guest, relays_guest = socket.socketpair()
    server, relays_server = socket.socketpair()
    stream = framed(FRAMES[:20])
    with guest, server, Relay(relays_guest, relays_server) as relay:
        guest.settimeout(5)
        server.settimeout(5)
        for source, sink in ((guest, server), (server, guest)):
            for start in range(0, len(stream), 777):
                source.sendall(stream[start : start + 777])
            assert read_exactly(sink, len(stream)) == stream
        guest.close()
        assert server.recv(1) == b""
        counts = relay.counts()
    assert counts.to_host == counts.to_guest == Counter(frames=20)


def test_who_does_not_read_holds_the_other_back() -> None:
    """The relay itself loses nothing: what it cannot pass on, it does not take for long."""
    guest, relays_guest = socket.socketpair()
    server, relays_server = socket.socketpair()
    stream = memoryview(framed(FRAMES) * (5 * BACKLOG_LIMIT // len(framed(FRAMES))))
    with guest, server, Relay(relays_guest, relays_server) as relay:
        relay.counts()  # it runs
        guest.settimeout(0.5)
        server.settimeout(5)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < len(stream):
                sent += guest.send(stream[sent : sent + MIB])
        assert BACKLOG_LIMIT < sent < 3 * BACKLOG_LIMIT
        whole = sent - sent % len(framed(FRAMES[:1]))
        assert read_exactly(server, whole) == stream[:whole]
