"""Which port is next: the same ones in the same order, so that a test is the same each time."""

from collections.abc import Container

EPHEMERAL = range(49152, 65536)  # RFC 6335, 6


class Ports:
    """Hands out ports that are not in `used`."""

    def __init__(self, protocol: str, used: Container[int]) -> None:
        self._protocol = protocol
        self._used = used
        self._next = EPHEMERAL.start

    def take(self, port: int) -> int:
        """`port`, or any that is free if that is 0; OSError if it is in use."""
        if not 0 <= port < 65536:
            raise ValueError(f"port is from 1 to 65535, or 0 for any, not {port}")
        if port:
            if port in self._used:
                raise OSError(f"{self._protocol} port {port} is in use")
            return port
        for _ in EPHEMERAL:
            candidate = self._next
            self._next = candidate + 1 if candidate + 1 in EPHEMERAL else EPHEMERAL.start
            if candidate not in self._used:
                return candidate
        raise OSError(f"no {self._protocol} port is free")
