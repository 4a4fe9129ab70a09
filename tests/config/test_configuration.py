"""File and options become a Config, or one sentence that says what to change."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.config import (
    Config,
    Network,
    TcpEndpoint,
    UnixEndpoint,
    read_config,
)
from qemu_usernat.config.settings import SETTINGS
from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.policy.settings import PolicySettings
from qemu_usernat.primitives.errors import UserError

ANYWHERE = UnixEndpoint("anywhere")


def read(tmp_path: Path, text: str, **options: Any) -> Config:
    """The Config of a file net.toml that holds `text`."""
    file = tmp_path / "net.toml"
    file.write_text(text)
    return read_config(file, options, listen=ANYWHERE)


def refusal(tmp_path: Path, text: str, **options: Any) -> str:
    """What a person reads when net.toml holds `text`, its directory left out."""
    with pytest.raises(UserError) as caught:
        read(tmp_path, text, **options)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_a_file_may_say_everything(tmp_path: Path) -> None:
    """Every key of the file arrives, as the value it stands for."""
    config = read(
        tmp_path,
        """
        listen = ["unix:/run/a.sock", "tcp:127.0.0.1:4444"]
        connect = "unix:/run/b.sock"
        mtu = 1500
        host-loopback = true
        dns = ["9.9.9.9", "127.0.0.1:5353", "::1", "[::1]:5353", "[2620:fe::fe]"]
        verbose = true

        [network]
        subnet = "192.168.7.0/28"
        gateway = "192.168.7.1"
        nameserver = "192.168.7.1"
        first_lease = "192.168.7.4"
        last_lease = "192.168.7.9"
        lease_time = 60
        ntp = "192.168.7.2"
        domain = "Lab.Internal"
        gateway-mac = "52:55:00:00:00:01"
        """,
    )
    assert config == Config(
        listen=(UnixEndpoint("/run/a.sock"), TcpEndpoint("127.0.0.1", 4444)),
        connect=(UnixEndpoint("/run/b.sock"),),
        verbose=True,
        network=Network(
            subnet=IPv4Network("192.168.7.0/28"),
            gateway=IPv4Address("192.168.7.1"),
            nameserver=IPv4Address("192.168.7.1"),
            first_lease=IPv4Address("192.168.7.4"),
            last_lease=IPv4Address("192.168.7.9"),
            lease_time=60,
            ntp=(IPv4Address("192.168.7.2"),),
            mtu=1500,
            domain="lab.internal",
            gateway_mac=bytes.fromhex("525500000001"),
            dns=(
                (IPv4Address("9.9.9.9"), 53),
                (IPv4Address("127.0.0.1"), 5353),
                (IPv6Address("::1"), 53),
                (IPv6Address("::1"), 5353),
                (IPv6Address("2620:fe::fe"), 53),
            ),
            host_loopback=True,
        ),
    )


def test_options_win_over_the_file_key_by_key(tmp_path: Path) -> None:
    """--mtu replaces the file's mtu and leaves its other keys alone."""
    config = read(tmp_path, "mtu = 1500\ndns = '9.9.9.9'\n", mtu=9000)
    assert config.network.mtu == 9000
    assert config.network.dns == ((IPv4Address("9.9.9.9"), 53),)


def test_an_option_saves_nobody_from_a_mistake_in_the_file(tmp_path: Path) -> None:
    """The file is checked whole: it would be a surprise on the day without the option."""
    assert 'key "mtu" is 1' in refusal(tmp_path, "mtu = 1\n", mtu=9000)
    assert "mtuu" in refusal(tmp_path, "mtuu = 1500\n", mtu=9000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "mtuu = 1500",
            'net.toml: key "mtuu" is not known; did you mean "mtu"? allowed here: '
            "audit, bootfile, congestion, connect, dns, host_loopback, isolate, join, "
            "join_listen, lease_file, listen, mtu, publish_source, tftp, udp_filtering, verbose, "
            "[network], [policy], [[reservation]]",
        ),
        (
            "[network]\nsubnett = '10.0.2.0/24'",
            'net.toml: key "network.subnett" is not known; did you mean "subnet"? '
            "allowed in here: domain, first_lease, gateway, gateway_mac, last_lease, "
            "lease_time, nameserver, ntp, search, subnet",
        ),
        ("[netwrok]\nmtu = 1500", 'key "netwrok" is not known; did you mean "network"?'),
        ("subnet = '10.0.2.0/24'", 'key "subnet" is not known; it belongs in the table [network]'),
        ("[network]\nmtu = 1500", 'key "network.mtu" is not known; it belongs above [network]'),
        ("zzz = 1", 'key "zzz" is not known; allowed here: audit, bootfile, '),
        ("network = 5", 'key "network" is 5; allowed: a table [network]'),
        ("host-loopback=true\nhost_loopback=true", "is given twice"),
        ("mtu = 100", 'net.toml: key "mtu" is 100; allowed: bytes from 576 to 65520'),
        ("mtu = '1500'", 'net.toml: key "mtu" is "1500"; allowed: a whole number of bytes'),
        ("mtu = true", 'net.toml: key "mtu" is true; allowed: a whole number'),
        ("mtu = 1500.0", 'net.toml: key "mtu" is 1500.0; allowed: a whole number'),
        ("congestion = 'bbr'", 'key "congestion" is "bbr"; allowed: none, reno or cubic'),
        ("congestion = 3", 'key "congestion" is 3; allowed: none, reno or cubic'),
        ("lease-file = 5", 'key "lease-file" is 5; allowed: the path of a file'),
        (
            "udp_filtering = 'port'",
            'key "udp_filtering" is "port"; allowed: endpoint, address or address-port',
        ),
        ("udp_filtering = true", 'key "udp_filtering" is true; allowed: endpoint, address or '),
        ("verbose = 1", 'net.toml: key "verbose" is 1; allowed: true or false'),
        ("listen = 4", 'net.toml: key "listen" is 4; allowed: endpoints'),
        ("listen = ['unix:a', 4]", 'key "listen" is ["unix:a", 4]; allowed: endpoints'),
        ("listen = 'udp:1'", 'net.toml: key "listen": "udp:1" is not an endpoint: '),
        ("connect = 'tcp:a:1'", 'key "connect" is "tcp:a:1"; allowed: unix:PATH'),
        ("dns = 'one.one.one.one'", 'key "dns" is "one.one.one.one" ('),
        ("dns = '1.1.1.1:x'", '("x" is not a port); allowed: ADDRESS'),
        ("dns = '1.1.1.1:0'", 'key "dns" is 1.1.1.1 port 0; allowed: a unicast address'),
        (
            "[network]\nsubnet = '10.0.2.5/24'",
            '"10.0.2.5/24" (an address inside 10.0.2.0/24, not the subnet itself)',
        ),
        ("[network]\nsubnet = '10.0.2.0'", "the prefix length is missing"),
        ("[network]\nsubnet = '10.0.2.0/255.255.255.0'", "the prefix is not a number of bits"),
        ("[network]\nsubnet = '10.0.2.0/31'", 'key "network.subnet" is 10.0.2.0/31; allowed: '),
        (
            "[network]\ngateway = '10.0.3.2'",
            'net.toml: key "network.gateway" is 10.0.3.2; allowed: an address inside 10.0.2.0/24',
        ),
        ("isolate = 1", 'key "isolate" is 1; allowed: true or false'),
        ("[network]\nisolate = true", 'key "network.isolate" is not known; it belongs above'),
        ("[network]\ngateway = 2", 'key "network.gateway" is 2; allowed: an IPv4 address'),
        ("[network]\ngateway-mac = '5'", 'key "network.gateway-mac" is "5" ('),
        ("[network]\nntp = 'pool.ntp.org'", 'key "network.ntp" is "pool.ntp.org" ('),
        ("[network]\nntp = ['0.0.0.0']", 'key "network.ntp" is 0.0.0.0; allowed: unicast'),
        ("[network]\ndomain = 'a b'", 'key "network.domain" is "a b"; allowed: labels'),
        (
            "[network]\nlast_lease = '10.0.2.1'\ngateway = '10.0.2.1'",
            "first_lease (by default) is 10.0.2.2; allowed: at most last_lease, 10.0.2.1",
        ),
    ],
)
def test_a_mistake_names_file_key_value_and_what_is_allowed(
    tmp_path: Path, text: str, message: str
) -> None:
    """Whoever reads the message can mend the file without opening the manual."""
    assert message in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mtu = 1500\nmtu 1500\n", "net.toml:2: is not TOML: Expected '='"),
        ("mtu = 1500\nmtu = 1501\n", "net.toml:2: is not TOML: Cannot overwrite a value"),
        ("mtu = 1500\n\ndns = [", "net.toml:3: is not TOML: Invalid value"),
    ],
)
def test_bad_syntax_names_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    """An editor can jump to file:line."""
    assert refusal(tmp_path, text).startswith(message)


def test_files_that_cannot_be_read_are_told_apart(tmp_path: Path) -> None:
    """Missing, a directory, not text: each in its own words."""
    with pytest.raises(UserError, match=r"gone\.toml: cannot be read: No such file"):
        read_config(tmp_path / "gone.toml", {}, listen=ANYWHERE)
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_config(tmp_path, {}, listen=ANYWHERE)
    (tmp_path / "net.toml").write_bytes(b"mtu = 1500 # \xff")
    with pytest.raises(UserError, match="is not TOML: not UTF-8 at byte 13"):
        read_config(tmp_path / "net.toml", {}, listen=ANYWHERE)


def test_a_mistake_in_an_option_names_the_option() -> None:
    """Not a key, not a file: what the person typed."""
    with pytest.raises(UserError, match=r"^--mtu is 100; allowed: bytes from 576 to 65520$"):
        read_config(None, {"mtu": 100}, listen=ANYWHERE)
    with pytest.raises(UserError, match=r'^--congestion is "bbr"; allowed: none, reno or cubic$'):
        read_config(None, {"congestion": "bbr"}, listen=ANYWHERE)
    with pytest.raises(UserError, match=r'^--listen: "x" is not an endpoint'):
        read_config(None, {"listen": ["x"]})


def test_a_program_may_say_it_in_its_own_words(tmp_path: Path) -> None:
    """A path as text, lists as lists; and what there is not is a clear mistake."""
    (tmp_path / "net.toml").write_text("mtu = 1500")
    options = {"listen": ["unix:/a"], "publish": ["127.0.0.1:0:80"]}
    network = read_config(str(tmp_path / "net.toml"), options).network
    assert (network.mtu, len(network.publications)) == (1500, 1)
    with pytest.raises(UserError, match='"publish-source" is not known; did you mean "publish_so'):
        read_config(None, {"publish-source": "gateway"})


def test_a_place_is_there_once(tmp_path: Path) -> None:
    """Who listens, lets servers join and publishes has as many sockets."""
    for options in (
        {"listen": ["unix:/a"], "join_listen": ["unix:/a"]},
        {"listen": ["unix:/a"], "publish": ["unix:/a:80"]},
        {"listen": ["unix:/a", "unix:/a"]},
    ):
        with pytest.raises(UserError, match=r"^unix:/a is there twice; allowed: each place only"):
            read_config(None, options)


def test_who_only_connects_listens_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """--connect alone needs no runtime directory and makes no socket."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    config = read_config(None, {"connect": ["unix:/run/qemu.sock"]})
    assert config.listen == ()
    assert config.connect == (UnixEndpoint("/run/qemu.sock"),)


def test_with_nothing_said_we_listen_at_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`serve` without any option works."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert read_config(None, {}).listen == (UnixEndpoint(f"{tmp_path}/qemu-usernat.sock"),)


@given(
    key=st.sampled_from(sorted(SETTINGS)),
    raw=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
)
def test_no_value_raises_anything_but_a_user_error(key: str, raw: Any) -> None:
    """Whatever a file holds, the answer is a Config or a sentence that names the origin."""
    try:
        read_config(None, {key: raw}, listen=ANYWHERE)
        message = None
    except UserError as error:
        message = str(error)
    assert message is None or message.startswith(("--", "first_lease (by default)"))


# -- the policy


def test_a_file_may_have_a_policy(tmp_path: Path) -> None:
    """Beside everything else; without one there is none."""
    config = read(
        tmp_path, "mtu = 1500\n[policy]\ndefault = 'deny'\n[[policy.rule]]\nallow = 'dns'"
    )
    assert config.policy == PolicySettings(policy=NetworkPolicy.deny_all().allow_dns())
    assert read(tmp_path, "mtu = 1500").policy is None


def test_rules_of_the_command_line_come_before_those_of_the_file(tmp_path: Path) -> None:
    """In their order; the default is the file's."""
    file = tmp_path / "policy.toml"
    file.write_text("[policy]\ndefault = 'allow'\n[[policy.rule]]\nallow = 'dns'")
    rules = ["deny lan", "allow pypi.org on tcp/443"]
    config = read_config(None, {}, listen=ANYWHERE, policy_file=file, rules=rules)
    assert config.policy is not None
    assert str(config.policy.policy).splitlines() == [*rules, "allow dns", "default allow"]
    alone = read_config(None, {}, listen=ANYWHERE, rules=rules)
    assert alone.policy is not None
    assert str(alone.policy.policy).splitlines() == [*rules, "default deny"]


def test_what_is_expected_is_checked_with_the_rules_of_the_command_line(tmp_path: Path) -> None:
    """And on the file's own network: its gateway is the host, wherever it is."""
    text = """
        [network]
        subnet = "198.18.0.0/24"
        [policy]
        default = "deny"
        [[policy.rule]]
        allow = ["host", "pypi.org"]
        [[policy.expect]]
        flow = "tcp 198.18.0.2:80"
        verdict = "allow"
        [[policy.expect]]
        flow = "tcp pypi.org:443"
        verdict = "allow"
    """
    assert read(tmp_path, text).policy is not None
    with pytest.raises(UserError) as caught:
        read_config(tmp_path / "net.toml", {}, listen=ANYWHERE, rules=["deny pypi.org"])
    assert str(caught.value).endswith(
        'net.toml: key "policy.expect[2]": tcp pypi.org:443 is expected to allow, but the policy '
        "says deny (rule deny pypi.org)"
    )


def test_a_policy_has_one_place(tmp_path: Path) -> None:
    """Two would leave it open which one counts, and what is beside it would be lost."""
    file, other = tmp_path / "net.toml", tmp_path / "policy.toml"
    file.write_text("[policy]\ndefault = 'deny'")
    other.write_text("[policy]\ndefault = 'allow'")
    with pytest.raises(UserError, match=r"^--policy and the table \[policy\] of .* exclude each"):
        read_config(file, {}, listen=ANYWHERE, policy_file=other)
    other.write_text("mtu = 1500\n[policy]\ndefault = 'allow'")
    with pytest.raises(UserError, match=r'key "mtu" is not known; allowed here: \[policy\]'):
        read_config(None, {}, listen=ANYWHERE, policy_file=other)
    other.write_text("")
    with pytest.raises(UserError, match=r"policy\.toml: has no table \[policy\]"):
        read_config(None, {}, listen=ANYWHERE, policy_file=other)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("allow *.com", '--allow: "*.com" would match a whole top-level domain'),
        ("deny ", "--deny: "),
        ("deny x: allow any", '--deny: "deny x: allow any" has a name'),
    ],
)
def test_a_mistake_in_a_rule_names_the_option(rule: str, message: str) -> None:
    """What the person typed, and which option it was."""
    with pytest.raises(UserError) as caught:
        read_config(None, {}, listen=ANYWHERE, rules=[rule])
    assert str(caught.value).startswith(message)


def test_a_mistake_in_the_policy_names_file_and_key(tmp_path: Path) -> None:
    """As all other keys do."""
    assert refusal(tmp_path, "[polcy]\ndefault = 'deny'").startswith(
        'net.toml: key "polcy" is not known; did you mean "policy"?'
    )
    assert refusal(tmp_path, "[policy]\ndefault = 1") == (
        'net.toml: key "policy.default" is 1; allowed: "deny" or "allow"'
    )
