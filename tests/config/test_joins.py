"""Where servers join each other, as a person writes it."""

from pathlib import Path

import pytest

from qemu_usernat.config import TcpEndpoint, UnixEndpoint, parse_endpoint, read_config
from qemu_usernat.primitives.errors import UserError

ANYWHERE = parse_endpoint("unix:/nowhere")


def test_joins_are_read_from_file_and_options(tmp_path: Path) -> None:
    """One or several, unix or TCP."""
    file = tmp_path / "net.toml"
    file.write_text('join = "unix:/a"\njoin-listen = ["tcp:127.0.0.1:7000", "unix:/b"]\n')
    config = read_config(file, {}, listen=ANYWHERE)
    assert config.join == (UnixEndpoint("/a"),)
    assert config.join_listen == (TcpEndpoint("127.0.0.1", 7000), UnixEndpoint("/b"))
    config = read_config(None, {"join": ["tcp:[::1]:7000"]}, listen=ANYWHERE)
    assert config.join == (TcpEndpoint("::1", 7000),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("join = 5", 'net.toml: key "join" is 5; allowed: unix:PATH or tcp:HOST:PORT, or a list'),
        ("join = 'fd:3'", 'key "join" is "fd:3"; allowed: unix:PATH or tcp:HOST:PORT'),
        ("join-listen = 'fd:3'", 'key "join-listen" is "fd:3"; allowed: unix:PATH or tcp'),
        ("join = 'udp:1'", 'net.toml: key "join": "udp:1" is not an endpoint: '),
        ("join = 'unix:/a'\nisolate = true", 'key "join" cannot stand beside isolate: '),
        ("join_listen = 'unix:/a'\nisolate = true", 'key "join_listen" cannot stand beside isol'),
    ],
)
def test_a_mistake_says_what_is_allowed(tmp_path: Path, text: str, message: str) -> None:
    """File, key, and what to write instead."""
    file = tmp_path / "net.toml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        read_config(file, {}, listen=ANYWHERE)
    assert message in str(caught.value)


def test_the_examples_of_the_page_fit_together(tmp_path: Path) -> None:
    """docs/joining.md: both load, and their leases do not overlap."""
    page = (Path(__file__).parents[2] / "docs" / "joining.md").read_text()
    configs = []
    for text in page.split("```toml\n")[1:]:
        file = tmp_path / "net.toml"
        file.write_text(text.partition("```")[0])
        configs.append(read_config(file, {}))
    one, two = configs
    assert one.join_listen == two.join != ()
    assert one.network.last_lease < two.network.first_lease
    assert one.network.gateway == two.network.gateway


@pytest.mark.parametrize(
    ("text", "leases"),
    [
        ("join_listen = 'unix:/j'", ("10.0.2.15", "10.0.2.134")),
        ("join = 'unix:/j'", ("10.0.2.135", "10.0.2.254")),
        ("join = 'unix:/j'\njoin_listen = 'unix:/k'", ("10.0.2.135", "10.0.2.254")),
        ("join = 'unix:/j'\n[network]\nfirst_lease='10.0.2.9'", ("10.0.2.9", "10.0.2.254")),
        ("join = 'unix:/j'\n[network]\nlast_lease='10.0.2.99'", ("10.0.2.15", "10.0.2.99")),
        ("join = 'unix:/j'\n[network]\nsubnet='10.1.0.0/16'", ("10.1.128.7", "10.1.255.254")),
        ("join_listen = 'unix:/j'\n[network]\nsubnet='10.1.0.0/29'", ("10.1.0.1", "10.1.0.3")),
        ("join = 'unix:/j'\n[network]\nsubnet='10.1.0.0/30'", ("10.1.0.1", "10.1.0.2")),
        ("", ("10.0.2.15", "10.0.2.254")),
    ],
)
def test_who_joins_and_who_is_joined_share_the_leases(
    tmp_path: Path, text: str, leases: tuple[str, str]
) -> None:
    """Where nothing was said of them: the lower half is of the one that lets others join, the upper
    half of the one that joins it. What was said holds."""
    file = tmp_path / "net.toml"
    file.write_text(text)
    network = read_config(file, {}, listen=ANYWHERE).network
    assert (str(network.first_lease), str(network.last_lease)) == leases
