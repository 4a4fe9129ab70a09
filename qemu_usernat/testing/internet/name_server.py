"""A name server at a host (RFC 1035, 4.2), for guests that do not ask their gateway."""

from collections.abc import Mapping

import trio

from qemu_usernat.testing.internet.names import Names
from qemu_usernat.testing.internet.records import Peer
from qemu_usernat.testing.internet.streams import HostStream

DATAGRAM_MAXIMUM = 512  # octets, where a question does not allow more


class NameServer:
    """Handlers, of datagrams and of connections, that answer with `names`."""

    def __init__(self, names: Names, guests: Mapping[str, str]) -> None:
        """`guests` are their names by address."""
        self._names = names
        self._guests = guests

    def on_datagram(self, payload: bytes, source: Peer) -> bytes | None:
        """One question, one answer."""
        guest = self._guests.get(source[0], "")
        return self._names.answer(payload, guest, "udp", trio.current_time(), DATAGRAM_MAXIMUM)

    async def serve(self, stream: trio.abc.HalfCloseableStream) -> None:
        """Question after question, each with its length in front."""
        assert isinstance(stream, HostStream)
        guest, received = stream.record.guest, bytearray()
        async for octets in stream:
            received += octets
            while len(received) >= 2 + (length := int.from_bytes(received[:2], "big")):
                message = bytes(received[2 : 2 + length])
                del received[: 2 + length]
                answer = self._names.answer(message, guest, "tcp", trio.current_time())
                if answer is not None:
                    await stream.send_all(len(answer).to_bytes(2, "big") + answer)
