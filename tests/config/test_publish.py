"""Publications as a person writes them, and every way to write them wrong."""

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from qemu_usernat.config import Config, Publication, parse_endpoint, parse_publication, read_config
from qemu_usernat.primitives.errors import UserError

LOCAL = IPv4Address("127.0.0.1")


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("8080:80", {"host_port": 8080, "guest_port": 80}),
        ("tcp:8080:80", {"host_port": 8080, "guest_port": 80}),
        ("udp:5353:53", {"protocol": "udp", "host_port": 5353, "guest_port": 53}),
        ("127.0.0.1:0:80", {"host_address": LOCAL, "guest_port": 80}),
        ("8000-8009:80", {"host_port": 8000, "count": 10, "guest_port": 80}),
        (
            "8080:10.0.2.15:80",
            {"host_port": 8080, "guest": IPv4Address("10.0.2.15"), "guest_port": 80},
        ),
        ("8080:Web:80", {"host_port": 8080, "guest": "web", "guest_port": 80}),
        (
            "udp:127.0.0.1:5000-5001:web-1:6000",
            {
                "protocol": "udp",
                "host_address": LOCAL,
                "host_port": 5000,
                "count": 2,
                "guest": "web-1",
                "guest_port": 6000,
            },
        ),
        (
            "[::1]:8080:80",
            {"host_address": IPv6Address("::1"), "host_port": 8080, "guest_port": 80},
        ),
        (
            "tcp:[::]:8080:web:80",
            {
                "host_address": IPv6Address("::"),
                "host_port": 8080,
                "guest": "web",
                "guest_port": 80,
            },
        ),
        ("unix:/run/web.sock:80", {"path": "/run/web.sock", "guest_port": 80}),
        ("unix:/run/web.sock:web:80", {"path": "/run/web.sock", "guest": "web", "guest_port": 80}),
        ("unix:/run/a:b/c.sock:80", {"path": "/run/a:b/c.sock", "guest_port": 80}),
        ("unix:web.sock:80", {"path": "web.sock", "guest_port": 80}),
    ],
)
def test_a_publication_is_two_places(text: str, fields: dict[str, Any]) -> None:
    """Where on the host, everywhere and over TCP if nothing else is said; and where at a guest."""
    assert parse_publication(text) == Publication(**fields)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("80", "the guest's port is missing"),
        ("", "the guest's port is missing"),
        ("8080:", '"" is not a port from 1 to 65535'),
        ("8080:0", '"0" is not a port from 1 to 65535'),
        ("8080:http", '"http" is not a port'),
        ("65536:80", '"65536" is not a port from 0 to 65535'),
        ("-1:80", '"" is not a port from 1 to 65535'),
        ("8080-8000:80", '"8080-8000" ends before it begins'),
        ("0-5:80", '"0" is not a port from 1 to 65535'),
        ("8000-8010:65530", "11 ports from 65530 on end beyond 65535"),
        ("sctp:8080:80", '"sctp" is neither a protocol (tcp, udp; unix with a path) nor an addr'),
        ("sctp:127.0.0.1:8080:80", '"sctp" is neither a protocol (tcp, udp;'),
        ("tcp:web:8080:80", '"web" is neither a protocol'),
        ("localhost:8080:80", '"localhost" is a name: write 127.0.0.1, or [::1]'),
        ("udp:localhost:8080:80", '"localhost" is a name: write 127.0.0.1'),
        ("300.0.0.1:8080:80", '"300.0.0.1" is not an address of the host'),
        ("::1:8080:80", "an IPv6 address stands in brackets, like [::1]:8080:80"),
        ("udp:fe80::1:8080:80", "an IPv6 address stands in brackets, like"),
        ("8080:80/udp", 'the protocol stands in front: "udp:8080:80"'),
        ("127.0.0.1:8000-8009:80/TCP", 'in front: "tcp:127.0.0.1:8000-8009:80"'),
        ("8080:tcp:80", '"tcp" is no guest, but of the form of the host\'s place'),
        ("unix:/run/a.sock:UDP:80", '"UDP" is no guest'),
        ("[127.0.0.1]:8080:80", "an IPv6 address stands in brackets, and no other"),
        ("[::1]:80", "the host's port is missing"),
        ("224.0.0.1:8080:80", "224.0.0.1 is a group's address"),
        ("8080:a.b:80", '"a.b" is neither an IPv4 address nor a name of one label'),
        ("8080:10.0.2:80", "is neither an IPv4 address nor a name"),
        ("8080:80:90", '"80" is neither an IPv4 address nor a name of one label'),
        ("8080::80", '"" is neither an IPv4 address nor'),
        ("unix::80", "the path is missing"),
        ("unix:/a\0b:80", "a path cannot hold a NUL"),
        (f"unix:/{'a' * 107}:80", "the path has 108 bytes, the system allows 107"),
    ],
)
def test_what_is_wrong_is_said_with_what_is_allowed(text: str, why: str) -> None:
    """And with the text as it was written."""
    with pytest.raises(UserError) as error:
        parse_publication(text)
    said = str(error.value)
    assert said.startswith(f'"{text}" publishes nothing: ')
    assert why in said
    assert "allowed: [tcp:|udp:][HOST_ADDR:]HOST_PORT[-END]:[GUEST_ADDR:]GUEST_PORT" in said


def test_a_publication_is_told_as_it_is() -> None:
    """Place, guest and ports, for a person."""
    told = {
        "8080:80": "tcp:0.0.0.0:8080 to port 80 of the guest",
        "udp:[::1]:53:web:53": "udp:[::1]:53 to port 53 of web",
        "8000-8001:80": "tcp:0.0.0.0:8000-8001 to port 80-81 of the guest",
        "unix:/run/web.sock:80": "unix:/run/web.sock to port 80 of the guest",
    }
    assert {text: str(parse_publication(text)) for text in told} == told


def read(tmp_path: Path, text: str, **options: Any) -> Config:
    file = tmp_path / "net.toml"
    file.write_text(text)
    return read_config(file, options, listen=parse_endpoint("unix:/nowhere"))


WEB = '[[publish]]\nhost = "127.0.0.1:8080"\nguest = 80\n'


def test_a_table_has_the_two_halves(tmp_path: Path) -> None:
    """A port alone may be a number; a path may hold what an option would split."""
    config = read(
        tmp_path,
        'publish_source = "gateway"\n' + WEB + '[[publish]]\nhost = 8081\nguest = "web:81"\n'
        '[[publish]]\nhost = "unix:/run/a:b"\nguest = "10.0.2.15:80"\n',
    )
    assert config.network.publish_source == "gateway"
    assert config.network.publications == (
        parse_publication("127.0.0.1:8080:80"),
        parse_publication("8081:web:81"),
        Publication(path="/run/a:b", guest=IPv4Address("10.0.2.15"), guest_port=80),
    )


def test_options_replace_the_file(tmp_path: Path) -> None:
    """As they do for other lists."""
    config = read(tmp_path, WEB, publish=("9090:90", "udp:9090:90"))
    assert [each.place for each in config.network.publications] == [
        "tcp:0.0.0.0:9090",
        "udp:0.0.0.0:9090",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("publish = 5", 'net.toml: key "publish" is 5; allowed: tables with "host", [tcp:|udp:]['),
        ("publish = ['8080:80']", 'key "publish" is ["8080:80"]; allowed: tables with'),
        ("[[publish]]\nhost = '::1:8080'\nguest = 80", '"::1": an IPv6 address stands in brack'),
        ("[[publish]]\nhost = 8080\nguest = 'tcp:80'", '"tcp" is no guest'),
        ("publish = '8080:80'", 'key "publish" is "8080:80"; allowed: tables with'),
        ("[publish]\nhost = 8080", 'key "publish" is a table; allowed: tables with'),
        (f"{WEB}[[publish]]\nguest = 80", 'number 2 has no "host"; allowed: tables with "host"'),
        ("[[publish]]\nhost = 8080", 'number 1 has no "guest"; allowed: tables with'),
        (f"{WEB}port = 1", 'number 1: key "port" is not known; allowed: host, guest'),
        (
            "[[publish]]\nhost = true\nguest = 80",
            'number 1: "host" is true (it is neither text nor a port); allowed: [tcp:|udp:][ADDR',
        ),
        (
            "[[publish]]\nhost = 8080\nguest = 0",
            'number 1: "guest" is 0 ("0" is not a port from 1 to 65535); allowed: [ADDRESS or NAME',
        ),
        ("[[publish]]\nhost = '8000-8009'\nguest = 65530", "number 1: 10 ports from 65530 on end"),
        (
            f"{WEB}[[publish]]\nhost = 8080\nguest = 90",
            "tcp:0.0.0.0:8080 is published twice, here and as tcp:127.0.0.1:8080; allowed: each",
        ),
        (
            f"{WEB}[[publish]]\nhost = '127.0.0.1:8000-8100'\nguest = 90",
            "tcp:127.0.0.1:8000-8100 is published twice, here and as tcp:127.0.0.1:8080;",
        ),
        (
            "[[publish]]\nhost = 8080\nguest = '10.9.9.9:80'",
            "is tcp:0.0.0.0:8080 to port 80 of 10.9.9.9; allowed: a guest's address inside "
            "10.0.2.0/24, neither the gateway's (10.0.2.2) nor the nameserver's (10.0.2.3)",
        ),
        ("[[publish]]\nhost = 8080\nguest = '10.0.2.2:80'", "allowed: a guest's address inside"),
        ("publish_source = 'host'", 'key "publish_source" is "host"; allowed: client or gateway'),
        ("publish_source = 5", 'key "publish_source" is 5; allowed: client or gateway'),
    ],
)
def test_a_mistake_names_the_file_the_key_and_what_is_allowed(
    tmp_path: Path, text: str, message: str
) -> None:
    """The number of the table, too, where there are several."""
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{tmp_path}/net.toml: ")


def test_a_mistake_in_an_option_names_the_option(tmp_path: Path) -> None:
    """As all others do."""
    with pytest.raises(UserError, match=r'^--publish: "80" publishes nothing: the guest'):
        read(tmp_path, "", publish=("80",))


def test_what_the_system_chooses_never_clashes() -> None:
    """Port 0 may be asked for any number of times, TCP and UDP have ports of their own, and so
    have IPv4 and IPv6."""
    read_config(
        None,
        {"publish": ("0:80", "0:80", "8080:80", "udp:8080:80", "[::]:8080:80", "10.1.1.1:81:80")},
        listen=parse_endpoint("unix:/nowhere"),
    )
