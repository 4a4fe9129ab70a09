"""Redirects under a guest's kernel: it talks to whom it asks for, and somebody else answers."""

import socket
from pathlib import Path

import pytest

from qemu_usernat.testing.namespace import SOCKET_TIMEOUT
from tests.kernel.laboratory import HOST, Laboratory, carry, listen, some_octets
from tests.kernel.test_names import Resolver

pytestmark = pytest.mark.kernel

ADDRESS = "203.0.112.1"
"""A public one; all that is meant for it stays here."""


def _configuration(folder: Path, *tables: tuple[str, str, str]) -> list[str]:
    file = folder / "redirects.toml"
    lines = (f'[[redirect]]\nfrom = "{a}"\non = "{on}"\nto = "{to}"\n' for a, on, to in tables)
    file.write_text("".join(lines))
    return ["--config", str(file)]


def test_a_name_a_datagram_and_an_address_are_somewhere_else(
    lab: Laboratory, tmp_path: Path
) -> None:
    """A name leads to a port of the host, an address of the own network to a unix socket, both with
    half-closes and a mebibyte; a datagram is answered from where it was sent."""
    resolver, octets = Resolver(ADDRESS), some_octets(1 << 20)
    with (
        resolver.runs() as where,
        listen() as mirror,
        socket.socket(socket.AF_UNIX) as program,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as clock,
    ):
        program.bind(str(tmp_path / "program.sock"))
        program.listen()
        clock.bind((HOST, 0))
        for end in (program, clock):
            end.settimeout(SOCKET_TIMEOUT)
        tables = (
            ("mirror.example", "tcp/80", f"127.0.0.1:{mirror.getsockname()[1]}"),
            ("10.0.2.100", "tcp/9100", f"unix:{tmp_path / 'program.sock'}"),
            (ADDRESS, "udp/123", f"127.0.0.1:{clock.getsockname()[1]}"),
        )
        options = ("--dns", where, *_configuration(tmp_path, *tables))
        guest = lab.guest(1500, server=lab.own_server(1500, *options))
        guest.run(["dig", "+tries=1", "+time=5", "@10.0.2.3", "mirror.example"])
        for asked, listener in (((ADDRESS, 80), mirror), (("10.0.2.100", 9100), program)):
            ours = lab.ends.enter_context(guest.connect(asked))
            theirs = lab.ends.enter_context(listener.accept()[0])
            theirs.settimeout(SOCKET_TIMEOUT)
            assert ours.getpeername() == asked
            carry(octets, ours, theirs)
            carry(octets, theirs, ours)
        with guest.open_socket(socket.SOCK_DGRAM) as ours:
            ours.connect((ADDRESS, 123))  # which hears nobody else
            for question in (b"first", b"again"):
                ours.send(question)
                heard, peer = clock.recvfrom(99)
                assert heard == question
                clock.sendto(b"noon", peer)
                assert ours.recv(99) == b"noon"


def test_a_program_that_is_gone_refuses(lab: Laboratory, tmp_path: Path) -> None:
    """Nobody at the unix socket, and none there: both at once, and not after a minute. The log has
    why, once for each, however often a guest tries."""
    with socket.socket(socket.AF_UNIX) as program:
        program.bind(str(tmp_path / "deaf.sock"))
        tables = (
            ("10.0.2.100", "tcp/1", f"unix:{tmp_path / 'deaf.sock'}"),
            ("10.0.2.100", "tcp/2", f"unix:{tmp_path / 'none.sock'}"),
        )
        server = lab.own_server(1500, *_configuration(tmp_path, *tables))
        guest = lab.guest(1500, server=server)
        for port in (1, 2, 1, 2):
            with pytest.raises(ConnectionRefusedError):
                guest.connect(("10.0.2.100", port))
        log = server.words()
    reasons = ("1", "deaf.sock", "Connection refused"), ("2", "none.sock", "No such file or")
    for asked, name, why in reasons:
        (line,) = (each for each in log.splitlines() if "redirect failed" in each and name in each)
        assert why in line
        assert f"asked=10.0.2.100:{asked} " in line
