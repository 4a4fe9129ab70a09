"""The gateway's name server under dig and dnsperf, with resolvers on the host's loopback."""

import re
import shutil
import socketserver
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from attrs import define, field

from qemu_usernat.host.upstream import SOCKETS_MAXIMUM
from qemu_usernat.testing.namespace import NamespaceGuest
from tests.kernel.laboratory import HOST, Laboratory, ServerProcess, until
from tools import dns_rate

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(shutil.which("dig") is None, reason="there is no dig (bind9-dnsutils)"),
]

NAMESERVER = "10.0.2.3"
SOA = "ns.example. hostmaster.example. 1 3600 600 86400 30"


@define(eq=False)
class Resolver:
    """Says one address for every name but those of `nowhere.example`, for half a minute."""

    address: str = "192.0.2.1"
    host: str = HOST
    port: int = 0
    asked: list[tuple[str, str, str]] = field(factory=list)
    """Name, type and transport of each question."""

    def answer(self, wire: bytes, transport: str) -> bytes:
        query = dns.message.from_wire(wire)
        name, kind = query.question[0].name, query.question[0].rdtype
        self.asked.append((name.to_text(), dns.rdatatype.to_text(kind), transport))
        response = dns.message.make_response(query, True)
        if name.to_text().startswith("long"):
            if transport == "udp":
                response.flags |= dns.flags.TC
            else:
                texts = [f'"{number:02} {"x" * 200}"' for number in range(20)]
                response.answer.append(dns.rrset.from_text_list(name, 30, "IN", "TXT", texts))
        elif name.to_text() == "nowhere.example.":
            response.set_rcode(dns.rcode.NXDOMAIN)
            response.authority.append(dns.rrset.from_text("example.", 30, "IN", "SOA", SOA))
        elif kind == dns.rdatatype.A:
            response.answer.append(dns.rrset.from_text(name, 30, "IN", "A", self.address))
        return response.to_wire(max_size=65535)

    @contextmanager
    def runs(self) -> Iterator[str]:
        """ADDRESS:PORT, over both transports."""
        resolver = self

        class Datagram(socketserver.DatagramRequestHandler):
            def handle(self) -> None:
                self.wfile.write(resolver.answer(self.rfile.read(), "udp"))

        class Stream(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                length = int.from_bytes(self.rfile.read(2), "big")
                reply = resolver.answer(self.rfile.read(length), "tcp")
                self.wfile.write(len(reply).to_bytes(2, "big") + reply)

        socketserver.TCPServer.allow_reuse_address = True
        with (
            socketserver.UDPServer((self.host, self.port), Datagram) as datagrams,
            socketserver.ThreadingTCPServer(datagrams.server_address, Stream) as streams,
            ThreadPoolExecutor(2) as pool,
        ):
            for server in (datagrams, streams):
                pool.submit(server.serve_forever, poll_interval=0.01)
            try:
                yield "{}:{}".format(*datagrams.server_address)
            finally:
                datagrams.shutdown()
                streams.shutdown()


def dig(guest: NamespaceGuest, *words: str) -> str:
    """What dig says to a person, asking our name server."""
    return guest.run(["dig", "+tries=1", "+time=5", f"@{NAMESERVER}", *words])


def answers(guest: NamespaceGuest, *words: str) -> list[list[str]]:
    """The records of the answer: name, TTL, class, type, data."""
    lines = dig(guest, "+noall", "+answer", *words).splitlines()
    return [line.split(maxsplit=4) for line in lines if line and not line.startswith(";")]


def test_a_ttl_falls_until_the_resolver_is_asked_again(lab: Laboratory) -> None:
    """dig sees the seconds run down, over UDP and TCP, and the resolver sees one question."""
    resolver = Resolver()
    with resolver.runs() as where:
        guest = lab.guest(1500, server=lab.own_server(1500, "--dns", where))
        first = answers(guest, "www.example")
        assert first == [["www.example.", "30", "IN", "A", "192.0.2.1"]]
        time.sleep(1.1)
        for words in (["www.example"], ["+tcp", "WWW.example"], ["+noedns", "www.example"]):
            [(_, ttl, *rest)] = answers(guest, *words)
            assert 20 <= int(ttl) <= 28
            assert rest == ["IN", "A", "192.0.2.1"]
        assert "NXDOMAIN" in dig(guest, "nowhere.example")
        assert "NXDOMAIN" in dig(guest, "nowhere.example")
    assert resolver.asked == [("www.example.", "A", "udp"), ("nowhere.example.", "A", "udp")]


def test_what_is_cut_short_comes_over_tcp(lab: Laboratory) -> None:
    """dig is told to come back, does so, and has all of it; and once more, from what was kept."""
    resolver = Resolver()
    with resolver.runs() as where:
        guest = lab.guest(1500, server=lab.own_server(1500, "--dns", where))
        for _ in range(2):
            text = dig(guest, "long.example", "TXT")
            assert "Truncated, retrying in TCP mode" in text
            assert text.count('"x') + text.count(" x") >= 20
    assert resolver.asked.count(("long.example.", "TXT", "tcp")) == 1


CONFIG = """
[[record]]
name = "db"
type = "A"
data = "192.168.1.5"
[[record]]
name = "www.example.com"
type = "CNAME"
data = "real.example"
[[record]]
name = "*.test"
type = "TXT"
data = "wild thing"
[[record]]
name = "_sip._tcp.internal"
type = "SRV"
data = "0 5 5060 db"
"""


def test_names_of_the_user_s_own(lab: Laboratory, tmp_path: Path) -> None:
    """Given in the configuration, and answered without a resolver but for what leads outside."""
    config = tmp_path / "net.toml"
    config.write_text(CONFIG)
    resolver = Resolver()
    with resolver.runs() as where:
        server = lab.own_server(1500, "--config", str(config), "--dns", where)
        guest = lab.guest(1500, server=server)
        assert answers(guest, "db.internal") == [["db.internal.", "60", "IN", "A", "192.168.1.5"]]
        assert answers(guest, "-x", "192.168.1.5")[0][3:] == ["PTR", "db.internal."]
        assert answers(guest, "a.b.test", "TXT")[0][3:] == ["TXT", '"wild thing"']
        srv = answers(guest, "_sip._tcp.internal", "SRV")
        assert srv[0][3:] == ["SRV", "0 5 5060 db.internal."]
        assert "NXDOMAIN" in dig(guest, "other.internal")
        assert not resolver.asked
        chain = answers(guest, "www.example.com")
        assert [each[3:] for each in chain] == [["CNAME", "real.example."], ["A", "192.0.2.1"]]
        assert answers(guest, "beside.example.com")[0][4] == "192.0.2.1"
    assert [name for name, _, _ in resolver.asked] == ["real.example.", "beside.example.com."]


@pytest.mark.skipif(shutil.which("dnsperf") is None, reason="there is no dnsperf")
def test_thousands_of_questions_need_few_descriptors(lab: Laboratory, tmp_path: Path) -> None:
    """dnsperf asks for 20,000 names, each of which goes upstream: all are answered, and the server
    holds no more than some sockets towards its resolver."""
    names = tmp_path / "names"
    names.write_text("".join(f"n{n:07}.rate.example A\n" for n in range(20_000)))
    with dns_rate.resolver() as port:
        server = lab.own_server(1500, "--dns", f"{HOST}:{port}")
        guest = lab.guest(1500, server=server)
        answers(guest, "n0000000.rate.example")
        before, most = server.descriptors(), 0
        words = ["dnsperf", "-s", NAMESERVER, "-d", str(names), "-n", "1", "-q", "200", "-t", "5"]
        with ThreadPoolExecutor(1) as pool:
            load = pool.submit(guest.run, words)
            while not load.done():
                most = max(most, server.descriptors())
                time.sleep(0.05)
        text = load.result()
        assert re.search(r"Queries completed:\s+20000 \(100.00%\)", text), text
        assert "NOERROR 20000" in text
        assert most - before <= 2 * SOCKETS_MAXIMUM
        assert server.report()["dns.upstream_failed"] == 0


def _with_own_etc(folder: Path) -> tuple[str, ...]:
    """Runs a program that sees `folder` as /etc, and nobody else does."""
    folder.mkdir()
    for name in ("passwd", "hosts", "nsswitch.conf", "ld.so.cache"):
        if Path("/etc", name).exists():
            shutil.copy(f"/etc/{name}", folder / name)
    script = f'mount --bind {folder} /etc && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", script, "sh")


def test_the_host_s_resolvers_are_followed_while_it_runs(lab: Laboratory, tmp_path: Path) -> None:
    """A VPN puts another resolv.conf in place: within some seconds guests hear what its resolver
    says, also of names that are known from before."""
    # Of the loopback, whose own resolver may be at 127.0.0.53.
    before, after = Resolver("192.0.2.1", "127.77.0.1", 53), Resolver("192.0.2.2", "127.77.0.2", 53)
    etc = tmp_path / "etc"
    server = ServerProcess(tmp_path, 1500, prefix=_with_own_etc(etc))
    (etc / "resolv.conf").write_text("nameserver 127.77.0.1\n")
    with ExitStack() as ends:
        for resolver in (before, after):
            ends.enter_context(resolver.runs())
        server.start()
        ends.callback(server.end)
        guest = lab.guest(1500, server=server)
        assert answers(guest, "www.example")[0][4] == "192.0.2.1"
        assert answers(guest, "www.example")[0][4] == "192.0.2.1"
        new = etc / "new"
        new.write_text("nameserver 127.77.0.2\n")
        new.replace(etc / "resolv.conf")
        until(lambda: answers(guest, "www.example")[0][4] == "192.0.2.2", "the new resolver")
        (etc / "resolv.conf").unlink()
        assert answers(guest, "other.example")[0][4] == "192.0.2.2"
    assert len(before.asked) == 1


DHCP_SCRIPT = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add "$ip/$mask" dev "$interface" && ip route add default via "$router" && env
"""


@pytest.mark.skipif(shutil.which("busybox") is None, reason="there is no busybox for its udhcpc")
def test_guests_find_each_other_by_the_names_that_they_gave(
    lab: Laboratory, tmp_path: Path
) -> None:
    """Two guests, each of which says its name with DHCP: dig finds one from the other, forward and
    back; and both hear which domains to search."""
    script, config = tmp_path / "lease", tmp_path / "net.toml"
    script.write_text(DHCP_SCRIPT)
    script.chmod(0o755)
    config.write_text('[network]\ndomain = "lab.internal"\nsearch = ["corp.example"]\n')
    server = lab.own_server(1500, "--config", str(config))
    found = {}
    for name in ("web", "client"):
        guest = lab.guest(1500, None, server)
        words = ["busybox", "udhcpc", "-i", "tap0", "-s", str(script), "-f", "-q", "-n"]
        output = guest.run([*words, "-x", f"hostname:{name}", "-O", "search"])
        lease = dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
        assert lease["search"] == "lab.internal corp.example"
        found[name] = lease["ip"]
    assert answers(guest, "web.lab.internal")[0][3:] == ["A", found["web"]]
    assert answers(guest, "-x", found["web"])[0][3:] == ["PTR", "web.lab.internal."]
    assert answers(guest, "gateway.lab.internal")[0][4] == "10.0.2.2"
    assert guest.run(["ping", "-c", "1", "-W", "5", found["web"]])
