"""Datagrams of the hermetic internet: the socket of one mapping, in memory.

Each goes at its own time over the line of the host that it is for, and so do the answers.
"""

import inspect
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import trio

from qemu_usernat.nat.udp import UdpMapping
from qemu_usernat.primitives.addresses import Address, format_address
from qemu_usernat.testing.internet.faults import Fault
from qemu_usernat.testing.internet.hosts import InternetHost, Service
from qemu_usernat.testing.internet.records import Connection, HandlerFailure
from qemu_usernat.testing.internet.stage import Stage
from qemu_usernat.testing.internet.streams import CLOSED, NO_ANSWER, REFUSED
from qemu_usernat.wire.icmp import (
    DESTINATION_UNREACHABLE,
    HOST_UNREACHABLE,
    PORT_UNREACHABLE,
    IcmpError,
    unreachable,
)
from qemu_usernat.wire.packets import Buffer

PAYLOAD_MAXIMUM = 65507  # bytes of one datagram over IPv4

HANDLERS_MAXIMUM = 1024
"""Asynchronous handlers at work for one mapping; beyond it datagrams are lost."""


class HostSocket:
    """A mapping's `HostDatagrams`."""

    def __init__(self, mapping: UdpMapping, stage: Stage, end_turn: Callable[[], None]) -> None:
        self._mapping = mapping
        self._stage = stage
        self._end_turn = end_turn
        self._source = format_address(mapping.key[0]), mapping.key[1]
        self._records: dict[tuple[Address, int], tuple[Connection, Random]] = {}
        self._handling = 0
        self._closed = False
        self.port = mapping.key[1]

    # -- for the mapping, within turns

    def send(
        self,
        payload: Buffer,
        address: Address,
        port: int,
        ttl: int,
        dont_fragment: bool,
        now: float,
    ) -> None:
        """A datagram of the guest."""
        stage, sent = self._stage, bytes(payload)
        host = stage.hosts.get(address)
        if stage.nursery is None:
            return
        answer = None if host is None else host.answer("udp", port)
        if host is None or answer is None:
            stage.on_unexpected("udp", address, port, self._source)
            self._unreachable(sent, address, port, known=host is not None)
            return
        record, chance = self._record(host, address, port)
        match answer:
            case Fault.BLACK_HOLE:
                record.ended = NO_ANSWER
            case Fault.REFUSES:
                record.ended = REFUSED

                def refuse() -> None:
                    self._unreachable(sent, address, port, known=True)
                    self._end_turn()

                stage.timeline.at(trio.current_time() + 2 * host.latency, refuse)
            case Service():
                handler = answer.handler

                def reply(answer: object) -> None:
                    self._reply(answer, host, record, chance, address, port)

                def arrive() -> None:
                    record.received += len(sent)
                    self._handle(handler, sent, reply, f"UDP handler of {host} port {port}")

                host.from_guest.carry(stage.timeline, chance, len(sent), arrive)

    def close(self) -> None:
        """The mapping has been idle for too long, or the network ends."""
        self._closed = True
        for record, _ in self._records.values():
            record.ended = record.ended or CLOSED

    def _record(self, host: InternetHost, address: Address, port: int) -> tuple[Connection, Random]:
        known = self._records.get((address, port))
        if known is None or known[0].ended is not None:
            guest = self._stage.guests.get(self._source[0], "")
            record = host.on_connection("udp", guest, self._source, address, port)
            known = self._records[address, port] = record, host.chance()
        return known

    def _unreachable(self, sent: bytes, address: Address, port: int, known: bool) -> None:
        error = unreachable(HOST_UNREACHABLE)
        if known:
            error = IcmpError(DESTINATION_UNREACHABLE, PORT_UNREACHABLE, offender=address)
        if not self._closed:
            self._mapping.on_host_error(error, address, port, sent, trio.current_time())

    # -- at the host, outside of turns

    def _handle(
        self,
        handler: Callable[..., Any],
        payload: bytes,
        reply: Callable[[object], None],
        where: str,
    ) -> None:
        nursery = self._stage.nursery
        try:
            answer = handler(payload, self._source)
            if not inspect.isawaitable(answer):
                reply(answer)
            elif nursery is None or self._handling >= HANDLERS_MAXIMUM:
                if inspect.iscoroutine(answer):
                    answer.close()
            else:
                self._handling += 1
                nursery.start_soon(self._await, answer, reply, where)
        except Exception as error:
            self._stage.failures.append(HandlerFailure(where, error))

    async def _await(
        self, answer: Awaitable[object], reply: Callable[[object], None], where: str
    ) -> None:
        try:
            reply(await answer)
        except Exception as error:
            self._stage.failures.append(HandlerFailure(where, error))
        finally:
            self._handling -= 1

    def _reply(
        self,
        answer: object,
        host: InternetHost,
        record: Connection,
        chance: Random,
        address: Address,
        port: int,
    ) -> None:
        if answer is None:
            return
        if not isinstance(answer, (bytes, bytearray)):
            raise TypeError(f"the handler has returned {answer!r}; allowed: bytes or None")
        if len(answer) > PAYLOAD_MAXIMUM:
            raise ValueError(
                f"the handler has returned {len(answer)} octets; allowed: {PAYLOAD_MAXIMUM}"
            )
        payload = bytes(answer)

        def deliver() -> None:
            if not self._closed:
                record.sent += len(payload)
                self._mapping.on_host_datagram(payload, address, port, trio.current_time())
                self._end_turn()

        host.to_guest.carry(self._stage.timeline, chance, len(payload), deliver)
