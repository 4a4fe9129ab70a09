"""The commands under ``policy``: looking at a network policy, without a server."""

from pathlib import Path

import click
from attrs import frozen

from qemu_usernat.config import Network, groups_of, parse_endpoint, read_networks
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
    for each in _read_policies(file):
        settings = each.policy
        rules, expects = len(settings.policy.rules), len(settings.expects)
        say(
            f"{_of(file, each)}good: rules: {rules}, default: {settings.policy.default}, "
            f"expected: {expects}"
        )
    return 0


@policy.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("flow", nargs=-1, required=True)
@click.option("--guest", metavar="KEY", help="With the policy of this MAC address or link.")
@click.option("--address", metavar="ADDR", help="The address that the flow's name has.")
@click.option("--network", metavar="NAME", help="In this one of several networks.")
def explain(
    file: Path, flow: tuple[str, ...], guest: str | None, address: str | None, network: str | None
) -> int:
    """Say rule by rule what becomes of FLOW, like: tcp github.com:443."""
    from qemu_usernat.policy.explain import explain
    from qemu_usernat.policy.flows import parse_flow

    policies = _read_policies(file)
    with as_usage():
        named = [each for each in policies if network in (None, each.name)]
        if len(named) != 1:
            names = ", ".join(each.name for each in policies if each.name) or "none, it has one"
            raise UserError(f"{file}: which network? allowed for --network: {names}")
        written = parse_flow(" ".join(flow)).at(address)
        chosen = named[0].policy.policy_of(guest)
    for line in explain(chosen, named[0].groups, written):
        say(line)
    return 0


@policy.command()
@click.argument("file", type=click.Path(path_type=Path))
def lint(file: Path) -> int:
    """Find rules that are never reached, and rules that let more through than they seem to.

    The exit code is 1 if anything is found.
    """
    from qemu_usernat.policy.lint import lint

    found = False
    for each in _read_policies(file):
        settings = each.policy
        for guest, one in (("", settings.policy), *settings.guests.items()):
            for flaw in lint(one, each.groups):
                say(f"{_of(file, each)}{f'guest {guest}: ' if guest else ''}{flaw}")
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


@frozen
class _Policies:
    """Those of one network, and what its groups are."""

    name: str
    policy: PolicySettings
    groups: Groups


def _read_policies(file: Path) -> list[_Policies]:
    """Of a file, which may have other tables as well; of each of its networks that has any."""
    with as_usage():
        configs = read_networks(file, {}, listen=parse_endpoint("unix:/nowhere"))
        policies = [
            _Policies(config.name, config.policy, groups_of(config.network))
            for config in configs
            if config.policy is not None
        ]
        if not policies:
            raise UserError(f"{file}: has no table [policy]")
    return policies


def _of(file: Path, policies: _Policies) -> str:
    return f'{file}: network "{policies.name}": ' if policies.name else f"{file}: "
