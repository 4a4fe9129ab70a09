"""The host side of pings: ICMP sockets, of the one kind or the other that the system lets us open.

A datagram ICMP socket needs no privilege where `net.ipv4.ping_group_range` names our group
(icmp(7)); the kernel puts an identifier of its own into what it sends, gives us only the answers to
it, and there is one such socket for each flow. A raw ICMP socket needs CAP_NET_RAW and hears every
echo reply to this host; there is one for all flows, and the identifiers on the wire are ours to
choose and to tell apart.
"""

import errno
import secrets
import socket
import struct
import sys

from attrs import define, field

from qemu_usernat.host.error_queue import (
    ErrorReader,
    forbid_fragments,
    hops_left,
    listen_for_errors,
)
from qemu_usernat.host.refusals import refusal
from qemu_usernat.nat.echo import EchoFlow
from qemu_usernat.poller import BUSY, Poller
from qemu_usernat.primitives.addresses import Address, format_address
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.wire.checksum import checksum
from qemu_usernat.wire.icmp import ECHO_REPLY, ECHO_REQUEST, icmp_message
from qemu_usernat.wire.packets import Buffer

REPLIES_AT_ONCE = 64
"""Replies read from one socket in one go, so that one flood does not starve the others."""

RECEIVE_BUFFER = 1024 * 1024  # bytes

_MESSAGE_MAXIMUM = 65535  # bytes, with the IP header where the socket is raw

_ICMP = socket.IPPROTO_ICMP

_ECHO = struct.Struct(">BBHHH")  # type, code, checksum, identifier, sequence number (RFC 792)
_SOL_RAW, _ICMP_FILTER = 255, 1  # linux/icmp.h
_ALL_BUT_REPLIES = struct.pack("=I", ~(1 << ECHO_REPLY) & 0xFFFFFFFF)

HOW_TO_ALLOW = (
    "guests cannot ping the outside, and are told so (ICMP 3/13): this system lets us open neither "
    "a datagram ICMP socket nor a raw one. To enable the first, for every group: "
    'sysctl -w net.ipv4.ping_group_range="0 2147483647"; the second: run with CAP_NET_RAW'
)
"""What a person is told at start."""


@define(eq=False)
class HostPings:
    """Opens the host's end of echo flows."""

    poller: Poller
    counters: Counters
    errors: ErrorReader
    _raw: "_IcmpSocket | None" = None

    def open(self, flow: EchoFlow) -> None:
        """Give `flow` its end. OSError where the system lets us open no socket for it."""
        try:
            sock = _IcmpSocket(_datagram_socket(), self)
        except OSError:  # not allowed, or not known to this system
            if self._raw is None or self._raw.is_closed:
                self._raw = _IcmpSocket(_raw_socket(), self, is_raw=True)
            sock = self._raw
        flow.host = HostIcmp(flow, sock)


def complaint() -> str | None:
    """What a person should know where this system lets us ping nobody; None where it does."""
    try:
        _datagram_socket().close()
    except OSError:
        try:
            _raw_socket().close()
        except OSError:
            return HOW_TO_ALLOW
    return None


def _datagram_socket() -> socket.socket:
    """One that has an identifier of its own.

    That is the kernel's to choose: it lets two sockets ask for the same one, and then only one of
    them hears the answers to both.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, _ICMP)
    try:
        sock.bind(("", 0))
    except OSError:
        sock.close()
        raise
    return sock


def _raw_socket() -> socket.socket:
    """One that hears echo replies."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _ICMP)
    if sys.platform == "linux":
        sock.setsockopt(_SOL_RAW, _ICMP_FILTER, _ALL_BUT_REPLIES)
    return sock


class _IcmpSocket:
    """A socket, and whose answers it hears: a `Handler` of the poller."""

    def __init__(self, sock: socket.socket, pings: HostPings, *, is_raw: bool = False) -> None:
        self._sock = sock
        self._is_raw = is_raw
        self.is_closed = False
        self._poller = pings.poller
        self._counters = pings.counters
        self._errors = pings.errors
        self._flows: dict[int, EchoFlow] = {}
        """By the identifier on the wire."""
        self._ways: tuple[int, bool] | None = None
        """TTL and DF bit of what is sent, as the socket was told last."""
        try:
            listen_for_errors(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            self._poller.watch(sock, self, read=True)
        except OSError:
            sock.close()
            raise

    # -- flows

    def add(self, flow: EchoFlow) -> int:
        """The identifier under which it asks."""
        if not self._is_raw:
            identifier: int = self._sock.getsockname()[1]
        else:
            identifier = flow.key[1]
            while identifier in self._flows:
                identifier = secrets.randbelow(1 << 16)
        self._flows[identifier] = flow
        return identifier

    def remove(self, identifier: int) -> None:
        """It asks no more. With the last that does, the descriptor is given back: nobody is left to
        read what else this host hears."""
        del self._flows[identifier]
        if not self._flows:
            self.is_closed = True
            self._poller.forget(self._sock)
            self._sock.close()

    # -- towards the world

    def send(self, message: bytes, address: Address, ttl: int, dont_fragment: bool) -> int:
        """Zero, or the errno of sendto(2)."""
        try:
            if (ttl, dont_fragment) != self._ways:
                self._sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
                forbid_fragments(self._sock, dont_fragment)
                self._ways = ttl, dont_fragment
            self._sock.sendto(message, (format_address(address), 0))
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def read_errors(self, now: float, too_large: tuple[Address, int, int] | None = None) -> None:
        """Tell flows what is in the error queue.

        What the kernel itself finds too large it quotes nothing of: `too_large` says what that was,
        its destination, identifier and sequence number.
        """
        for error, peer, _, quoted in self._errors.read(self._sock):
            if len(quoted) >= _ECHO.size:
                _, _, _, identifier, sequence = _ECHO.unpack_from(quoted)
            elif too_large is not None and peer == too_large[0]:
                _, identifier, sequence = too_large
            else:
                continue
            flow = self._flows.get(identifier)
            if flow is not None:
                flow.on_host_error(error, peer, sequence, quoted[_ECHO.size :], now)

    # -- Handler

    def on_readable(self, now: float) -> None:
        """Replies, or errors, have come."""
        count = 0
        try:
            while count < REPLIES_AT_ONCE and not self.is_closed:
                message, ancillary, _, (host, _) = self._sock.recvmsg(_MESSAGE_MAXIMUM, 64)
                count += 1
                self._on_message(message, socket.inet_aton(host), hops_left(ancillary))
        except BlockingIOError:
            if not count:  # then it was an error that was reported
                self.read_errors(now)
        except OSError:
            self.read_errors(now)

    def _on_message(self, message: bytes, source: Address, ttl: int) -> None:
        if self._is_raw:
            message = message[4 * (message[0] & 0xF) :]
        if len(message) < _ECHO.size or checksum(message):
            self._counters.count("icmp.damaged_reply")
            return
        kind, code, _, identifier, sequence = _ECHO.unpack_from(message)
        flow = self._flows.get(identifier)
        if kind == ECHO_REPLY and code == 0 and flow is not None:
            flow.on_host_reply(memoryview(message)[_ECHO.size :], source, sequence, ttl)

    def on_writable(self, now: float) -> None:
        """Never asked for: a request that finds no room is dropped."""

    def on_bug(self, now: float) -> None:
        """One reply was lost, as packets may be."""


@define(eq=False)
class HostIcmp:
    """The end of one flow: a `HostEcho`."""

    flow: EchoFlow
    sock: _IcmpSocket
    identifier: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.identifier = self.sock.add(self.flow)

    def send(
        self,
        payload: Buffer,
        address: Address,
        sequence: int,
        ttl: int,
        dont_fragment: bool,
        now: float,
    ) -> None:
        """Send, or drop and count: a request is not owed to anybody."""
        rest = self.identifier.to_bytes(2, "big") + sequence.to_bytes(2, "big")
        message = icmp_message(ECHO_REQUEST, 0, rest, payload)
        error = self.sock.send(message, address, ttl, dont_fragment)
        if error == errno.EMSGSIZE:
            self.sock.read_errors(now, (address, self.identifier, sequence))
            return
        if error not in (0, *BUSY):
            # It may be about an earlier request, to whomever: that is cleared by the saying, and
            # waits in the queue.
            error = self.sock.send(message, address, ttl, dont_fragment)
        if error:
            said = refusal(error)
            self.flow.counters.count(
                "icmp.send_failed" if said is None else "icmp.send_unreachable"
            )
            if said is not None:
                self.flow.on_host_error(said, address, sequence, b"", now)

    def close(self) -> None:
        """Give the descriptor back."""
        self.sock.remove(self.identifier)
