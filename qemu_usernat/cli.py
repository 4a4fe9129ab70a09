"""The command line: words in, a checked `Config` out, an exit code back.

Owns the commands, what they print and how errors look; the work is in `app`. Exit
codes: 0 done, 1 it failed, 2 it was asked for wrongly; `run` ends with QEMU's own.
What a command needs is imported when it runs, so that `--help` and `cmdline` are quick.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from qemu_usernat import __version__, cli_policy, signals
from qemu_usernat.cli_options import Ordered, given, network_options
from qemu_usernat.config import (
    Config,
    Endpoint,
    FdEndpoint,
    check_links,
    parse_endpoint,
    read_config,
    read_networks,
)
from qemu_usernat.notify import notify_ready
from qemu_usernat.primitives.errors import UserError
from qemu_usernat.qemu import command_lines
from qemu_usernat.terminal import PROGRAM, as_usage, complain, configure_log, say

# `run` names its netdev unlike any that the user's own line is likely to have.
RUN_NETDEV_ID = "usernat"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own); the exit code."""
    try:
        code = commands.main(
            None if arguments is None else list(arguments), PROGRAM, standalone_mode=False
        )
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        complain(error.format_message())
        return error.exit_code
    except UserError as error:
        complain(str(error))
    except BaseExceptionGroup as group:  # what a nursery made of one of the above
        mistakes, others = group.split(UserError)
        if mistakes is None or others is not None:
            raise
        for mistake in _leaves(mistakes):
            complain(str(mistake))
    return 1


@click.group(no_args_is_help=False)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
def commands() -> None:
    """User-mode networking for virtual machines: DHCP, DNS, TCP, UDP and ping for QEMU guests."""


commands.add_command(cli_policy.policy)


@commands.command(cls=Ordered)
@network_options
def serve(file: Path | None, policy_file: Path | None, rules: list[str], **options: Any) -> int:
    """Serve guests until SIGINT or SIGTERM.

    Prints QEMU's arguments once it listens. Without --listen and --connect it listens
    at unix:$XDG_RUNTIME_DIR/qemu-usernat.sock. SIGUSR1 makes it log its counters, and
    how many links, mappings, pings and flows it has; SIGHUP makes it read its policy again.
    """

    def read() -> Sequence[Config]:
        configs = read_networks(file, given(options), policy_file=policy_file, rules=rules)
        check_links(configs)
        return configs

    with signals.waiting():
        import trio

        with as_usage():
            configs = read()
        configure_log(logging.DEBUG if configs[0].verbose else logging.INFO)
        trio.run(_serve, configs, read)
    return 0


@commands.command(cls=Ordered, context_settings={"allow_interspersed_args": False})
@network_options
@click.argument("qemu", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    file: Path | None,
    qemu: tuple[str, ...],
    policy_file: Path | None,
    rules: list[str],
    **options: Any,
) -> int:
    """Start QEMU with our network, and end with it.

    Write QEMU's own command line after a --, without any network in it:

    qemu-usernat run -- qemu-system-x86_64 -m 1G disk.img
    """
    with (
        signals.waiting(),
        tempfile.TemporaryDirectory(prefix=f"{PROGRAM}-") as directory,  # mode 0700
    ):
        import structlog
        import trio

        private = parse_endpoint(f"unix:{directory}/guest.sock")
        with as_usage():
            config = read_config(
                file, given(options), listen=private, policy_file=policy_file, rules=rules
            )
            own = command_lines.own_network(qemu)
            if own and config.policy is not None:
                raise UserError(
                    f'QEMU is given a network of its own, "{own}", where the policy does not hold; '
                    "allowed: no -nic, -net or -netdev but none"
                )
        # The terminal is QEMU's: a guest's console is no place for our small talk.
        configure_log(logging.DEBUG if config.verbose else logging.WARNING)
        if own:
            structlog.get_logger().warning("QEMU has a network of its own beside ours", written=own)
        version = command_lines.version_of(qemu[0])
        return trio.run(_run, config, version, qemu)


@commands.command()
@click.option("--qemu", metavar="BINARY", help="Ask this QEMU for its version.")
@click.option("--qemu-version", metavar="X.Y", help="For this version of QEMU.")
@click.option("--listen", metavar="ENDPOINT", help="Where the server listens.")
@click.option("--mtu", type=int, metavar="N", help="The guest's MTU in bytes.")
def cmdline(qemu: str | None, qemu_version: str | None, **options: Any) -> int:
    """Print the arguments that make a QEMU find the server."""
    if qemu and qemu_version:
        raise click.UsageError("--qemu and --qemu-version exclude each other")
    with as_usage():
        config = read_config(None, given(options))
        version = command_lines.parse_version(qemu_version) if qemu_version else None
    version = version or command_lines.version_of(qemu or command_lines.DEFAULT_BINARY)
    with as_usage():
        arguments = command_lines.netdev_arguments(
            version, config.listen[0], mtu=config.network.mtu
        )
    say(command_lines.in_shell_form(arguments))
    return 0


# ---- serve and run -----------------------------------------------------------------


async def _serve(configs: Sequence[Config], read: Callable[[], Sequence[Config]]) -> None:
    import trio

    from qemu_usernat.app import serve

    async with trio.open_nursery() as nursery:

        def on_ready(configs: Sequence[Config]) -> None:
            for config in configs:
                of = f"network {config.name}: " if config.name else ""
                for endpoint in config.listen:
                    say(f"{of}listening on {endpoint}")
                for endpoint in config.connect:
                    say(f"{of}connecting to {endpoint}")
                for publication in config.network.publications:
                    say(f"{of}publishing {publication}")
                for where in config.join_listen:
                    say(f"{of}letting servers join at {where}")
                for where in config.join:
                    say(f"{of}joining {where}")
            notify_ready()
            nursery.start_soon(_print_arguments, configs)

        await serve(configs, on_ready, read)
        nursery.cancel_scope.cancel()


async def _print_arguments(configs: Sequence[Config]) -> None:
    """Print, for each place where we meet QEMU, the line that the person may paste."""
    import trio

    meetings = [(config, endpoint, False) for config in configs for endpoint in config.listen]
    meetings += [(config, endpoint, True) for config in configs for endpoint in config.connect]
    # The other end of an inherited connection is somebody's already.
    meetings = [each for each in meetings if not isinstance(each[1], FdEndpoint)]
    if not meetings:
        return
    version, remark = command_lines.NEWEST_KNOWN, "none is installed here"
    binary = shutil.which(command_lines.DEFAULT_BINARY)
    if binary:
        ask = partial(command_lines.version_of, binary)
        try:
            version = await trio.to_thread.run_sync(ask, abandon_on_cancel=True)
            remark = binary
        except UserError as error:
            remark = str(error)
    say(f"arguments for QEMU {command_lines.format_version(version)} ({remark}):")
    for number, (config, endpoint, qemu_listens) in enumerate(meetings):
        arguments = command_lines.netdev_arguments(
            version,
            endpoint,
            mac=command_lines.guest_mac(_first_number(config) + number),
            mtu=config.network.mtu,
            qemu_listens=qemu_listens,
        )
        say(command_lines.in_shell_form(arguments))


async def _run(config: Config, version: command_lines.Version, qemu: Sequence[str]) -> int:
    import trio

    from qemu_usernat.app import serve
    from qemu_usernat.qemu.process import run_program

    code = 0
    async with trio.open_nursery() as nursery:
        endpoints: list[Endpoint] = []
        ready = trio.Event()

        def on_ready(configs: Sequence[Config]) -> None:
            endpoints.extend(configs[0].listen)
            for publication in configs[0].network.publications:
                say(f"publishing {publication}")  # there is no console yet that this would disturb
            ready.set()

        async def network() -> None:
            await serve([config], on_ready)
            # A signal came before QEMU was there to get it: all is over.
            nursery.cancel_scope.cancel()

        nursery.start_soon(network)
        await ready.wait()
        meeting = next((each for each in endpoints if not isinstance(each, FdEndpoint)), None)
        if meeting is None:
            raise UserError("QEMU cannot be led to an inherited connection; leave --listen out")
        number = _first_number(config)
        arguments = command_lines.netdev_arguments(
            version,
            meeting,
            netdev_id=RUN_NETDEV_ID,
            mac=command_lines.guest_mac(number) if number else None,
            device=command_lines.device_for(qemu),
            mtu=config.network.mtu,
        )
        code = await run_program([*qemu, *arguments])
        nursery.cancel_scope.cancel()
    return code


def _first_number(config: Config) -> int:
    """Of our guests: those of servers that have joined differ in their MAC addresses, as the leases
    do."""
    network = config.network
    is_joined = config.join or config.join_listen
    return int(network.first_lease) - int(network.subnet.network_address) if is_joined else 0


# ---- words -------------------------------------------------------------------------


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
