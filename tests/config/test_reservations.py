"""Reservations as a person writes them, and every way to write them wrong."""

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from qemu_usernat.config import Config, parse_endpoint, read_config
from qemu_usernat.config.reservations import Reservation
from qemu_usernat.primitives.addresses import parse_mac
from qemu_usernat.primitives.errors import UserError

WEB = '[[reservation]]\nmac = "52:54:00:00:00:0a"\naddress = "10.0.2.10"\n'


def read(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "net.toml"
    file.write_text(text)
    return read_config(file, {}, listen=parse_endpoint("unix:/nowhere"))


def test_a_machine_has_an_address_and_perhaps_a_name(tmp_path: Path) -> None:
    """One table each, also for an address outside of the leases."""
    config = read(
        tmp_path,
        WEB + 'name = "Web"\n[[reservation]]\nmac = "52-54-00-00-00-0B"\naddress = "10.0.2.200"\n'
        '[network]\nlast_lease = "10.0.2.99"\n',
    )
    assert config.network.reservations == (
        Reservation(parse_mac("52:54:00:00:00:0a"), IPv4Address("10.0.2.10"), "web"),
        Reservation(parse_mac("52:54:00:00:00:0b"), IPv4Address("10.0.2.200")),
    )


MAC = 'mac = "52:54:00:00:00:0b"'
ADDRESS = 'address = "10.0.2.11"'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reservation = 5", 'net.toml: key "reservation" is 5; allowed: tables with "mac"'),
        ("[reservation]\n" + MAC, 'key "reservation" is a table; allowed: tables with "mac"'),
        (f"{WEB}[[reservation]]\n{ADDRESS}", 'key "reservation": number 2 has no "mac"'),
        (f"{WEB}[[reservation]]\n{MAC}", 'number 2 has no "address"; allowed: tables with'),
        (f"{WEB}host = 'a'", 'number 1: key "host" is not known; allowed: mac, address, name'),
        ("[[reservation]]\nmac = 5", 'number 1 has no "address"'),
        (
            f"[[reservation]]\nmac = 5\n{ADDRESS}",
            'number 1: "mac" is 5; allowed: the MAC address of one machine, like 52:54:00:12:34:56',
        ),
        (f"[[reservation]]\nmac = 'ff:ff:ff:ff:ff:ff'\n{ADDRESS}", '"mac" is "ff:ff:ff:ff:ff:ff"'),
        (f"[[reservation]]\nmac = '52:54:00'\n{ADDRESS}", '"mac" is "52:54:00"; allowed: the MAC'),
        (f"[[reservation]]\n{MAC}\naddress = 'fd00::1'", '"address" is "fd00::1"; allowed: an'),
        (f"{WEB}name = 'a.b'", '"name" is "a.b"; allowed: one label of letters, digits and'),
        (f"{WEB}name = ''", '"name" is ""; allowed: one label'),
        (f"{WEB}name = '-a'", '"name" is "-a"; allowed: one label'),
        (f"{WEB}{WEB}", 'number 2: "mac" is "52:54:00:00:00:0a", as in number 1; allowed: each'),
        (
            f'{WEB}[[reservation]]\n{MAC}\naddress = "10.0.2.10"',
            'number 2: "address" is "10.0.2.10", as in number 1; allowed: each only once',
        ),
        (
            f'{WEB}name = "a"\n[[reservation]]\n{MAC}\n{ADDRESS}\nname = "A"',
            'number 2: "name" is "a", as in number 1; allowed: each only once',
        ),
        (
            f"[[reservation]]\n{MAC}\naddress = '10.0.3.1'",
            'net.toml: key "reservation" is 10.0.3.1 for 52:54:00:00:00:0b; allowed: an address '
            "inside 10.0.2.0/24 that is neither the gateway's (10.0.2.2) nor the nameserver's",
        ),
        (f"[[reservation]]\n{MAC}\naddress = '10.0.2.2'", "is 10.0.2.2 for 52:54:00:00:00:0b; "),
        (f"[[reservation]]\n{MAC}\naddress = '10.0.2.3'", "is 10.0.2.3 for 52:54:00:00:00:0b; "),
        (f"[[reservation]]\n{MAC}\naddress = '10.0.2.0'", "is 10.0.2.0 for 52:54:00:00:00:0b; "),
        (f"[[reservation]]\n{MAC}\naddress = '10.0.2.255'", "is 10.0.2.255 for 52:54:00:00:00"),
        *(
            (
                f"[[reservation]]\n{MAC}\n{ADDRESS}\nname = '{name}'\n"
                "[[record]]\nname = 'db'\ntype = 'A'\ndata = '10.0.2.9'",
                f'is "{name}" for 52:54:00:00:00:0b; allowed: a name that is neither',
            )
            for name in ("gateway", "dns", "localhost", "db")
        ),
        (
            f"[[reservation]]\nmac = '52:55:0a:00:02:02'\n{ADDRESS}",
            "allowed: a MAC address other than the gateway's",
        ),
    ],
)
def test_a_mistake_names_the_table_and_what_is_allowed(
    tmp_path: Path, text: str, message: str
) -> None:
    """Whoever reads the message can mend the file without opening the manual."""
    with pytest.raises(UserError) as refusal:
        read(tmp_path, text)
    assert message in str(refusal.value)
