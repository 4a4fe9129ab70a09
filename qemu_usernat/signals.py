"""The signals that a server answers, and what becomes of them before it can.

A start takes half a second, most of it the loading of modules, and a signal may come in any moment
of it. Until a command is known SIGINT ends the program without a word, as it ends most programs;
from then on signals wait in the kernel until the server is there to answer them. So there is one
way to end, whenever it is asked for, and nothing that a half-made server leaves behind.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

ENDING = (signal.SIGINT, signal.SIGTERM)
REPORT = signal.SIGUSR1
RELOAD = signal.SIGHUP
ANSWERED = (*ENDING, REPORT, RELOAD)


def interrupt_ends_us() -> None:
    """SIGINT ends the process and raises nothing; unless it is ignored, as behind nohup."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def waiting() -> Iterator[None]:
    """In here the signals of `ANSWERED` wait, but where they are `answered`."""
    with _masked(signal.SIG_BLOCK):
        yield


@contextmanager
def answered() -> Iterator[None]:
    """In here they are delivered, those first that waited: the caller has its handlers in place."""
    with _masked(signal.SIG_UNBLOCK):
        yield


@contextmanager
def _masked(how: signal.Sigmasks) -> Iterator[None]:
    before = signal.pthread_sigmask(how, ANSWERED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
