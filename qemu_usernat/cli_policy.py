"""The commands under ``policy``: looking at a network policy, without a server."""

from pathlib import Path

import click

from qemu_usernat.config import Network, groups_of, parse_endpoint, read_config
from qemu_usernat.policy.groups import Groups
from qemu_usernat.policy.settings import PolicySettings
from qemu_usernat.primitives.errors import UserError
from qemu_usernat.terminal import as_usage, say


@click.group()
def policy() -> None:
    """Look at a network policy: a file with a table [policy]."""


@policy.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> int:
    """Read FILE, and check every [[policy.expect]] in it."""
    settings, _ = _read_policy(file)
    rules, expects = len(settings.policy.rules), len(settings.expects)
    say(f"{file}: good: rules: {rules}, default: {settings.policy.default}, expected: {expects}")
    return 0


@policy.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("flow", nargs=-1, required=True)
@click.option("--guest", metavar="KEY", help="With the policy of this MAC address or link.")
@click.option("--address", metavar="ADDR", help="The address that the flow's name has.")
def explain(file: Path, flow: tuple[str, ...], guest: str | None, address: str | None) -> int:
    """Say rule by rule what becomes of FLOW, like: tcp github.com:443."""
    from qemu_usernat.policy.explain import explain
    from qemu_usernat.policy.flows import parse_flow

    settings, groups = _read_policy(file)
    with as_usage():
        written = parse_flow(" ".join(flow)).at(address)
        chosen = settings.policy_of(guest)
    for line in explain(chosen, groups, written):
        say(line)
    return 0


@policy.command()
@click.argument("file", type=click.Path(path_type=Path))
def lint(file: Path) -> int:
    """Find rules that are never reached, and rules that let more through than they seem to.

    The exit code is 1 if anything is found.
    """
    from qemu_usernat.policy.lint import lint

    settings, groups = _read_policy(file)
    found = False
    for guest, each in (("", settings.policy), *settings.guests.items()):
        for flaw in lint(each, groups):
            say(f"{file}: {f'guest {guest}: ' if guest else ''}{flaw}")
            found = True
    return int(found)


@policy.command()
@click.argument("audit", type=click.Path(path_type=Path))
def learn(audit: Path) -> int:
    """Print a policy that admits what is in AUDIT, a file that --audit has written."""
    from qemu_usernat.policy.learn import learn_file

    with as_usage():
        learned = learn_file(audit, groups_of(Network()))
    say(learned.to_toml().rstrip())
    return 0


def _read_policy(file: Path) -> tuple[PolicySettings, Groups]:
    """The policies of a file, which may have other tables as well, and its network's groups."""
    with as_usage():
        config = read_config(file, {}, listen=parse_endpoint("unix:/nowhere"))
        if config.policy is None:
            raise UserError(f"{file}: has no table [policy]")
    return config.policy, groups_of(config.network)
