"""The gateway's DHCP and DNS, used by a real kernel's clients."""

import errno
import shutil
import socket
import socketserver
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import dns.flags
import dns.message
import dns.query
import dns.rdatatype
import dns.rrset
import pytest

from tests.kernel.laboratory import GATEWAY, GUEST, HOST, Laboratory

pytestmark = pytest.mark.kernel

NAMESERVER = "10.0.2.3"
NAME = "kernel.example."
ADDRESS = "192.0.2.7"  # RFC 5737
LONG_NAME = "long.example."
LONG_TEXTS = [f'"{number:02} {"x" * 200}"' for number in range(20)]


def _answer(wire: bytes, *, datagram: bool) -> bytes:
    query = dns.message.from_wire(wire)
    response = dns.message.make_response(query)
    question = query.question[0]
    if question.name.to_text() == LONG_NAME:
        response.answer.append(dns.rrset.from_text_list(LONG_NAME, 60, "IN", "TXT", LONG_TEXTS))
        if datagram:
            response.answer.clear()
            response.flags |= dns.flags.TC
    else:
        response.answer.append(dns.rrset.from_text(NAME, 60, "IN", "A", ADDRESS))
    return response.to_wire()


class _Datagram(socketserver.DatagramRequestHandler):
    def handle(self) -> None:
        self.wfile.write(_answer(self.rfile.read(), datagram=True))


class _Stream(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while length := self.rfile.read(2):
            reply = _answer(self.rfile.read(int.from_bytes(length, "big")), datagram=False)
            self.wfile.write(len(reply).to_bytes(2, "big") + reply)


def _same_port() -> tuple[socketserver.UDPServer, socketserver.ThreadingTCPServer]:
    """Servers at one port: what is free for UDP may not be for TCP, then another one is."""
    while True:
        datagrams = socketserver.UDPServer((HOST, 0), _Datagram)
        try:
            return datagrams, socketserver.ThreadingTCPServer(datagrams.server_address, _Stream)
        except OSError as error:
            datagrams.server_close()
            if error.errno != errno.EADDRINUSE:
                raise


@contextmanager
def resolver() -> Iterator[int]:
    """A resolver on the host's loopback, over UDP and TCP: its port."""
    datagrams, streams = _same_port()
    with (
        datagrams,
        streams,
        ThreadPoolExecutor(2) as pool,
    ):
        for server in (datagrams, streams):
            pool.submit(server.serve_forever, poll_interval=0.01)
        try:
            yield int(datagrams.server_address[1])
        finally:
            datagrams.shutdown()
            streams.shutdown()


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_names_by_either_transport(lab: Laboratory, transport: str) -> None:
    """The guest's name server says what the resolver given by --dns says, and only that one."""
    with resolver() as port:
        guest = lab.guest(1500, server=lab.own_server(1500, "--dns", f"{HOST}:{port}"))
        query = dns.message.make_query(NAME, dns.rdatatype.A)
        if transport == "udp":
            with guest.open_socket(socket.SOCK_DGRAM) as ours:
                response = dns.query.udp(query, NAMESERVER, sock=ours, timeout=5)
        else:
            with guest.connect((NAMESERVER, 53)) as ours:
                response = dns.query.tcp(query, NAMESERVER, sock=ours, timeout=5)
        assert [rrset.to_text() for rrset in response.answer] == [f"{NAME} 60 IN A {ADDRESS}"]


def test_a_long_answer_comes_by_tcp(lab: Laboratory) -> None:
    """What UDP cuts short, the guest asks for again by TCP, and gets whole."""
    with resolver() as port:
        guest = lab.guest(1500, server=lab.own_server(1500, "--dns", f"{HOST}:{port}"))
        query = dns.message.make_query(LONG_NAME, dns.rdatatype.TXT)
        with (
            guest.open_socket(socket.SOCK_DGRAM) as datagrams,
            guest.connect((NAMESERVER, 53)) as stream,
        ):
            response, by_tcp = dns.query.udp_with_fallback(
                query, NAMESERVER, udp_sock=datagrams, tcp_sock=stream, timeout=5
            )
        assert by_tcp
        assert len(response.answer[0]) == len(LONG_TEXTS)


UDHCPC_SCRIPT = """#!/bin/sh
[ "$1" = bound ] && env
exit 0
"""


@pytest.mark.skipif(shutil.which("busybox") is None, reason="there is no busybox for its udhcpc")
@pytest.mark.parametrize("mtu", [65520, 1500])
def test_udhcpc_gets_its_lease(lab: Laboratory, mtu: int, tmp_path: Path) -> None:
    """A common DHCP client finds its address, MTU, router and name server."""
    script = tmp_path / "lease"
    script.write_text(UDHCPC_SCRIPT)
    script.chmod(0o755)
    guest = lab.guest(mtu, None)
    words = ["busybox", "udhcpc", "-i", "tap0", "-s", str(script), "-f", "-q", "-n"]
    words += ["-O", "mtu", "-O", "dns"]
    output = guest.run(words)
    lease = dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
    assert lease["ip"] + "/" + lease["mask"] == GUEST
    assert lease["router"] == GATEWAY
    assert lease["dns"] == NAMESERVER
    assert lease["mtu"] == str(mtu)
