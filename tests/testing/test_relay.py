"""The harmful wire does what it is asked, and nothing else, and the same again from one seed."""

import random
import socket

from qemu_usernat.testing.relay import ETHERNET_HEADER, REORDER_TIME, Harm, HarmfulWire, Relay

FRAMES = [number.to_bytes(2, "big") * 50 for number in range(2000)]


def carried(harm: Harm, seed: int = 1) -> tuple[list[bytes], HarmfulWire]:
    """What comes out when a frame goes in every 10 µs."""
    wire, out = HarmfulWire(harm, random.Random(seed)), []
    for number, frame in enumerate(FRAMES):
        now = number * 1e-5
        wire.take(frame, now)
        out += wire.leave(now)
    out += wire.leave(1e9)
    assert wire.deadline() is None
    return out, wire


def test_a_wire_that_does_no_harm() -> None:
    """Every frame, once, in order, as it was."""
    assert carried(Harm())[0] == FRAMES


def test_one_seed_one_fate() -> None:
    """A failure that one seed has shown can be shown again; another seed is another fate."""
    harm = Harm(loss=0.1, repeat=0.1, reorder=0.1, corrupt=0.1, delay=0.001, jitter=0.001)
    assert carried(harm)[0] == carried(harm)[0]
    assert carried(harm)[0] != carried(harm, seed=2)[0]


def test_loss_takes_about_as_many_as_asked() -> None:
    """A tenth is lost; the others are what they were."""
    out, wire = carried(Harm(loss=0.1))
    assert 100 < wire.counts["lost"] < 300
    assert len(out) == len(FRAMES) - wire.counts["lost"]
    assert sorted(set(out)) == sorted(out)


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


def test_jitter_delays_and_keeps_the_order() -> None:
    """A frame leaves when its delay is over, never before one that came earlier."""
    assert carried(Harm(delay=0.01, jitter=0.01))[0] == FRAMES
    wire = HarmfulWire(Harm(delay=0.01, jitter=0.01), random.Random(1))
    wire.take(FRAMES[0], 5.0)
    deadline = wire.deadline()
    assert deadline is not None
    assert 5.01 <= deadline <= 5.02
    assert wire.leave(deadline - 1e-6) == []
    assert wire.leave(deadline) == [FRAMES[0]]


def test_a_held_frame_leaves_though_none_follows() -> None:
    """Reordering delays the last frame of a conversation; it does not keep it."""
    wire = HarmfulWire(Harm(reorder=1.0), random.Random(1))
    wire.take(FRAMES[0], 0.0)
    assert wire.leave(REORDER_TIME) == [FRAMES[0]]


def test_the_relay_carries_frames_however_they_are_cut() -> None:
    """Bytes in, bytes out, both ways; and when one side closes the other side hears of it."""
    guest, relays_guest = socket.socketpair()
    server, relays_server = socket.socketpair()
    stream = b"".join(len(frame).to_bytes(4, "big") + frame for frame in FRAMES[:20])
    with guest, server, Relay(relays_guest, relays_server) as relay:
        guest.settimeout(5)
        server.settimeout(5)
        for source, sink in ((guest, server), (server, guest)):
            for start in range(0, len(stream), 777):
                source.sendall(stream[start : start + 777])
            got = b""
            while len(got) < len(stream):
                got += sink.recv(65536)
            assert got == stream
        assert relay.to_host.counts == relay.to_guest.counts == {"frames": 20}
        guest.close()
        assert server.recv(1) == b""
