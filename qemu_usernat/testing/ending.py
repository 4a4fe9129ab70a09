"""How tests end that are ended from outside: as by Ctrl-C, which clears everything away."""

import ctypes
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_PR_SET_PDEATHSIG = 1  # prctl(2)


@contextmanager
def sigterm_is_ctrl_c() -> Iterator[None]:
    """For the block, unless somebody has other plans for SIGTERM."""
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if ours:
        signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        yield
    finally:
        if ours and signal.getsignal(signal.SIGTERM) is _on_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    handler = signal.getsignal(signal.SIGINT)  # trio's own, where it runs: that knows when to raise
    if callable(handler):
        handler(signal.SIGINT, frame)
    else:
        raise KeyboardInterrupt


def get_sigterm_from_parent() -> None:
    """The kernel sends us SIGTERM when whoever has started us is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
