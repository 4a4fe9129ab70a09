"""Endpoints: the three forms, and what is said of everything else."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.config import (
    FdEndpoint,
    TcpEndpoint,
    UnixEndpoint,
    default_endpoint,
    parse_endpoint,
)
from qemu_usernat.primitives.errors import UserError


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("unix:/run/guest.sock", UnixEndpoint("/run/guest.sock")),
        ("unix:relative,with:odd=marks", UnixEndpoint("relative,with:odd=marks")),
        ("tcp:127.0.0.1:4444", TcpEndpoint("127.0.0.1", 4444)),
        ("tcp:localhost:0", TcpEndpoint("localhost", 0)),
        ("tcp:[::1]:4444", TcpEndpoint("::1", 4444)),
        ("fd:7", FdEndpoint(7)),
    ],
)
def test_each_form_is_read_and_written_back(text: str, endpoint: object) -> None:
    """What a person writes comes back the same when we print it."""
    assert parse_endpoint(text) == endpoint
    assert str(endpoint) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("/run/guest.sock", "begins with none of"),
        ("udp:1.2.3.4:5", "begins with none of"),
        ("unix", "begins with none of"),
        ("unix:", "path is missing"),
        ("unix:a\0b", "NUL"),
        ("tcp:4444", "host or port is missing"),
        ("tcp::4444", "host or port is missing"),
        ("tcp:localhost:", "port is not a number"),
        ("tcp:localhost:65536", "port is not a number"),
        ("tcp:localhost:-1", "port is not a number"),
        ("tcp:localhost:\u0664\u0664", "port is not a number"),
        ("tcp:::1:4444", "needs brackets"),
        ("tcp:a..b:7000", "a..b is not a host's name"),
        (f"tcp:{'a' * 70}:7000", "is not a host's name"),
        ("fd:", "number of an inherited descriptor"),
        ("fd:x", "number of an inherited descriptor"),
        ("fd:-1", "number of an inherited descriptor"),
        ("fd:4294967296", "number of an inherited descriptor"),
    ],
)
def test_a_wrong_endpoint_is_refused_with_the_reason_and_the_three_forms(
    text: str, why: str
) -> None:
    """A person who mistypes reads what is wrong and what would be right."""
    with pytest.raises(UserError) as caught:
        parse_endpoint(text)
    message = str(caught.value)
    assert why in message
    for form in ("unix:PATH", "tcp:HOST:PORT", "fd:N"):
        assert form in message


def test_a_unix_path_may_have_107_bytes_and_no_more() -> None:
    """The limit of the system is told before bind trips over it, and counts bytes."""
    assert parse_endpoint("unix:" + "x" * 107) == UnixEndpoint("x" * 107)
    with pytest.raises(UserError, match="the path has 108 bytes, the system allows 107"):
        parse_endpoint("unix:" + "x" * 108)
    with pytest.raises(UserError, match="the path has 108 bytes"):
        parse_endpoint("unix:" + "ü" * 54)


@given(st.text())
def test_no_text_raises_anything_but_a_user_error(text: str) -> None:
    """Whatever stands in a file, the answer is an endpoint or a sentence."""
    for form in ("", "unix:", "tcp:", "tcp:[", "fd:"):
        try:
            endpoint = parse_endpoint(form + text)
        except UserError:
            continue
        assert parse_endpoint(str(endpoint)) == endpoint


def test_the_default_is_in_the_users_runtime_directory(tmp_path: Path) -> None:
    """A person who names no socket finds it where the XDG specification puts it."""
    endpoint = default_endpoint({"XDG_RUNTIME_DIR": str(tmp_path)}, os.getuid())
    assert endpoint == UnixEndpoint(f"{tmp_path}/qemu-usernat.sock")


@pytest.mark.parametrize("environment", [{}, {"XDG_RUNTIME_DIR": ""}])
def test_without_a_runtime_directory_the_message_says_what_to_do(
    environment: dict[str, str],
) -> None:
    """Under cron or su there may be no place: the person is told both ways out."""
    nobody = 4_294_967_000
    with pytest.raises(UserError, match=r"set XDG_RUNTIME_DIR.*--listen"):
        default_endpoint(environment, nobody)
