"""What a person is told: lines on stdout to be pasted, complaints and the log on stderr.

A terminal that has gone, or a full disk, is nobody's failure: the guests do not care.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import click

from qemu_usernat.primitives.errors import UserError

PROGRAM = "qemu-usernat"


@contextmanager
def as_usage() -> Iterator[None]:
    """A `UserError` in here is a wrong request (exit code 2), not a failure."""
    try:
        yield
    except UserError as error:
        raise click.UsageError(str(error)) from error


def complain(message: str) -> None:
    """Of what went wrong."""
    _print(f"{PROGRAM}: {message}", sys.stderr)


def say(line: str) -> None:
    """A line that may be pasted, or read by a program."""
    _print(line, sys.stdout)


def _print(line: str, stream: TextIO) -> None:
    """Print at once. Whoever reads may have gone (`| head -1`): the guests do not care."""
    try:
        print(line, file=stream, flush=True)
    except BrokenPipeError:
        # As the library's documentation of SIGPIPE advises: nothing left to flush at exit.
        with suppress(OSError), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
    except OSError:
        pass  # a full disk, a terminal that takes nothing now: the next line may pass


class _StderrLogger:
    """Where structlog's rendered lines go, whatever their level."""

    def debug(self, line: str) -> None:
        _print(line, sys.stderr)

    info = warning = error = critical = debug


def configure_log(level: int) -> None:
    """Log lines for a person, on stderr; stdout is for what is to be pasted."""
    import structlog

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            # As Python writes it: a renderer that shows every local variable would show guests'
            # data, and never end, as each of our parts knows others.
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_StderrLogger,
    )
