"""What is told of a running server: its audit, as lines of a file and as a stream.

It owns the wall clock of records, the file, and who listens. That a verdict is worth a line is
for `policy.audit` to say; that there is one, for `admission`.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import structlog
import trio
from attrs import define, field

from qemu_usernat.admission import Decision
from qemu_usernat.policy.audit import AuditRecord, Repeats
from qemu_usernat.primitives.addresses import format_address, format_mac
from qemu_usernat.primitives.errors import UserError

STREAM_MAXIMUM = 1000
"""Records that wait for a listener; one that is slower loses the newest."""

_log = structlog.get_logger()


@define(eq=False)
class Audit:
    """Of one server."""

    path: Path | None = None
    """Lines of JSON are appended there."""
    network: str = ""
    """What its lines say that they are of; nothing where there is but one network."""
    clock: Callable[[], float] = time.time
    """Seconds since 1970."""
    _repeats: Repeats = field(factory=Repeats)
    _file: IO[str] | None = None
    _listeners: list[Callable[[AuditRecord], None]] = field(factory=list)
    _broken: bool = False

    def open(self) -> None:
        """Open the file, or open it again after somebody has moved it away. UserError."""
        if self.path is None:
            return
        self._close_file()
        try:
            self._file = self.path.open("a", buffering=1)
        except OSError as error:
            raise UserError(f"--audit {self.path}: cannot be written: {error.strerror}") from error
        self._broken = False

    def on_decision(self, decision: Decision, now: float) -> None:
        """The policy has spoken."""
        if self._file is not None or self._listeners:
            self._tell(
                self._repeats.on_record(record_of(decision, self.clock(), self.network), now)
            )

    def deadline(self) -> float:
        """When there may be something to tell of what was repeated."""
        return self._repeats.deadline()

    def on_deadline(self, now: float) -> None:
        """Tell it."""
        self._tell(self._repeats.on_deadline(now))

    def close(self) -> None:
        """Tell what was not told yet, and close the file."""
        self._tell(self._repeats.finish())
        self._close_file()

    @contextmanager
    def stream(self) -> Iterator[AsyncIterator[AuditRecord]]:
        """For the length of a ``with``: the records that come, to be gone through by ``async for``.

        A listener that has `STREAM_MAXIMUM` waiting for it loses those that come on top.
        """
        send, receive = trio.open_memory_channel[AuditRecord](STREAM_MAXIMUM)

        def listen(record: AuditRecord) -> None:
            try:
                send.send_nowait(record)
            except trio.WouldBlock:
                _log.warning("a listener of the audit is too slow and loses records")

        self._listeners.append(listen)
        try:
            yield receive
        finally:
            self._listeners.remove(listen)
            send.close()

    def _tell(self, records: list[AuditRecord]) -> None:
        for record in records:
            for listener in self._listeners:
                listener(record)
            if self._file is None or self._broken:
                continue
            try:
                self._file.write(record.to_json() + "\n")
            except OSError as error:
                self._broken = True  # said once; SIGHUP opens it again
                _log.error("the audit cannot be written", file=str(self.path), reason=str(error))

    def _close_file(self) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                _log.error("the audit cannot be written", file=str(self.path), reason=str(error))
            self._file = None


def record_of(decision: Decision, moment: float, network: str = "") -> AuditRecord:
    """The record of a decision at a moment in seconds since 1970."""
    guest, request = decision.guest, decision.request
    return AuditRecord.of(
        request,
        decision.verdict,
        time=moment,
        network=network or None,
        guest=format_mac(guest.mac),
        link=guest.link,
        source=format_address(guest.address) if any(guest.address) else None,
        asked=decision.name if request.protocol == "dns" else None,
        enforced=decision.enforced,
    )
