"""The options that `serve` and `run` share, named as the keys of the file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def network_options(command: _Command) -> _Command:
    """All of them."""
    for option in reversed(
        (
            click.option(
                "--config",
                "file",
                metavar="FILE",
                type=click.Path(path_type=Path),
                help="Read settings from this TOML file; options given here win over it.",
            ),
            click.option(
                "--listen",
                multiple=True,
                metavar="ENDPOINT",
                help="Listen for QEMU at unix:PATH, tcp:HOST:PORT or fd:N. May be repeated.",
            ),
            click.option(
                "--connect",
                multiple=True,
                metavar="unix:PATH",
                help="Connect to a QEMU that listens there (server=on). May be repeated.",
            ),
            click.option(
                "--join",
                multiple=True,
                metavar="ENDPOINT",
                help="Join the segment of another server at unix:PATH or tcp:HOST:PORT: their "
                "guests and ours share a LAN. May be repeated.",
            ),
            click.option(
                "--join-listen",
                multiple=True,
                metavar="ENDPOINT",
                help="Let other servers join there. TCP is neither encrypted nor authenticated.",
            ),
            click.option("--mtu", type=int, metavar="N", help="The guest's MTU in bytes."),
            click.option(
                "--host-loopback",
                is_flag=True,
                help="Let the gateway's address reach this host's 127.0.0.1.",
            ),
            click.option(
                "--isolate",
                is_flag=True,
                help="Let guests see only the gateway, and never each other.",
            ),
            click.option(
                "--congestion",
                metavar="NAME",
                help="Congestion control of TCP towards the guest: none, reno or cubic.",
            ),
            click.option(
                "--udp-filtering",
                metavar="NAME",
                help="Who may send to a guest's UDP port: endpoint, address or address-port.",
            ),
            click.option(
                "--dns",
                multiple=True,
                metavar="ADDR[:PORT]",
                help="Ask this resolver instead of the host's own. May be repeated.",
            ),
            click.option(
                "--publish",
                multiple=True,
                metavar="PUBLICATION",
                help="Let the host's world call a guest's port: [tcp:|udp:][HOST_ADDR:]HOST_PORT"
                "[-END]:[GUEST_ADDR:]GUEST_PORT or unix:PATH:[GUEST_ADDR:]GUEST_PORT. May be "
                "repeated.",
            ),
            click.option(
                "--publish-source",
                metavar="NAME",
                help="Whom a guest sees at a published port: client (where it can be) or gateway.",
            ),
            click.option(
                "--lease-file",
                metavar="FILE",
                help="Keep leases in this file: guests have their addresses again after a restart.",
            ),
            click.option(
                "--tftp",
                metavar="DIR",
                help="Let guests read the files of this folder by TFTP, to boot from them.",
            ),
            click.option(
                "--bootfile",
                metavar="NAME",
                help="Lead guests that boot from the network to this file of --tftp, or to a URL.",
            ),
            click.option(
                "--policy",
                "policy_file",
                metavar="FILE",
                type=click.Path(path_type=Path),
                help="Read the network policy, a table [policy], from this TOML file.",
            ),
            click.option(
                "--allow",
                multiple=True,
                metavar="RULE",
                help='Allow, like "pypi.org on tcp/443"; what is not allowed is denied. In order '
                "with --deny, before the rules of a file. May be repeated.",
            ),
            click.option(
                "--deny",
                multiple=True,
                metavar="RULE",
                help='Deny, like "*.ads.example" or "private on tcp/22". May be repeated.',
            ),
            click.option(
                "--audit",
                metavar="FILE",
                help="Append one line of JSON for each verdict of the policy.",
            ),
            click.option("-v", "--verbose", is_flag=True, help="Say more of what happens."),
        )
    ):
        command = option(command)
    return command


class Ordered(click.Command):
    """Keeps the order of --allow and --deny among each other, as the lines of ``rules``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, which collects the values of each option apart."""
        values, _, given = self.make_parser(ctx).parse_args(list(args))
        texts = {action: iter(values.get(action) or ()) for action in ("allow", "deny")}
        rest = super().parse_args(ctx, args)
        ctx.params["rules"] = [
            f"{option.name} {next(texts[option.name])}" for option in given if option.name in texts
        ]
        for action in texts:
            del ctx.params[action]
        return rest


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that stand on the command line, raw, as the file would hold them."""
    return {
        key: value
        for key, value in options.items()
        if not (value is None or value is False or value == ())
    }
