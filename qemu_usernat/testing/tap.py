"""A TAP device in a network namespace of its own, on the stream wire: QEMU's part, played small.

It owns the namespace, the device, and the carrying of frames between device and wire. It refuses
to know addresses and routes, which `namespace` sets from outside.

A program of its own, of the standard library alone, so that it starts in no time:
``python -I -S tap.py DESCRIPTOR``, where the descriptor is a connected stream socket. It writes a
line when the device is there, and ends when the wire does or when its standard input is closed.
Namespace and device have no name outside and no other owner, so they end with it, whatever
killed it.
"""

import contextlib
import ctypes
import fcntl
import os
import select
import socket
import struct
import sys

CLONE_NEWNET = 0x40000000  # linux/sched.h
TUNSETIFF = 0x400454CA  # linux/if_tun.h
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000  # linux/if_tun.h
DEVICE = "tap0"

FRAME_MAXIMUM = 69632  # bytes, QEMU's own limit
BATCH = 256 * 1024  # bytes gathered from the device for one write to the wire
LENGTH = struct.Struct(">I")


def enter_new_namespace() -> None:
    """Leave the host's network for an empty one (unshare(2); needs CAP_SYS_ADMIN)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "a network namespace")


def open_tap() -> int:
    """A descriptor that gives and takes one Ethernet frame at a time."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TAP | IFF_NO_PI))
    return tap


class Pump:
    """Frames from the device to the wire and back; neither direction waits for the other."""

    def __init__(self, tap: int, wire: socket.socket) -> None:
        self._tap = tap
        self._wire = wire
        self._gathered = memoryview(bytearray(BATCH + FRAME_MAXIMUM + LENGTH.size))
        self._pending = self._gathered[:0]
        self._arrived = memoryview(bytearray(BATCH + FRAME_MAXIMUM + LENGTH.size))
        self._have = 0

    def run(self, life: int) -> None:
        """Carry until the wire ends, or `life` does."""
        wire = self._wire.fileno()
        poller = select.poll()
        poller.register(life, select.POLLIN)
        while True:
            # A full wire stops the device: what its queue cannot hold, the guest's kernel drops.
            poller.register(self._tap, 0 if self._pending else select.POLLIN)
            poller.register(wire, select.POLLIN | (select.POLLOUT if self._pending else 0))
            ready = dict(poller.poll())
            if life in ready:
                return
            if ready.get(self._tap, 0) & select.POLLIN:
                self._gather()
            if self._pending:
                self._send()
            if ready.get(wire, 0) & ~select.POLLOUT and not self._receive():
                return

    def _gather(self) -> None:
        used = 0
        while used < BATCH:
            start = used + LENGTH.size
            try:
                length = os.readv(self._tap, [self._gathered[start : start + FRAME_MAXIMUM]])
            except BlockingIOError:
                break
            LENGTH.pack_into(self._gathered, used, length)
            used = start + length
        self._pending = self._gathered[:used]

    def _send(self) -> None:
        try:
            self._pending = self._pending[self._wire.send(self._pending) :]
        except BlockingIOError:
            return

    def _receive(self) -> bool:
        try:
            received = self._wire.recv_into(self._arrived[self._have :])
        except BlockingIOError:
            return True
        self._have += received
        at = 0
        while self._have - at >= LENGTH.size:
            start = at + LENGTH.size
            (length,) = LENGTH.unpack_from(self._arrived, at)
            if not 0 < length <= FRAME_MAXIMUM:
                raise SystemExit(f"a frame of {length} bytes came over the wire")
            if self._have - start < length:
                break
            at = start + length
            with contextlib.suppress(OSError):  # EIO: the device is down; EINVAL: no frame
                os.write(self._tap, self._arrived[start:at])
        self._arrived[: self._have - at] = self._arrived[at : self._have]
        self._have -= at
        return received > 0


def main() -> None:
    """Join a new namespace's device to the wire that was inherited."""
    wire = socket.socket(fileno=int(sys.argv[1]))
    wire.setblocking(False)
    enter_new_namespace()
    pump = Pump(open_tap(), wire)
    print(DEVICE, flush=True)
    try:
        pump.run(sys.stdin.fileno())
    except (BrokenPipeError, ConnectionResetError):
        return


if __name__ == "__main__":
    main()
