"""A name server at a host (RFC 1035, 4.2), for guests that do not ask their gateway."""

import trio

from qemu_usernat.testing.internet.names import Names
from qemu_usernat.testing.internet.records import Peer

DATAGRAM_MAXIMUM = 512  # octets, where a question does not allow more


class NameServer:
    """Handlers, of datagrams and of connections, that answer with `names`."""

    def __init__(self, names: Names) -> None:
        self._names = names

    def on_datagram(self, payload: bytes, source: Peer) -> bytes | None:
        """One question, one answer."""
        return self._names.answer(payload, "udp", trio.current_time(), DATAGRAM_MAXIMUM)

    async def serve(self, stream: trio.abc.HalfCloseableStream) -> None:
        """Question after question, each with its length in front."""
        received = bytearray()
        async for octets in stream:
            received += octets
            while len(received) >= 2 + (length := int.from_bytes(received[:2], "big")):
                message = bytes(received[2 : 2 + length])
                del received[: 2 + length]
                answer = self._names.answer(message, "tcp", trio.current_time())
                if answer is not None:
                    await stream.send_all(len(answer).to_bytes(2, "big") + answer)
