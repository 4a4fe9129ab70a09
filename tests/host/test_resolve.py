"""Finding out which resolvers the host uses, also when that changes."""

from pathlib import Path

from attrs import define, field

from qemu_usernat.host.resolve import LOOK_INTERVAL, SystemResolvers
from qemu_usernat.primitives.addresses import format_address, parse_address


def test_the_system_s_resolvers_are_read(tmp_path: Path) -> None:
    """Name server lines of both families in their order, and nothing else, at most three."""
    file = tmp_path / "resolv.conf"
    file.write_text(
        "# nameserver 192.0.2.99\n"
        "search example\n"
        "nameserver\n"
        "nameserver not-an-address\n"
        "nameserver fe80::1%\n"
        "  nameserver\t127.0.0.53  # the stub\n"
        "nameservers 192.0.2.98\n"
        "nameserver 2001:db8::53\n"
        "options edns0\n"
        "nameserver 192.0.2.3\n"
        "nameserver 192.0.2.4\n"
    )
    assert SystemResolvers(file)() == [
        (parse_address("127.0.0.53"), 53),
        (parse_address("2001:db8::53"), 53),
        (parse_address("192.0.2.3"), 53),
    ]


def test_a_router_is_asked_at_its_interface(tmp_path: Path) -> None:
    """What IPv6 routers say of themselves (RFC 8106) is a link-local address, and where."""
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver fe80::1%eth0\nnameserver fe80::1%wlan0\n")
    address = parse_address("fe80::1")
    assert SystemResolvers(file)() == [(address, 53, "eth0"), (address, 53, "wlan0")]


def test_a_host_without_resolvers_has_none(tmp_path: Path) -> None:
    """No file, an empty one, one that is no text: no resolvers, and no error."""
    file = tmp_path / "resolv.conf"
    assert SystemResolvers(file)() == []
    for content in (b"", b"\xff\xfe\0binary\n"):
        file.write_bytes(content)
        assert SystemResolvers(file)() == []


@define
class HostFile:
    """A resolv.conf that changes, and the time of day."""

    path: Path
    now: float = 100.0
    resolvers: SystemResolvers = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.resolvers = SystemResolvers(self.path, lambda: self.now)

    def name(self, address: str) -> None:
        """A network manager puts a new file in the old one's place."""
        new = self.path.with_suffix(".new")
        new.write_text(f"nameserver {address}\n")
        new.replace(self.path)

    def named(self) -> list[str]:
        """The resolvers, a look's interval later."""
        self.now += LOOK_INTERVAL
        return [format_address(address) for address, *_ in self.resolvers()]


def test_the_host_s_resolvers_are_followed(tmp_path: Path) -> None:
    """The network comes up after us, or becomes another one: no restart is needed."""
    host = HostFile(tmp_path / "resolv.conf")
    assert host.named() == []
    host.name("192.0.2.1")
    assert host.named() == ["192.0.2.1"]
    assert host.named() == ["192.0.2.1"]
    host.name("192.0.2.2")
    assert host.named() == ["192.0.2.2"]


def test_a_file_that_goes_away_leaves_what_it_said(tmp_path: Path) -> None:
    """Between the old file and the new one, names are still found."""
    host = HostFile(tmp_path / "resolv.conf")
    host.name("192.0.2.1")
    assert host.named() == ["192.0.2.1"]
    host.path.unlink()
    assert host.named() == ["192.0.2.1"]
    host.name("192.0.2.2")
    assert host.named() == ["192.0.2.2"]


def test_a_file_that_is_half_written_changes_nothing(tmp_path: Path) -> None:
    """Some write it in place: for a moment it is empty. If it stays so, nobody can be asked."""
    host = HostFile(tmp_path / "resolv.conf")
    host.name("192.0.2.1")
    assert host.named() == ["192.0.2.1"]
    host.path.write_text("# Generated\n")
    assert host.named() == ["192.0.2.1"]
    host.path.write_text("# Generated\nnameserver 192.0.2.2\n")
    assert host.named() == ["192.0.2.2"]
    host.path.write_text("# Generated, offline\n")
    assert host.named() == ["192.0.2.2"]
    assert host.named() == []
    assert host.named() == []
    host.name("192.0.2.3")
    assert host.named() == ["192.0.2.3"]


def test_a_link_that_is_turned_is_followed(tmp_path: Path) -> None:
    """systemd-resolved, resolvconf and others have a link there, and turn it, or what it names."""
    stub, direct = tmp_path / "stub-resolv.conf", tmp_path / "direct-resolv.conf"
    stub.write_text("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch example\n")
    direct.write_text("nameserver 192.0.2.1\n")
    link = tmp_path / "resolv.conf"
    link.symlink_to(stub)
    host = HostFile(link)
    assert host.named() == ["127.0.0.53"]
    new = tmp_path / "new"
    new.symlink_to(direct)
    new.replace(link)
    assert host.named() == ["192.0.2.1"]
    direct.unlink()
    assert host.named() == ["192.0.2.1"]
    direct.write_text("nameserver 192.0.2.2\n")
    assert host.named() == ["192.0.2.2"]


def test_a_change_of_no_consequence_is_none(tmp_path: Path) -> None:
    """A file written anew with the same resolvers gives the same list: nothing is forgotten."""
    host = HostFile(tmp_path / "resolv.conf")
    host.name("192.0.2.1")
    before = host.named()
    host.name("192.0.2.1")
    assert host.named() == before


def test_the_file_is_not_looked_at_for_every_query(tmp_path: Path) -> None:
    """A flood of queries costs one look a second."""
    host = HostFile(tmp_path / "resolv.conf")
    host.name("192.0.2.1")
    before = host.named()
    host.name("192.0.2.2")
    host.now += LOOK_INTERVAL / 2
    assert host.resolvers() == [(parse_address(address), 53) for address in before]
    assert host.named() == ["192.0.2.2"]
