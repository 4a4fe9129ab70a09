"""The TFTP server: files for machines that boot from the network (RFC 1350), read only.

It is sans-IO: files are opened by a callable, and time is an argument. A transfer has a port of its
own on our side, as the RFC has it, so what an older one still hears is not taken for the new one's.

Options (RFC 2347): `blksize` (2348), `tsize` and `timeout` (2349), `windowsize` (7440). A block is
never larger than what reaches the guest in one piece: boot ROMs do not put fragments together. What
is sent is kept until it is acknowledged, so a file is read once, in order.

An acknowledgment that comes twice is not answered, only silence is: a repetition for each would be
answered twice itself, until the end of the file (the sorcerer's apprentice; RFC 1123, 4.2.3.1).
A word of the guest that asks for a window again, be it the request once more or an acknowledgment
within the window, is small, and a window is not: it is sent again once in a while at most.
"""

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from itertools import islice
from math import inf
from typing import Protocol

from attrs import define, field, frozen

from qemu_usernat.primitives.addresses import Address, FlowKey, MacAddress
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.errors import Malformed
from qemu_usernat.primitives.time import MS, SECOND
from qemu_usernat.wire.packets import Buffer
from qemu_usernat.wire.tftp import (
    ACCESS_VIOLATION,
    ACKNOWLEDGMENT,
    ERROR,
    HEADER,
    ILLEGAL_OPERATION,
    NOT_DEFINED,
    READ,
    WRITE,
    data,
    error,
    number_of,
    operation_of,
    options_acknowledgment,
    parse_request,
)

TFTP_PORT = 69  # RFC 1350, 4
FIRST_PORT = 49152  # of the dynamic ones (RFC 6335, 6)
LAST_PORT = 65535

TRANSFERS_MAXIMUM = 256
GUEST_TRANSFERS_MAXIMUM = 16
"""A boot loader has one; a guest that is left hanging asks again before the old one has ended. It
is a link's: a guest can have any number of MAC addresses."""

REQUEST_MAXIMUM = 512  # bytes (RFC 2347)

BLOCK_SIZE = 512  # RFC 1350, 2: without an option
BLOCK_MINIMUM = 8  # RFC 2348
BLOCK_MAXIMUM = 65464
WINDOW_OCTETS = 1 << 16
"""What may be under way to one guest, whatever its window."""
WINDOW_BLOCKS = 16
"""The same for small blocks, each of which costs as much as a large one: enough for a wire that is
this short, and what two small packets of a guest can lead to."""

TIMEOUT = 1 * SECOND
TIMEOUT_MAXIMUM = 8 * SECOND
"""It doubles up to this, unless the guest has named its own (RFC 2349), which is no longer: a place
is not kept for one that never answers."""
TRIES = 8
PAUSE = 100 * MS
"""Between two sendings of one window, if nothing but the guest's asking leads to the second."""

_HEADERS = 20 + 8 + HEADER  # IP, UDP, and the block's own
_MODES = (b"octet", b"netascii")


class RefusalError(Exception):
    """Why a file is not to be had: an error code of TFTP, and words for a person."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code


class OpenedFile(Protocol):
    """A file to be sent."""

    @property
    def size(self) -> int:
        """In bytes, from now until it is closed."""

    def read(self, offset: int, count: int) -> bytes:
        """As many bytes, fewer only at the end; RefusalError if the file is changed."""

    def close(self) -> None:
        """It is not needed any more."""


OpenFile = Callable[[bytes], OpenedFile]
"""From the name that a guest asks for; RefusalError where there is none."""

Send = Callable[[MacAddress, FlowKey, bytes], None]
"""To the guest at a MAC address: the flow has the guest's address and port first, then ours."""


@frozen
class _Terms:
    """What was agreed on: `answer` are the options that are confirmed."""

    answer: Mapping[bytes, bytes]
    block_size: int = BLOCK_SIZE
    window: int = 1
    timeout: float | None = None


@define(eq=False)
class _Transfer:
    """One file on its way."""

    link: Hashable
    mac: MacAddress
    key: FlowKey
    request: bytes
    octets: "_Octets"
    terms: _Terms
    first: bytes | None
    """The confirmation of options, until the guest has taken it."""
    acknowledged: int = 0
    """Blocks."""
    under_way: deque[bytes] = field(factory=deque)
    """The packets after these."""
    at_end: bool = False
    deadline: float = inf
    tries: int = 0
    asked_again: float = -inf
    """When the guest's asking has led to a second sending."""


@define
class TftpServer:
    """Of one network."""

    open_file: OpenFile
    send: Send
    counters: Counters
    transfers: dict[FlowKey, _Transfer] = field(factory=dict, init=False)
    _of_guest: dict[tuple[Address, int, Address], _Transfer] = field(factory=dict, init=False)
    """The same by where the guest asked, and whom: there it has one at a time."""
    _ports: int = field(default=0, init=False)

    def on_request(
        self,
        link: Hashable,
        mac: MacAddress,
        key: FlowKey,
        payload: bytes,
        mtu: int,
        now: float,
    ) -> None:
        """A datagram to port 69, of a guest that is at `link`, whatever its MAC address; an IP
        packet of `mtu` bytes reaches it in one piece."""
        operation = operation_of(payload)
        if operation not in (READ, WRITE) or len(payload) > REQUEST_MAXIMUM:
            raise Malformed("tftp.malformed")
        if self._is_repeated(key, payload, now):
            return
        key = (*key[:3], self._next_port())
        try:
            transfer = self._begin(link, mac, key, payload, mtu)
        except RefusalError as refusal:
            self.counters.count("tftp.refused")
            self.send(mac, key, error(refusal.code, str(refusal).encode()))
            return
        self.transfers[key] = self._of_guest[key[:3]] = transfer
        self._go_on(transfer, now)

    def on_packet(self, key: FlowKey, packet: Buffer, now: float) -> None:
        """A datagram to the port of a transfer that there is."""
        transfer, payload = self.transfers[key], bytes(packet)
        operation = operation_of(payload)
        if operation == ERROR:  # also how a boot ROM ends that wanted to know the size only
            self._end(transfer)
        elif operation == ACKNOWLEDGMENT:
            self._on_acknowledgment(transfer, number_of(payload), now)
        else:
            self._end(transfer)
            self.send(transfer.mac, key, error(ILLEGAL_OPERATION, b"not in a transfer"))

    def deadline(self) -> float:
        """When `on_deadline` is next to be called."""
        return min((each.deadline for each in self.transfers.values()), default=inf)

    def on_deadline(self, now: float) -> None:
        """Whoever has not answered gets it again."""
        for transfer in tuple(self.transfers.values()):
            if transfer.deadline <= now:
                transfer.tries += 1
                if transfer.tries >= TRIES:
                    self.counters.count("tftp.gave_up")
                    self._end(transfer)
                else:
                    self.counters.count("tftp.repeated")
                    self._wait(transfer, now)
                    self._send_all(transfer)

    def on_gone(self, link: Hashable) -> None:
        """The guest at `link` has left."""
        for transfer in tuple(self.transfers.values()):
            if transfer.link == link:
                self._end(transfer)

    def close(self) -> None:
        """All files are closed."""
        for transfer in tuple(self.transfers.values()):
            self._end(transfer)

    # -- how a transfer begins

    def _is_repeated(self, key: FlowKey, payload: bytes, now: float) -> bool:
        """A request that came before: it is answered again, and the transfer lives no longer for
        that. Another one from that port ends what there was."""
        transfer = self._of_guest.get(key[:3])
        if transfer is None:
            return False
        if transfer.request != payload or transfer.acknowledged:
            self._end(transfer)
            return False
        if self._may_ask_again(transfer, now):
            self._send_all(transfer)
        return True

    def _next_port(self) -> int:
        while True:
            port = FIRST_PORT + self._ports % (LAST_PORT - FIRST_PORT + 1)
            self._ports += 1
            if all(key[3] != port for key in self.transfers):
                return port

    def _begin(
        self, link: Hashable, mac: MacAddress, key: FlowKey, payload: bytes, mtu: int
    ) -> _Transfer:
        request = parse_request(payload)
        if request.operation == WRITE:
            raise RefusalError(ACCESS_VIOLATION, "nothing can be written here")
        if request.mode not in _MODES:
            raise RefusalError(ILLEGAL_OPERATION, "the mode is neither octet nor netascii")
        of_guest = sum(each.link == link for each in self.transfers.values())
        if len(self.transfers) >= TRANSFERS_MAXIMUM or of_guest >= GUEST_TRANSFERS_MAXIMUM:
            raise RefusalError(NOT_DEFINED, "too many transfers at once")
        file = self.open_file(request.filename)
        is_text = request.mode == b"netascii"
        terms = _agree(request.options, None if is_text else file.size, mtu)
        first = options_acknowledgment(terms.answer) if terms.answer else None
        return _Transfer(link, mac, key, payload, _Octets(file, is_text), terms, first)

    # -- how it goes on

    def _on_acknowledgment(self, transfer: _Transfer, number: int, now: float) -> None:
        if transfer.first is not None:
            if number == 0:
                transfer.first = None
                self._go_on(transfer, now)
            return
        count = (number - transfer.acknowledged) & 0xFFFF
        if not 1 <= count <= len(transfer.under_way):
            return
        transfer.acknowledged += count
        for _ in range(count):
            transfer.under_way.popleft()
        if transfer.at_end and not transfer.under_way:
            self.counters.count("tftp.sent")
            self._end(transfer)
        else:
            self._go_on(transfer, now)

    def _go_on(self, transfer: _Transfer, now: float) -> None:
        """The guest has taken something: what is new goes out at once, and what was under way too.

        Where it stopped within a window, the rest of that is lost (RFC 7440, 4).
        """
        transfer.tries = 0
        lost = len(transfer.under_way)
        try:
            self._fill(transfer)
        except RefusalError as refusal:
            self.counters.count("tftp.file_changed")
            self._end(transfer)
            self.send(transfer.mac, transfer.key, error(refusal.code, str(refusal).encode()))
            return
        self._wait(transfer, now)
        if lost and not self._may_ask_again(transfer, now):
            transfer.deadline = min(transfer.deadline, transfer.asked_again + PAUSE)
            self._send_all(transfer, lost)
        else:
            self._send_all(transfer)

    def _may_ask_again(self, transfer: _Transfer, now: float) -> bool:
        """Whether the guest's word is enough to send again what was sent."""
        if now < transfer.asked_again + PAUSE:
            return False
        transfer.asked_again = now
        return True

    def _fill(self, transfer: _Transfer) -> None:
        """Read as far as the window goes."""
        if transfer.first is not None:
            return
        while not transfer.at_end and len(transfer.under_way) < transfer.terms.window:
            octets = transfer.octets.take(transfer.terms.block_size)
            transfer.at_end = len(octets) < transfer.terms.block_size
            number = transfer.acknowledged + len(transfer.under_way) + 1
            transfer.under_way.append(data(number, octets))

    def _wait(self, transfer: _Transfer, now: float) -> None:
        """From now on, for an answer."""
        wait = transfer.terms.timeout or min(TIMEOUT * 2**transfer.tries, TIMEOUT_MAXIMUM)
        transfer.deadline = now + wait

    def _send_all(self, transfer: _Transfer, beginning: int = 0) -> None:
        """Send what is not acknowledged, without the first ones."""
        packets = transfer.under_way if transfer.first is None else (transfer.first,)
        for packet in islice(packets, beginning, None):
            self.send(transfer.mac, transfer.key, packet)

    def _end(self, transfer: _Transfer) -> None:
        del self.transfers[transfer.key]
        del self._of_guest[transfer.key[:3]]
        transfer.octets.file.close()


@define
class _Octets:
    """A file in order, each byte once; as text its lines end as the network has it (RFC 764)."""

    file: OpenedFile
    is_text: bool
    _offset: int = 0
    _converted: bytes = b""

    def take(self, count: int) -> bytes:
        """As many as asked for, fewer only at the end."""
        if not self.is_text:
            return self._read(count)
        while len(self._converted) < count and (octets := self._read(count)):
            octets = octets.replace(b"\r", b"\r\0").replace(b"\n", b"\r\n")
            self._converted += octets
        taken, self._converted = self._converted[:count], self._converted[count:]
        return taken

    def _read(self, count: int) -> bytes:
        octets = self.file.read(self._offset, count)
        self._offset += len(octets)
        return octets


def _agree(options: Mapping[bytes, bytes], size: int | None, mtu: int) -> _Terms:
    """What of it we do, in the guest's order; what has no sense is as if it were not there."""
    answer: dict[bytes, bytes] = {}
    block_size, window, timeout = BLOCK_SIZE, 1, None
    asked = _number(options.get(b"blksize"))
    if BLOCK_MINIMUM <= asked <= BLOCK_MAXIMUM:
        block_size = min(asked, mtu - _HEADERS)
        answer[b"blksize"] = b"%d" % block_size
    if b"tsize" in options and size is not None:
        answer[b"tsize"] = b"%d" % size
    asked = _number(options.get(b"timeout"))
    if SECOND <= asked <= TIMEOUT_MAXIMUM:
        timeout = float(asked)
        answer[b"timeout"] = b"%d" % asked
    asked = _number(options.get(b"windowsize"))
    if 1 <= asked <= 65535:
        window = min(asked, WINDOW_BLOCKS, max(1, WINDOW_OCTETS // block_size))
        answer[b"windowsize"] = b"%d" % window
    in_order = {name: answer[name] for name in options if name in answer}
    return _Terms(in_order, block_size, window, timeout)


def _number(text: bytes | None) -> int:
    """A decimal number; 0 where it is none."""
    return int(text) if text is not None and text.isdigit() and len(text) < 9 else 0
