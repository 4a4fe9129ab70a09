"""Several networks in one file: what each has of its own, and what they share."""

from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from qemu_usernat.config import Config, TcpEndpoint, UnixEndpoint, check_links, read_networks
from qemu_usernat.config.settings import SETTINGS, Scope
from qemu_usernat.primitives.errors import UserError

TWO = """
[[network]]
name = "lab"
listen = "unix:/a"

[[network]]
name = "guests"
listen = "unix:/b"
"""


def read(tmp_path: Path, text: str, **more: Any) -> tuple[Config, ...]:
    """The networks of a file net.toml that holds `text`."""
    file = tmp_path / "net.toml"
    file.write_text(text)
    return read_networks(file, more.pop("options", {}), **more)


def refusal(tmp_path: Path, text: str, **more: Any) -> str:
    """What a person reads when net.toml holds `text`, its directory left out."""
    with pytest.raises(UserError) as caught:
        check_links(read(tmp_path, text, **more))
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_each_network_has_its_own(tmp_path: Path) -> None:
    """Sockets, addresses, names, policy, boot files: whatever stands in its table."""
    lab, guests = read(
        tmp_path,
        """
        verbose = true
        audit = "/var/log/audit"

        [[network]]
        name = "Lab"
        listen = ["unix:/a", "tcp:127.0.0.1:4444"]
        subnet = "192.168.1.0/24"
        domain = "lab.internal"
        mtu = 9000
        host-loopback = true
        lease-file = "/leases"
        [[network.reservation]]
        mac = "52:54:00:00:00:01"
        address = "192.168.1.9"
        [[network.record]]
        name = "wiki"
        type = "A"
        data = "192.0.2.1"
        [network.policy]
        default = "deny"
        [[network.policy.rule]]
        allow = "pypi.org"

        [[network]]
        name = "guests"
        connect = "unix:/b"
        tftp = "/srv/tftp"
        bootfile = "boot.ipxe"
        """,
    )
    assert (lab.name, guests.name) == ("lab", "guests")
    assert lab.listen == (UnixEndpoint("/a"), TcpEndpoint("127.0.0.1", 4444))
    assert (guests.listen, guests.connect) == ((), (UnixEndpoint("/b"),))
    assert (lab.network.gateway, lab.network.mtu) == (IPv4Address("192.168.1.2"), 9000)
    assert (guests.network.gateway, guests.network.mtu) == (IPv4Address("10.0.2.2"), 65520)
    assert (lab.network.host_loopback, guests.network.host_loopback) == (True, False)
    assert (lab.lease_file, guests.lease_file) == (Path("/leases"), None)
    assert len(lab.network.reservations) == len(lab.network.records) == 1
    assert (guests.network.reservations, guests.network.records) == ((), ())
    assert guests.network.boot.folder == Path("/srv/tftp")
    assert lab.policy is not None
    assert "pypi.org" in str(lab.policy.policy)
    assert guests.policy is None
    assert (lab.verbose, guests.verbose) == (True, True)
    assert lab.audit == guests.audit == Path("/var/log/audit")


def test_what_stands_above_holds_for_all_that_do_not_say_otherwise(tmp_path: Path) -> None:
    """Also a policy and names; a network's own replaces it whole."""
    common = (
        'mtu = 1500\ndns = "9.9.9.9"\n[[record]]\nname = "wiki"\ntype = "A"\ndata = "192.0.2.1"\n'
    )
    policy = '[policy]\ndefault = "deny"\n'
    lab, guests = read(
        tmp_path, f'{common}{policy}{TWO}mtu = 9000\n[network.policy]\ndefault = "allow"\n'
    )
    assert (lab.network.mtu, guests.network.mtu) == (1500, 9000)
    assert lab.network.dns == guests.network.dns == ((IPv4Address("9.9.9.9"), 53),)
    assert lab.network.records == guests.network.records != ()
    policies = [each.policy.policy.default for each in (lab, guests) if each.policy is not None]
    assert policies == ["deny", "allow"]


def test_options_win_in_each_network(tmp_path: Path) -> None:
    """--mtu and --deny are meant for all; each policy has the rules of the command line first."""
    text = f'{TWO}mtu = 9000\n[network.policy]\ndefault = "allow"\n'
    lab, guests = read(tmp_path, text, options={"mtu": 1400}, rules=["deny 192.0.2.0/24"])
    assert lab.network.mtu == guests.network.mtu == 1400
    for each in (lab, guests):
        assert each.policy is not None
        assert str(each.policy.policy.rules[0]) == "deny 192.0.2.0/24"


def test_which_keys_are_whose() -> None:
    """Of a new key somebody has to say whether networks may share it; sockets they never do."""
    by_scope = {
        scope: {key for key, each in SETTINGS.items() if each.scope is scope and not each.table}
        for scope in Scope
    }
    assert by_scope[Scope.SERVER] == {"verbose", "audit"}
    assert {"mtu", "dns", "record", "tftp"} <= by_scope[Scope.SHARED]
    assert {"listen", "connect", "lease_file", "reservation"} <= by_scope[Scope.OWN]


def test_equal_subnets_never_meet(tmp_path: Path) -> None:
    """Nothing has to be chosen for a second network but its name and its socket."""
    lab, guests = read(tmp_path, TWO)
    assert lab.network == guests.network


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[network]]\nlisten='unix:/a'", 'net.toml: key "network[1].name" is missing; allowed: '),
        (f"{TWO}[[network]]\nname='a b'", 'key "network[3].name" is "a b"; allowed: one label of'),
        (f"{TWO}[[network]]\nname=5", 'net.toml: key "network[3].name" is 5; allowed: one label'),
        (f"{TWO}[[network]]\nname='LAB'", 'net.toml: network "lab" is there twice; allowed: '),
        (
            f"{TWO}mtuu = 5",
            'network "guests": key "mtuu" is not known; did you mean "mtu"? allowed',
        ),
        (f"{TWO}mtu = 5", 'network "guests": key "mtu" is 5; allowed: bytes from 576'),
        (f"{TWO}verbose = true", 'key "verbose" is not known; it belongs above the tables [['),
        (f"mtu = 5\n{TWO}", 'net.toml: key "mtu" is 5; allowed: bytes from 576 to 65520'),
        (
            f"listen = 'unix:/c'\n{TWO}",
            'net.toml: key "listen" is not known; it belongs in a table [[network]], as it is one '
            "network's own; allowed here: audit, ",
        ),
        (
            f"lease-file = '/c'\n{TWO}",
            'key "lease-file" is not known; it belongs in a table [[network]], as it is one',
        ),
        (f"subnet = '10.0.0.0/8'\n{TWO}", 'key "subnet" is not known; it belongs in a table [['),
        (f"[[reservation]]\n{TWO}", 'key "reservation" is not known; it belongs in a table [['),
        (
            f"{TWO}[[network]]\nname='third'",
            'network "third": nobody can reach it; allowed: with a key "listen" or "connect"',
        ),
        (
            f"{TWO}[[network]]\nname='third'\nconnect=['unix:/c', 'unix:/a']",
            'network "third": unix:/a is of the network "lab", too; allowed: each only once',
        ),
        (
            "[[network]]\nname='a'\nlisten='unix:/a'\nlease_file='/l'\n"
            "[[network]]\nname='b'\nlisten='unix:/b'\nlease_file='/l'",
            'network "b": /l is of the network "a", too',
        ),
        (
            "[[network]]\nname='a'\nlisten='unix:/a'\n"
            "[[network.publish]]\nhost=8080\nguest=80\n"
            "[[network]]\nname='b'\nlisten='unix:/b'\n"
            "[[network.publish]]\nhost='127.0.0.1:8080'\nguest=80",
            'network "b": tcp:127.0.0.1:8080 is published by the network "a", too, as '
            "tcp:0.0.0.0:8080; allowed: each port of the host",
        ),
        (
            f"{TWO}first_lease='10.0.2.9'\nlast_lease='10.0.2.5'",
            'network "guests": key "first_lease" is 10.0.2.9; allowed: at most last_lease',
        ),
        (
            f"{TWO}last_lease='10.0.2.1'\ngateway='10.0.2.1'",
            'network "guests": first_lease (by default) is 10.0.2.2; allowed: at most',
        ),
        (f"{TWO}[network.policy]\n", 'net.toml: network "guests": '),
        (
            f'{TWO}[network.policy]\ndefault="deny"\n[network.policy.guest."unix:/a"]\n'
            'default="deny"',
            'key "policy.guest."unix:/a"": no link is called so',
        ),
        ("network = []", 'key "network" is []; allowed: a table [network], or for several'),
        ("network = [5]", 'key "network" is [5]; allowed: a table [network], or for several'),
    ],
)
def test_a_mistake_names_the_network(tmp_path: Path, text: str, message: str) -> None:
    """Whoever reads the message knows which of the tables to mend, and how."""
    assert message in refusal(tmp_path, text)


def test_a_port_that_the_kernel_chooses_is_nobodys(tmp_path: Path) -> None:
    """tcp:…:0 in two networks are two sockets."""
    assert (
        len(read(tmp_path, TWO.replace("unix:/a", "tcp:[::1]:0").replace("unix:/b", "tcp:[::1]:0")))
        == 2
    )


def test_a_shared_policy_may_name_links_of_all_networks(tmp_path: Path) -> None:
    """A guest's own policy, written above, holds in the network that has its link."""
    policy = '[policy]\ndefault="deny"\n[policy.guest."unix:/b"]\ndefault="allow"\n'
    check_links(read(tmp_path, policy + TWO))


def test_an_option_for_one_network_is_refused(tmp_path: Path) -> None:
    """--listen cannot know which of them is meant."""
    message = refusal(tmp_path, TWO, options={"listen": ["unix:/c"]})
    assert message == (
        "--listen is one network's own, and net.toml has several; allowed: "
        'the key "listen" in a table [[network]]'
    )


def test_a_policy_of_the_command_line_excludes_those_of_the_file(tmp_path: Path) -> None:
    """Whether it is one network's or all networks'."""
    other = tmp_path / "policy.toml"
    other.write_text('[policy]\ndefault = "deny"\n')
    lab, guests = read(tmp_path, TWO, policy_file=other)
    assert lab.policy == guests.policy != None  # noqa: E711
    message = refusal(tmp_path, f'{TWO}[network.policy]\ndefault="deny"', policy_file=other)
    assert "exclude each other" in message


def test_who_can_serve_but_one_says_so(tmp_path: Path) -> None:
    """`run` has one QEMU, and does not choose a network for it."""
    from qemu_usernat.config import read_config

    read(tmp_path, TWO)
    with pytest.raises(UserError, match=r"has several networks \(lab, guests\); allowed here: one"):
        read_config(tmp_path / "net.toml", {})


def test_the_example_of_the_page_loads(tmp_path: Path) -> None:
    """docs/networks.md is true."""
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
    lab, sandbox = read(tmp_path, page.partition("```toml\n")[2].partition("```")[0])
    assert (str(lab.network.subnet), lab.network.mtu) == ("192.168.76.0/24", 9000)
    assert lab.network.dns == sandbox.network.dns != ()
    for each, rules in ((lab, 0), (sandbox, 1)):
        assert each.policy is not None
        assert (each.policy.policy.default, len(each.policy.policy.rules)) == ("deny", rules)
