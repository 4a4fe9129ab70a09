"""Redirects as a person writes them, and every way to write them wrong."""

from pathlib import Path

import pytest

from qemu_usernat.config import Config, parse_endpoint, read_config
from qemu_usernat.config.configuration import implicit_policy
from qemu_usernat.policy.places import NamePlace, Service, parse_place
from qemu_usernat.policy.redirects import HostTarget, Redirect, UnixTarget
from qemu_usernat.primitives.errors import UserError


def read(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "net.toml"
    file.write_text(text)
    return read_config(file, {}, listen=parse_endpoint("unix:/nowhere"))


def redirect(*lines: str) -> str:
    return "\n".join(("[[redirect]]", *lines, ""))


def test_names_and_addresses_lead_to_hosts_and_sockets(tmp_path: Path) -> None:
    """One place or a list of them, a service or none, and where it goes."""
    config = read(
        tmp_path,
        redirect('from = ["pypi.org", "*.PyPI.org"]', 'on = "tcp/443"', 'to = "127.0.0.1:3141"')
        + redirect('from = "8.8.8.8"', 'on = ["udp/53", "tcp/53"]', 'to = "10.1.2.3"')
        + redirect('from = "10.0.2.100"', 'to = "unix:/run/metadata.sock"')
        + redirect('from = "any"', 'on = "tcp"', 'to = "[fd00::1]:80"'),
    )
    assert config.network.redirects == (
        Redirect(
            (NamePlace("pypi.org"), NamePlace("pypi.org", wildcard=True)),
            (Service("tcp", 443, 443),),
            HostTarget(b"\x7f\0\0\1", 3141),
        ),
        Redirect(
            (parse_place("8.8.8.8"),),
            (Service("udp", 53, 53), Service("tcp", 53, 53)),
            HostTarget(b"\x0a\1\2\3", 0),
        ),
        Redirect((parse_place("10.0.2.100"),), (), UnixTarget("/run/metadata.sock")),
        Redirect(
            (parse_place("any"),),
            (Service("tcp"),),
            HostTarget(bytes.fromhex("fd00") + bytes(13) + b"\1", 80),
        ),
    )
    assert [str(each.target) for each in config.network.redirects] == [
        "127.0.0.1:3141",
        "10.1.2.3",
        "unix:/run/metadata.sock",
        "[fd00::1]:80",
    ]


A, TO = 'from = "a.example"', 'to = "127.0.0.1:80"'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("redirect = 5", 'net.toml: key "redirect" is 5; allowed: tables with "from", "to"'),
        (redirect(A), 'key "redirect": number 1 has no "to"; allowed: tables with "from"'),
        (redirect(TO), 'number 1 has no "from"'),
        (redirect(A, TO) + redirect(A, TO, "port = 5"), 'number 2: key "port" is not known; allow'),
        (redirect("from = 5", TO), '"from" is 5; allowed: an address, a network ("10.0.0.0/8")'),
        (redirect("from = []", TO), '"from" is []; allowed: an address'),
        (redirect('from = "*.com"', TO), '"from" is "*.com"; allowed: an address'),
        (redirect('from = "dns"', TO), '"from" is "dns"; allowed: an address'),
        (redirect('from = "public"', TO), '"from" is "public"; allowed: an address'),
        (redirect(A, 'on = "icmp"', TO), '"on" is "icmp"; allowed: "tcp/443", "udp/1000-2000"'),
        (redirect(A, 'on = "https"', TO), '"on" is "https"; allowed: "tcp/443"'),
        (redirect(A, "on = []", TO), '"on" is []; allowed: "tcp/443"'),
        (redirect(A, "to = 80"), '"to" is 80; allowed: ADDRESS, ADDRESS:PORT ([IPV6]:PORT), or'),
        (redirect(A, 'to = "localhost:80"'), '"to" is "localhost:80"; allowed: ADDRESS'),
        (redirect(A, 'to = "127.0.0.1:0"'), '"to" is "127.0.0.1:0"; allowed: ADDRESS'),
        (redirect(A, 'to = "127.0.0.1:65536"'), '"to" is "127.0.0.1:65536"; allowed: ADDRESS'),
        (redirect(A, 'to = "127.0.0.1:"'), '"to" is "127.0.0.1:"; allowed: ADDRESS'),
        (redirect(A, 'to = "0.0.0.0:80"'), '"to" is "0.0.0.0:80"; allowed: ADDRESS'),
        (redirect(A, 'to = "224.0.0.1:80"'), '"to" is "224.0.0.1:80"; allowed: ADDRESS'),
        (redirect(A, 'to = "[::1]x80"'), '"to" is "[::1]x80"; allowed: ADDRESS'),
        (redirect(A, 'to = "[::1]:0"'), '"to" is "[::1]:0"; allowed: ADDRESS'),
        (redirect(A, 'to = "unix:here"'), '"to" is "unix:here"; allowed: ADDRESS'),
        (redirect(A, f'to = "unix:/{"x" * 200}"'), "the path has 201 bytes, the system allows 107"),
        (
            redirect(A, 'on = "udp/53"', 'to = "unix:/a"'),
            '"to" is "unix:/a", to which only TCP goes; allowed beside it for "on": "tcp" or',
        ),
        (redirect(A, 'on = "53"', 'to = "unix:/a"'), "to which only TCP goes"),
        (redirect(A, 'to = "[::1]:80"'), '"to" is "[::1]:80", and over IPv6 only TCP goes; allow'),
        (
            redirect('from = "10.0.2.255"', TO),
            'key "redirect" is from 10.0.2.255; allowed: inside 10.0.2.0/24 an address that',
        ),
        (
            redirect('from = "10.0.2.9"', TO)
            + '[[reservation]]\nmac = "52:54:00:00:00:0a"\naddress = "10.0.2.9"',
            "is from 10.0.2.9; allowed: inside 10.0.2.0/24 an address that a machine may have and",
        ),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(tmp_path: Path, text: str, message: str) -> None:
    """The file, the table and the key are in the message."""
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)
    assert str(tmp_path / "net.toml") in str(caught.value)


def test_without_a_policy_what_is_redirected_may_be_asked_for(tmp_path: Path) -> None:
    """Though it be of the floor, as the metadata service is: it goes only where it is led."""
    network = read(
        tmp_path,
        redirect('from = "169.254.169.254"', 'on = "tcp/80"', 'to = "127.0.0.1:8080"')
        + redirect('from = "10.0.2.2"', 'to = "unix:/a"')
        + redirect(A, TO),
    ).network
    assert str(implicit_policy(network)).splitlines() == [
        "allow 169.254.169.254 on tcp/80",
        "allow 10.0.2.2 on tcp",
        "default allow",
    ]
