"""Endpoints: where QEMU and we meet.

Three forms, each written as one word: ``unix:PATH``, ``tcp:HOST:PORT``, ``fd:N``. Owns
their text form and nothing else: no socket is made here.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import attrs

from qemu_usernat.primitives.errors import UserError

ENDPOINT_FORMS = "unix:PATH, tcp:HOST:PORT (an IPv6 address in brackets) or fd:N"

UNIX_PATH_MAXIMUM = 107  # bytes; unix(7): sun_path has 108, the last for the NUL
SOCKET_NAME = "qemu-usernat.sock"


@attrs.frozen
class UnixEndpoint:
    """A unix stream socket, by its path in the file system."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@attrs.frozen
class TcpEndpoint:
    """A TCP socket. Port 0, to listen on, is one that the kernel chooses."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"


@attrs.frozen
class FdEndpoint:
    """An inherited descriptor: a listening socket (systemd's way) or a connected one."""

    descriptor: int

    def __str__(self) -> str:
        return f"fd:{self.descriptor}"


JoinEndpoint: TypeAlias = UnixEndpoint | TcpEndpoint
"""Where another server and we meet."""

Endpoint: TypeAlias = JoinEndpoint | FdEndpoint


def parse_endpoint(text: str) -> Endpoint:
    """The endpoint that `text` names; UserError, naming the three forms, where it is none."""
    form, colon, rest = text.partition(":")
    if colon and form == "unix":
        return _parse_unix(text, rest)
    if colon and form == "tcp":
        return _parse_tcp(text, rest)
    if colon and form == "fd":
        return _parse_fd(text, rest)
    raise _refusal(text, "it begins with none of unix:, tcp:, fd:")


def default_endpoint(environment: Mapping[str, str], user_id: int) -> UnixEndpoint:
    """``unix:$XDG_RUNTIME_DIR/qemu-usernat.sock``.

    Without XDG_RUNTIME_DIR (a shell of su, cron) the directory it would have named,
    /run/user/UID, where that exists and is ours. UserError where there is neither.
    """
    named = environment.get("XDG_RUNTIME_DIR")
    directory = Path(named) if named else Path("/run/user") / str(user_id)
    if not named and not (directory.is_dir() and directory.stat().st_uid == user_id):
        raise UserError(
            "there is no place for the default socket: "
            "set XDG_RUNTIME_DIR, or say where to listen with --listen unix:PATH"
        )
    endpoint = parse_endpoint(f"unix:{directory / SOCKET_NAME}")
    assert isinstance(endpoint, UnixEndpoint)
    return endpoint


def _parse_unix(text: str, path: str) -> UnixEndpoint:
    try:
        return UnixEndpoint(check_unix_path(path))
    except ValueError as error:
        raise _refusal(text, str(error)) from error


def check_unix_path(path: str) -> str:
    """The same, where a unix socket can be there; ValueError says why it cannot."""
    length = len(os.fsencode(path))
    if not path:
        raise ValueError("the path is missing")
    if "\0" in path:
        raise ValueError("a path cannot hold a NUL")
    if length > UNIX_PATH_MAXIMUM:
        raise ValueError(f"the path has {length} bytes, the system allows {UNIX_PATH_MAXIMUM}")
    return path


def _parse_tcp(text: str, rest: str) -> TcpEndpoint:
    host, _, port = rest.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if ":" in host and not bracketed:
        raise _refusal(text, "an IPv6 address needs brackets, like tcp:[::1]:4444")
    host = host[1:-1] if bracketed else host
    if not host:
        raise _refusal(text, "host or port is missing")
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise _refusal(text, f"{host} is not a host's name") from error
    if not is_decimal(port) or int(port) > 65535:
        raise _refusal(text, "the port is not a number from 0 to 65535")
    return TcpEndpoint(host, int(port))


def _parse_fd(text: str, number: str) -> FdEndpoint:
    # The upper bound is the C int that every system call takes.
    if not is_decimal(number) or int(number) >= 1 << 31:
        raise _refusal(text, "N is the number of an inherited descriptor")
    return FdEndpoint(int(number))


def is_decimal(text: str) -> bool:
    """Digits of ASCII and not many: `int` itself takes signs, spaces and underscores too."""
    return text.isascii() and text.isdigit() and len(text) <= 10


def _refusal(text: str, why: str) -> UserError:
    return UserError(f'"{text}" is not an endpoint: {why}; allowed: {ENDPOINT_FORMS}')
