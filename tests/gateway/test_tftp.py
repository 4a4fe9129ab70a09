"""Conversations with the TFTP server, as boot loaders hold them, and a hostile guest."""

import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.gateway.tftp import (
    FIRST_PORT,
    GUEST_TRANSFERS_MAXIMUM,
    PAUSE,
    TRANSFERS_MAXIMUM,
    TRIES,
    WINDOW_BLOCKS,
    RefusalError,
    TftpServer,
)
from qemu_usernat.primitives.addresses import FlowKey, MacAddress, parse_address, parse_mac
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.errors import Malformed
from qemu_usernat.wire import tftp
from qemu_usernat.wire.tftp import FILE_NOT_FOUND, NOT_DEFINED, data, error

GATEWAY = parse_address("10.0.2.2")
GUEST = parse_address("10.0.2.15")
MAC = parse_mac("52:54:00:12:34:56")


@define(eq=False)
class File:
    """A file in memory, which somebody may change."""

    octets: bytes
    closed: bool = False

    @property
    def size(self) -> int:
        return len(self.octets)

    def read(self, offset: int, count: int) -> bytes:
        assert not self.closed
        if self.octets == b"changed":
            raise RefusalError(NOT_DEFINED, "the file was changed while it was read")
        return self.octets[offset : offset + count]

    def close(self) -> None:
        assert not self.closed
        self.closed = True


@define(eq=False)
class Segment:
    """A server with some files, and what its guests were sent."""

    files: dict[bytes, bytes] = field(factory=dict)
    mtu: int = 1500
    opened: list[File] = field(factory=list)
    sent: list[tuple[FlowKey, bytes]] = field(factory=list)
    server: TftpServer = field(init=False)
    now: float = 0.0
    key: FlowKey = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.server = TftpServer(self._open, self._send, Counters())

    def _open(self, name: bytes) -> File:
        if name not in self.files:
            raise RefusalError(FILE_NOT_FOUND, "no such file")
        self.opened.append(File(self.files[name]))
        return self.opened[-1]

    def _send(self, mac: MacAddress, key: FlowKey, packet: bytes) -> None:
        self.sent.append((key, packet))

    def ask(
        self, payload: bytes, port: int = 2000, mac: bytes = MAC, link: str = "one"
    ) -> list[bytes]:
        """A datagram to port 69, and what comes back."""
        key = (GUEST, port, GATEWAY, 69)
        self.server.on_request(link, mac, key, payload, self.mtu, self.now)
        return self.heard()

    def say(self, payload: bytes) -> list[bytes]:
        """A datagram to the port that was heard of last."""
        self.server.on_packet(self.key, memoryview(payload), self.now)
        return self.heard()

    def heard(self) -> list[bytes]:
        packets = [packet for key, packet in self.sent]
        if self.sent:
            self.key = self.sent[-1][0]
        self.sent.clear()
        return packets

    def load(self, request: bytes, window: int = 1) -> tuple[bytes, list[int]]:
        """A file as a guest loads it that loses nothing: its octets, the sizes of its blocks."""
        received, sizes, number = b"", [], 0
        packets = self.ask(request)
        block_size = 512
        if packets[0][:2] == b"\0\x06":
            agreed = dict(zip(*[iter(packets[0][2:].split(b"\0"))] * 2, strict=False))
            block_size = int(agreed.get(b"blksize", 512))
            packets = self.say(ack(0))
        while True:
            assert 1 <= len(packets) <= window
            for packet in packets:
                number += 1
                assert packet[:4] == b"\0\x03" + (number & 0xFFFF).to_bytes(2, "big")
                received += packet[4:]
                sizes.append(len(packet) - 4)
            packets = self.say(ack(number))
            if sizes[-1] < block_size:
                assert packets == []
                return received, sizes


def read_request(name: bytes = b"kernel", mode: bytes = b"octet", **options: object) -> bytes:
    words = [name, mode]
    for key, value in options.items():
        words += [key.encode(), f"{value}".encode()]
    return b"\0\x01" + b"".join(word + b"\0" for word in words)


def ack(number: int) -> bytes:
    return b"\0\x04" + (number & 0xFFFF).to_bytes(2, "big")


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024, 5000])
def test_a_file_arrives_as_it_is(size: int) -> None:
    """Its end is a block that is not full, if need be an empty one."""
    octets = bytes(n * 7 & 0xFF for n in range(size))
    segment = Segment({b"kernel": octets})
    received, sizes = segment.load(read_request())
    assert received == octets
    assert sizes == [512] * (size // 512) + [size % 512]
    assert segment.opened[0].closed
    assert segment.server.transfers == {}


def test_ipxe_asks_for_size_and_large_blocks() -> None:
    """As iPXE begins; what is agreed on comes back in its order, and its acknowledgment is 0."""
    segment = Segment({b"kernel": bytes(3000)})
    assert segment.ask(read_request(blksize=1432, tsize=0)) == [
        b"\0\x06blksize\x001432\0tsize\x003000\0"
    ]
    (block,) = segment.say(ack(0))
    assert block == data(1, bytes(1432))


@pytest.mark.parametrize(
    ("asked", "mtu", "agreed"),
    [
        (8, 1500, 8),
        (1432, 1500, 1432),
        (1468, 1500, 1468),
        (1469, 1500, 1468),
        (65464, 1500, 1468),
        (65464, 65520, 65464),
        (65464, 576, 544),
    ],
)
def test_a_block_reaches_the_guest_in_one_piece(asked: int, mtu: int, agreed: int) -> None:
    """Boot ROMs put no fragments together: IP, UDP and TFTP headers and the block fit the MTU."""
    segment = Segment({b"kernel": bytes(70000)}, mtu)
    assert segment.ask(read_request(blksize=asked)) == [b"\0\x06blksize\0%d\0" % agreed]
    assert len(segment.say(ack(0))[0]) == 4 + agreed <= mtu - 28


@pytest.mark.parametrize(
    "options",
    [
        {"blksize": 7},
        {"blksize": 65465},
        {"blksize": "x"},
        {"blksize": "-8"},
        {"blksize": ""},
        {"blksize": "9" * 450},
        {"timeout": 0},
        {"timeout": 9},
        {"timeout": 256},
        {"windowsize": 0},
        {"windowsize": 65536},
        {"unknown": 1},
    ],
)
def test_an_option_without_sense_is_as_if_it_were_not_there(options: dict[str, object]) -> None:
    """RFC 2347: what is not confirmed is not agreed on; the file comes by the plain protocol."""
    segment = Segment({b"kernel": b"all"})
    assert segment.ask(read_request(b"kernel", b"octet", **options)) == [data(1, b"all")]


def test_the_first_of_two_like_options_counts() -> None:
    """In whatever case they are written."""
    segment = Segment({b"kernel": b"all"})
    request = b"\0\x01kernel\0octet\0BLKSIZE\x00100\0blksize\x00200\0"
    assert segment.ask(request) == [b"\0\x06blksize\x00100\0"]


def test_a_window_is_sent_at_once() -> None:
    """RFC 7440: several blocks for one acknowledgment, and the last window may be shorter."""
    octets = bytes(range(256)) * 40
    segment = Segment({b"kernel": octets})
    received, sizes = segment.load(read_request(windowsize=8, blksize=1000), window=8)
    assert received == octets
    assert len(sizes) == 11


def test_a_window_holds_a_bounded_number_of_octets() -> None:
    """A guest that wants all at once gets what it may have."""
    segment = Segment({b"kernel": bytes(1 << 20)}, mtu=65520)
    request = read_request(blksize=16384, windowsize=65535)
    assert segment.ask(request) == [b"\0\x06blksize\x0016384\0windowsize\x004\0"]
    assert len(segment.say(ack(0))) == 4


def test_a_window_of_small_blocks_is_not_longer() -> None:
    """A block of 8 octets costs as much as a large one."""
    segment = Segment({b"kernel": bytes(1 << 20)})
    answer = segment.ask(read_request(blksize=8, windowsize=65535))
    assert answer == [b"\0\x06blksize\x008\0windowsize\x0016\0"]
    assert len(segment.say(ack(0))) == WINDOW_BLOCKS


def test_what_a_window_lost_is_sent_again() -> None:
    """An acknowledgment within a window says where it broke off."""
    segment = Segment({b"kernel": bytes(4000)})
    segment.ask(read_request(windowsize=4))
    assert [packet[3] for packet in segment.say(ack(0))] == [1, 2, 3, 4]
    assert [packet[3] for packet in segment.say(ack(2))] == [3, 4, 5, 6]


def test_a_window_is_not_sent_for_each_block_that_is_acknowledged() -> None:
    """What is new comes at once; what was sent comes again, but only now and then."""
    segment = Segment({b"kernel": bytes(100_000)})
    segment.ask(read_request(windowsize=4))
    segment.say(ack(0))
    assert [packet[3] for packet in segment.say(ack(1))] == [2, 3, 4, 5]
    assert [[packet[3] for packet in segment.say(ack(n))] for n in (2, 3, 4)] == [[6], [7], [8]]
    assert segment.server.deadline() == segment.now + PAUSE
    segment.now += PAUSE
    segment.server.on_deadline(segment.now)
    assert [packet[3] for packet in segment.heard()] == [5, 6, 7, 8]
    assert [packet[3] for packet in segment.say(ack(5))] == [6, 7, 8, 9]


def test_block_numbers_begin_anew() -> None:
    """A file of more than 65535 blocks: 32 MiB in the plain protocol (here in blocks of 8)."""
    octets = (1 << 19).to_bytes(8, "big") * ((1 << 16) + 3)
    segment = Segment({b"kernel": octets})
    request = read_request(blksize=8, windowsize=16)
    received, sizes = segment.load(request, window=16)
    assert (received, len(sizes)) == (octets, (1 << 16) + 4)


def test_silence_is_answered_by_the_same_again() -> None:
    """After one second, then less and less often, and after eight times no more."""
    segment = Segment({b"kernel": bytes(1000)})
    (first,) = segment.ask(read_request())
    waits = []
    while segment.server.transfers:
        waits.append(segment.server.deadline() - segment.now)
        segment.now = segment.server.deadline()
        segment.server.on_deadline(segment.now - 0.01)
        assert segment.heard() == []
        segment.server.on_deadline(segment.now)
        assert segment.heard() == ([first] if segment.server.transfers else [])
    assert waits == [1, 2, 4, 8, 8, 8, 8, 8]
    assert len(waits) == TRIES
    assert segment.opened[0].closed
    assert segment.server.counters["tftp.gave_up"] == 1


def test_a_guest_names_its_own_patience() -> None:
    """RFC 2349: then it is that, each time."""
    segment = Segment({b"kernel": bytes(1000)})
    segment.ask(read_request(timeout=3))
    for moment in (3.0, 6.0, 9.0):
        assert segment.server.deadline() == moment
        segment.server.on_deadline(moment)


def test_a_repeated_acknowledgment_is_not_answered() -> None:
    """Else each block would be sent twice from there on (the sorcerer's apprentice)."""
    segment = Segment({b"kernel": bytes(2000)})
    segment.ask(read_request())
    assert len(segment.say(ack(1))) == 1
    assert segment.say(ack(1)) == []
    assert segment.say(ack(0)) == []
    assert segment.say(ack(3)) == []
    assert len(segment.say(ack(2))) == 1


def test_a_repeated_request_is_the_same_transfer() -> None:
    """The answer was lost, or late: a second one from another port would confuse both."""
    segment = Segment({b"kernel": bytes(2000)})
    first = segment.ask(read_request())
    key = segment.key
    assert segment.ask(read_request()) == first
    assert (segment.key, len(segment.opened)) == (key, 1)


def test_a_request_that_comes_again_and_again_is_not_answered_each_time() -> None:
    """A guest that asks many times at once hears it twice, and later once more."""
    segment = Segment({b"kernel": bytes(100_000)})
    request = read_request(windowsize=8)
    segment.ask(request)
    first = segment.say(ack(0))
    assert [len(segment.ask(request)) for _ in range(4)] == [8, 0, 0, 0]
    segment.now += PAUSE
    assert segment.ask(request) == first


def test_asking_again_keeps_no_transfer_alive() -> None:
    """A guest that never takes what it asks for loses its place, however long it goes on asking."""
    segment = Segment({b"kernel": bytes(2000)})
    request = read_request(timeout=8)
    segment.ask(request)
    while segment.server.transfers and segment.now < 3600:
        segment.now += 0.5
        if segment.server.deadline() <= segment.now:
            segment.server.on_deadline(segment.now)
        if segment.server.transfers:
            segment.ask(request)
    assert segment.now == 8.0 * TRIES
    assert segment.server.counters["tftp.gave_up"] == 1


def test_a_new_request_from_a_port_ends_what_there_was() -> None:
    """A ROM uses the same port for one file after the other; the new one has its own with us."""
    segment = Segment({b"kernel": bytes(2000), b"initrd": b"x"})
    segment.ask(read_request())
    segment.say(ack(1))
    key = segment.key
    assert segment.ask(read_request(b"initrd")) == [data(1, b"x")]
    assert segment.key != key
    assert segment.opened[0].closed
    assert list(segment.server.transfers) == [segment.key]


def test_a_guest_that_wanted_to_know_the_size_only_ends_it() -> None:
    """As PXE ROMs do: an error after the confirmation, and the file again with another request."""
    segment = Segment({b"kernel": bytes(2000)})
    segment.ask(read_request(tsize=0))
    assert segment.say(error(0, b"TFTP Aborted")) == []
    assert segment.opened[0].closed
    assert segment.server.transfers == {}


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (read_request(b"nothing"), tftp.FILE_NOT_FOUND),
        (read_request(mode=b"mail"), tftp.ILLEGAL_OPERATION),
        (read_request(mode=b""), tftp.ILLEGAL_OPERATION),
        (b"\0\x02kernel\0octet\0", tftp.ACCESS_VIOLATION),
    ],
)
def test_a_refusal_says_so(request_: bytes, code: int) -> None:
    """Nothing is written here, and what is not there is said at once."""
    segment = Segment({b"kernel": b"all"})
    (packet,) = segment.ask(request_)
    assert packet[:4] == b"\0\x05" + code.to_bytes(2, "big")
    assert packet[-1] == 0
    assert segment.server.transfers == {}


def test_text_has_the_network_s_line_ends() -> None:
    """Mode netascii (RFC 764): also where a line's end falls on a block's; no size is promised."""
    text = b"a\nb\rc\r\n" * 200
    segment = Segment({b"menu": text})
    received, _ = segment.load(read_request(b"menu", b"NetASCII", tsize=0))
    assert received == b"a\r\nb\r\0c\r\0\r\n" * 200


def test_a_file_that_changes_meanwhile_is_not_pieced_together() -> None:
    """A kernel of two halves would crash somewhere: the guest is told now."""
    segment = Segment({b"kernel": bytes(2000)})
    segment.ask(read_request())
    segment.opened[0].octets = b"changed"
    (packet,) = segment.say(ack(1))
    assert packet == error(NOT_DEFINED, b"the file was changed while it was read")
    assert segment.server.transfers == {}
    assert segment.opened[0].closed


def test_no_guest_has_all_transfers() -> None:
    """Beyond its share it is refused, whatever MAC address it has just then; others are not."""
    segment = Segment({b"kernel": bytes(2000)})
    for port in range(GUEST_TRANSFERS_MAXIMUM + 3):
        answer = segment.ask(read_request(), 3000 + port, port.to_bytes(6, "big"))
    assert answer == [error(NOT_DEFINED, b"too many transfers at once")]
    other = parse_mac("52:54:00:00:00:99")
    assert segment.ask(read_request(), 5000, other, "two") == [data(1, bytes(512))]
    for port in range(TRANSFERS_MAXIMUM):
        segment.ask(read_request(), 7000 + port, MAC, f"link {port}")
    assert len(segment.server.transfers) == TRANSFERS_MAXIMUM
    ports = {key[3] for key in segment.server.transfers}
    assert len(ports) == TRANSFERS_MAXIMUM
    assert min(ports) >= FIRST_PORT


def test_files_are_closed_when_their_guest_leaves() -> None:
    """And when the server ends."""
    segment = Segment({b"kernel": bytes(2000)})
    other = parse_mac("52:54:00:00:00:99")
    segment.ask(read_request(), 3000)
    segment.ask(read_request(), 3001, other, "two")
    segment.server.on_gone("one")
    assert [file.closed for file in segment.opened] == [True, False]
    segment.server.close()
    assert [file.closed for file in segment.opened] == [True, True]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0",
        b"\0\x01",
        b"\0\x01kernel",
        b"\0\x01kernel\0octet",
        b"\0\x01kernel\0octet\0blksize\0",
        b"\0\x01kernel\0octet\0blksize\x00512",
        b"\0\x03\0\x01data",
        b"\0\x04\0\x01",
        b"\0\x05\0\0\0",
        b"\0\x07\0\0",
        b"\x01\0kernel\0octet\0",
        b"\0\x01kernel\0octet\0" + b"a\0b\0" * 130,
    ],
)
def test_nonsense_has_no_answer(payload: bytes) -> None:
    """Least of all an error, which is never answered."""
    segment = Segment({b"kernel": b"all"})
    with pytest.raises(Malformed, match=r"tftp\.malformed"):
        segment.ask(payload)
    assert segment.heard() == []


def test_nonsense_within_a_transfer_ends_it() -> None:
    """What is no acknowledgment and no error does not belong there."""
    segment = Segment({b"kernel": bytes(2000)})
    segment.ask(read_request())
    (packet,) = segment.say(data(1, b"mine"))
    assert packet[:4] == b"\0\x05\0\x04"
    assert segment.opened[0].closed


@given(
    st.binary(max_size=80)
    | st.lists(st.binary(max_size=12), max_size=9).map(
        lambda words: b"\0\x01" + b"".join(word + b"\0" for word in words)
    ),
    st.lists(st.binary(max_size=8) | st.integers(0, 9).map(ack), max_size=8),
)
def test_no_bytes_of_a_guest_break_the_server(request_: bytes, packets: list[bytes]) -> None:
    """Whatever it says, and however a transfer goes on: malformed, refused, or served."""
    segment = Segment({b"": bytes(3000), b"a": bytes(700)})
    try:
        segment.ask(request_)
        for packet in packets:
            if segment.server.transfers:
                segment.say(packet)
    except Malformed as malformed:
        assert malformed.reason == "tftp.malformed"  # noqa: PT017
    segment.server.close()
    assert all(file.closed for file in segment.opened)


@given(st.data(), st.integers(0, 5000), st.integers(1, 6), st.sampled_from([8, 100, 512]))
def test_whatever_is_lost_the_file_arrives(
    data_: st.DataObject, size: int, window: int, block_size: int
) -> None:
    """Blocks and acknowledgments get lost, come twice and late; a receiver as RFC 7440 has it."""
    octets = bytes(n * 31 & 0xFF for n in range(size))
    segment = Segment({b"kernel": octets})
    packets = segment.ask(read_request(blksize=block_size, windowsize=window))
    lost = st.sampled_from([False, False, True])
    received, done, patience = b"", 0, 400
    while segment.server.transfers:
        patience -= 1
        kept = [packet for packet in packets if patience < 300 or not data_.draw(lost)]
        acknowledge = bool(kept)
        for packet in kept:
            number = int.from_bytes(packet[2:4], "big")
            if packet[1] == 3 and number == (done + 1) & 0xFFFF:
                received, done = received + packet[4:], done + 1
        packets = []
        if acknowledge and (patience < 300 or not data_.draw(lost)):
            packets = segment.say(ack(done))
        if not packets and segment.server.transfers:
            segment.now = segment.server.deadline()
            segment.server.on_deadline(segment.now)
            packets = segment.heard()
        if segment.server.counters["tftp.gave_up"]:
            assert octets.startswith(received)
            return
    assert received == octets
