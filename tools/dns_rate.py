"""Questions for names a second, through one server: answered from its cache, and each upstream.

    python -m tools.dns_rate                        # this tree
    python -m tools.dns_rate --tree ../before       # the same guest against another tree's server

The guest is a script that speaks to the server's socket as QEMU does, so that it is never what is
measured: its frames are made before the clock runs, and of what it hears it counts frames. It
keeps `WINDOW` questions under way. The resolver is a process on the loopback that answers
everything. Written are questions answered a second, and the server's own processor time for one.
"""

import argparse
import os
import shlex
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import Process
from pathlib import Path

import dns.message
import dns.rrset

WINDOW = 256
"""Questions under way: of many guests, or of one that is busy."""

PATIENCE = 2.0  # seconds without an answer, and what is under way counts as lost

GUEST, NAMESERVER = "10.0.2.15", "10.0.2.3"
GUEST_MAC, GATEWAY_MAC = bytes.fromhex("525400123456"), bytes.fromhex("52550a000202")

CACHED, UPSTREAM = "from the cache", "each upstream"


def _checksum(octets: bytes) -> int:
    total = sum(int(word) for (word,) in struct.iter_unpack(">H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _frame(question: bytes, port: int) -> bytes:
    """As the stream carries it; without a UDP checksum (RFC 768)."""
    datagram = struct.pack(">HHHH", port, 53, 8 + len(question), 0) + question
    addresses = socket.inet_aton(GUEST) + socket.inet_aton(NAMESERVER)
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(datagram), 0, 0, 64, 17, 0) + addresses
    header = header[:10] + struct.pack(">H", _checksum(header)) + header[12:]
    frame = GATEWAY_MAC + GUEST_MAC + b"\x08\0" + header + datagram
    return struct.pack(">I", len(frame)) + frame


def _frames(count: int, names: int) -> list[bytes]:
    """Questions for so many names in turn."""
    template = dns.message.make_query("n0000000.rate.example", "A", use_edns=0, id=0).to_wire()
    frames = []
    for n in range(count):
        name = b"n%07d" % (n % names)
        question = (n & 0xFFFF).to_bytes(2, "big") + template[2:13] + name + template[21:]
        frames.append(_frame(question, 20_000 + n % 1000))
    return frames


def _answer_everything(sock: socket.socket) -> None:
    """A resolver: the same record for every name, for an hour."""
    query = dns.message.make_query("n0000000.rate.example", "A", use_edns=0)
    response = dns.message.make_response(query, True)
    response.answer.append(
        dns.rrset.from_text("n0000000.rate.example.", 3600, "IN", "A", "192.0.2.1")
    )
    wire = response.to_wire()
    ends = len(query.to_wire()) - 11  # behind the question
    flags, rest = wire[2:12], wire[ends:]
    while True:
        question, peer = sock.recvfrom(4096)
        sock.sendto(question[:2] + flags + question[12:ends] + rest, peer)


@contextmanager
def resolver(port: int = 0) -> Iterator[int]:
    """The port of a running one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        sock.bind(("127.0.0.1", port))
        process = Process(target=_answer_everything, args=(sock,))
        process.start()
        try:
            yield sock.getsockname()[1]
        finally:
            process.terminate()
            process.join()


def _processor_time(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def server(
    tree: Path, upstream: int, folder: str, options: Sequence[str] = ()
) -> Iterator[tuple[int, socket.socket]]:
    """A running one: its process, and a guest's socket to it."""
    path = f"{folder}/guest.sock"
    words = [sys.executable, "-m", "qemu_usernat", "serve", "--listen", f"unix:{path}"]
    words += ["--dns", f"127.0.0.1:{upstream}", *options]
    process = subprocess.Popen(words, cwd=tree, stdout=subprocess.DEVNULL)
    try:
        with socket.socket(socket.AF_UNIX) as guest:
            guest.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
            for _ in range(100):
                if guest.connect_ex(path) == 0:
                    break
                time.sleep(0.1)
            yield process.pid, guest
    finally:
        process.terminate()
        process.wait()
        Path(path).unlink(missing_ok=True)


def _heard(guest: socket.socket, left: bytearray) -> int:
    """How many whole frames have come."""
    left += guest.recv(1 << 20)
    frames, at = 0, 0
    while at + 4 <= len(left):
        end = at + 4 + int.from_bytes(left[at : at + 4], "big")
        if end > len(left):
            break
        frames, at = frames + 1, end
    del left[:at]
    return frames


def measure(pid: int, guest: socket.socket, frames: list[bytes]) -> tuple[float, float, int]:
    """Answers a second, the server's seconds for one, and how many questions were not answered."""
    left, answered, lost, under_way, sent = bytearray(), 0, 0, 0, 0
    guest.settimeout(PATIENCE)
    spent, began = _processor_time(pid), time.monotonic()
    while sent < len(frames) or under_way:
        room = min(WINDOW - under_way, len(frames) - sent)
        # Half a window at once: a guest that says each by itself measures its own system calls.
        if room >= WINDOW // 2 or (room and sent + room == len(frames)):
            guest.sendall(b"".join(frames[sent : sent + room]))
            sent, under_way = sent + room, under_way + room
        try:
            count = _heard(guest, left)
        except TimeoutError:
            lost, under_way = lost + under_way, 0
            continue
        answered, under_way = answered + count, max(0, under_way - count)
    duration = time.monotonic() - began - (PATIENCE if lost else 0)
    return answered / duration, (_processor_time(pid) - spent) / max(1, answered), lost


def main() -> None:
    """Some rounds of both, and their medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tree", type=Path, action="append", help="whose server, instead of ours")
    parser.add_argument("--options", default="", help="further options of `serve`, as one word")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=40_000)
    arguments = parser.parse_args()
    trees, options = arguments.tree or [Path()], shlex.split(arguments.options)
    count = arguments.questions
    work = {CACHED: _frames(count, 100), UPSTREAM: _frames(count, count)}
    results: dict[tuple[Path, str], list[tuple[float, float, int]]] = {}
    with tempfile.TemporaryDirectory() as folder, resolver() as port:
        for _ in range(arguments.rounds):
            for tree in trees:
                for what, frames in work.items():
                    with server(tree, port, folder, options) as (pid, guest):
                        measure(pid, guest, frames[:1000])
                        found = measure(pid, guest, frames[1000:])
                    results.setdefault((tree, what), []).append(found)
    print("| tree | questions | a second | server's time for one, µs | unanswered |")
    print("|---|---|---|---|---|")
    for (tree, what), runs in results.items():
        rate, spent, lost = (statistics.median(run[n] for run in runs) for n in range(3))
        print(f"| {tree} | {what} | {rate:,.0f} | {spent * 1e6:.0f} | {lost:,.0f} |")


if __name__ == "__main__":
    main()
