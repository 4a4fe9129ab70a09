"""Names of the user's own as a person writes them, and every way to write them wrong."""

from pathlib import Path

import dns.name
import dns.rdatatype
import pytest

from qemu_usernat.config import Config, parse_endpoint, read_config
from qemu_usernat.primitives.errors import UserError

DOMAIN = dns.name.from_text("lab.internal")
WEB = '[[record]]\nname = "web"\ntype = "A"\ndata = "192.168.1.5"\n'


def read(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "net.toml"
    file.write_text(text)
    return read_config(file, {}, listen=parse_endpoint("unix:/nowhere"))


def record(name: str = "web", kind: str = "A", data: str = '"192.168.1.5"', more: str = "") -> str:
    return f'[[record]]\nname = "{name}"\ntype = "{kind}"\ndata = {data}\n{more}\n'


def said(tmp_path: Path, text: str) -> list[tuple[str, int, str, list[str]]]:
    """Name, TTL, type and data, as the zone of `DOMAIN` has them."""
    records = [each.within(DOMAIN) for each in read(tmp_path, text).network.records]
    return [
        (
            each.name.to_text(),
            each.ttl,
            dns.rdatatype.to_text(each.type),
            [rdata.to_text() for rdata in each.data],
        )
        for each in records
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WEB, ("web.lab.internal.", 60, "A", ["192.168.1.5"])),
        (
            record(kind="aaaa", data="['fd00::5', 'fd00::6']", more="ttl = 0"),
            ("web.lab.internal.", 0, "AAAA", ["fd00::5", "fd00::6"]),
        ),
        (record("www.example.com"), ("www.example.com.", 60, "A", ["192.168.1.5"])),
        (record("www.example.com."), ("www.example.com.", 60, "A", ["192.168.1.5"])),
        (
            record("_sip._tcp", "SRV", '"0 5 5060 web"'),
            ("_sip._tcp.lab.internal.", 60, "SRV", ["0 5 5060 web.lab.internal."]),
        ),
        (
            record("10.0.2.5", "PTR", '"web"'),
            ("5.2.0.10.in-addr.arpa.", 60, "PTR", ["web.lab.internal."]),
        ),
        (record("top."), ("top.", 60, "A", ["192.168.1.5"])),
        (record("*"), ("*.lab.internal.", 60, "A", ["192.168.1.5"])),
        (record("*.test"), ("*.test.", 60, "A", ["192.168.1.5"])),
        (
            record("@") + "[network]\ndomain = 'lab.internal'",
            ("lab.internal.", 60, "A", ["192.168.1.5"]),
        ),
        (
            record(kind="CNAME", data="'db'"),
            ("web.lab.internal.", 60, "CNAME", ["db.lab.internal."]),
        ),
        (
            record(kind="CNAME", data="'www.example.com'"),
            ("web.lab.internal.", 60, "CNAME", ["www.example.com."]),
        ),
        (
            record("_sip._tcp.lab.internal", "SRV", "'0 5 5060 sip'"),
            ("_sip._tcp.lab.internal.", 60, "SRV", ["0 5 5060 sip.lab.internal."]),
        ),
        (
            record("5.1.168.192.in-addr.arpa", "PTR", "'web'"),
            ("5.1.168.192.in-addr.arpa.", 60, "PTR", ["web.lab.internal."]),
        ),
        (
            record(kind="TXT", data="'v=spf1 -all'"),
            ("web.lab.internal.", 60, "TXT", ['"v=spf1 -all"']),
        ),
        (
            record(kind="TXT", data='\'"one" "two"\''),
            ("web.lab.internal.", 60, "TXT", ['"one" "two"']),
        ),
        (
            record(kind="TXT", data=f"'{'x' * 300}'"),
            ("web.lab.internal.", 60, "TXT", [f'"{"x" * 255}" "{"x" * 45}"']),
        ),
    ],
)
def test_records_are_written_as_people_write_them(
    tmp_path: Path, text: str, expected: tuple[str, int, str, list[str]]
) -> None:
    """A name without a dot is of the network's domain, any other is whole; text needs no quotes."""
    assert said(tmp_path, text) == [expected]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("record = 5", 'net.toml: key "record" is 5; allowed: tables with "name", "type", "data"'),
        ("[record]\nname = 'a'", 'key "record" is a table; allowed: tables with "name"'),
        (
            WEB + "[[record]]\ntype = 'A'",
            'net.toml: key "record": number 2 has no "name"; allowed:',
        ),
        ("[[record]]\nname = 'a'\ntype = 'A'", 'number 1 has no "data"; allowed: tables with'),
        (
            record(more="addr = 'x'"),
            'number 1: key "addr" is not known; allowed: name, type, data,',
        ),
        (record("d b"), '"name" is "d b"; allowed: a name of letters'),
        (record("."), '"name" is "."; allowed: a name of letters'),
        (record("10.0.2.5"), '"name" is "10.0.2.5"; allowed: a name of letters'),
        (record("1.2", "PTR", '"web"'), "of a PTR an address, like 192.168.1.5"),
        (
            record(kind="TXT", data=f'"{"a" * 16384}"'),
            '"data" is "16449 bytes"; allowed: at most 16384 bytes in all',
        ),
        (
            record("a..b"),
            '"name" is "a..b"; allowed: a name of letters, digits, - and _, like web, www',
        ),
        (record(""), '"name" is ""; allowed: a name'),
        (record("x" * 64), f'"name" is "{"x" * 64}"; allowed: a name'),
        (record(kind="MX"), '"type" is "MX"; allowed: A, AAAA, CNAME, TXT, SRV, PTR'),
        (record(data="'10.0.2'"), '"data" is "10.0.2"; allowed: an IPv4 address, like 192.168.1.5'),
        (record(data="'::1'"), '"data" is "::1"; allowed: an IPv4 address'),
        (record(data="'1.2.3.4 5.6.7.8'"), '"data" is "1.2.3.4 5.6.7.8"; allowed: an IPv4 address'),
        (record(data="5"), '"data" is 5; allowed: an IPv4 address, like 192.168.1.5; or a list'),
        (record(data="[]"), '"data" is []; allowed: an IPv4 address'),
        (record(data="['1.2.3.4', 5]"), '"data" is 5; allowed: an IPv4 address'),
        (record(data=f"{['1.2.3.4'] * 65}"), '"data" is "65 items"; allowed: at most 64'),
        (record(kind="AAAA", data="'1.2.3.4'"), '"data" is "1.2.3.4"; allowed: an IPv6 address'),
        (record(kind="SRV", data="'sip'"), '"data" is "sip"; allowed: priority, weight, port and'),
        (record(kind="SRV", data="'0 0 70000 s'"), '"data" is "0 0 70000 s"; allowed: priority'),
        (record(kind="TXT", data="'é'"), '"data" is "é"; allowed: a text of ASCII'),
        (record(kind="TXT", data="'\"a'"), '"data" is ""a"; allowed: a text of ASCII'),
        (
            record(kind="CNAME", data="['a', 'b']"),
            "\"data\" is ['a', 'b']; allowed: one name, like web or www.example.com: a name is an",
        ),
        (record(more="ttl = -1"), '"ttl" is -1; allowed: seconds from 0 to 2147483647'),
        (record(more="ttl = true"), '"ttl" is True; allowed: seconds'),
        (record(more="ttl = '1h'"), '"ttl" is "1h"; allowed: seconds'),
        (
            WEB + record("web.internal"),
            'net.toml: key "record" is number 2, A of "web.internal"; allowed: one table for a '
            "name and type (see number 1), with a list",
        ),
        (
            WEB + record(kind="CNAME", data="'db'"),
            'number 2, CNAME of "web.internal"; allowed: nothing beside a CNAME (see number 1; RFC',
        ),
        (record(kind="CNAME", data="'web'"), "allowed: a CNAME that does not lead back to itself"),
        (
            record("a", "CNAME", "'b'") + record("b", "CNAME", "'a'"),
            'number 2, CNAME of "b.internal"; allowed: a CNAME that does not lead back to itself',
        ),
        (
            record("gateway"),
            'A of "gateway.internal"; allowed: names that are not the gateway\'s own',
        ),
        (
            record("DNS.internal"),
            "allowed: names that are not the gateway's own, nor below localhost",
        ),
        (
            record("a.localhost"),
            "allowed: names that are not the gateway's own, nor below localhost",
        ),
        (
            "[network]\nsearch = ['a.example', 'b c']",
            'key "network.search" is "b c"; allowed: labels of a-z, 0-9 and inner dashes',
        ),
        ("[network]\nsearch = 5", 'key "network.search" is 5; allowed: a domain name, like'),
        (
            f"[network]\nsearch = {[f'd{n}' for n in range(33)]}",
            'key "network.search" is 33 domains; allowed: at most 32',
        ),
    ],
)
def test_a_mistake_names_the_record_and_what_is_allowed(
    tmp_path: Path, text: str, message: str
) -> None:
    """Whoever reads the message can mend the file without opening the manual."""
    with pytest.raises(UserError) as refusal:
        read(tmp_path, text)
    assert message in str(refusal.value)


def test_many_aliases_in_a_row_are_no_circle(tmp_path: Path) -> None:
    """One that leads to the next is as good as any."""
    text = "".join(record(f"n{n}", "CNAME", f"'n{n + 1}'") for n in range(8))
    assert len(read(tmp_path, text).network.records) == 8


def test_domains_to_search(tmp_path: Path) -> None:
    """One or several, each once, whatever their capitals."""
    network = read(tmp_path, "[network]\nsearch = ['A.example', 'b.example', 'a.example']").network
    assert network.search == ("a.example", "b.example")
    assert read(tmp_path, "[network]\nsearch = 'a.example'").network.search == ("a.example",)
