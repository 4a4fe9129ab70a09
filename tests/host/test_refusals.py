"""Errors of system calls, as a guest hears of them."""

import errno

import pytest

from qemu_usernat.host.refusals import refusal
from qemu_usernat.wire.icmp import unreachable


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errno.ECONNREFUSED, None),
        (errno.ECONNRESET, None),
        (errno.ENETUNREACH, 0),
        (errno.EHOSTUNREACH, 1),
        (errno.ETIMEDOUT, 1),
        (errno.EACCES, 13),
        (errno.EPERM, 13),
    ],
)
def test_each_failure_is_said_in_icmp_s_words(error: int, code: int | None) -> None:
    """Refusal is a reset; no route, no host and a firewall have codes of their own."""
    assert refusal(error) == (None if code is None else unreachable(code))
