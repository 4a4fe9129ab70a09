"""States of a machine that are kept under a name, until it ends.

Owns the place where they are kept, and QEMU's jobs that save and load them. They are QEMU's own
(`snapshot-save`), in the running machine: they go back in place, with all wires connected.
Migrating to a file would need another QEMU for each return. Their memory goes into an image of
ours, so a machine without a disk can have them too.
"""

from pathlib import Path
from typing import Any

from qemu_usernat.primitives.errors import UserError
from qemu_usernat.testing.qmp import Qmp

ROOM = 64 << 30  # bytes that snapshots may take; the file grows as needed


class Snapshots:
    """Those of the machine behind `qmp`, in a new image at `path`."""

    def __init__(self, qmp: Qmp, path: Path) -> None:
        self._qmp = qmp
        self._path = path
        self._has_room = False

    async def save(self, name: str) -> None:
        """Keep memory, devices and disks, instead of what was kept under `name` before."""
        await self._make_room()
        await self._snapshot_job("snapshot-delete", name)  # an older one of this name, if any
        await self._snapshot_job("snapshot-save", name, vmstate="snapshots")

    async def load(self, name: str) -> None:
        """Go back; UserError, with QEMU's words, if it cannot."""
        await self._make_room()
        before = (await self._qmp.execute("query-status"))["running"]
        try:
            await self._snapshot_job("snapshot-load", name, vmstate="snapshots")
        except UserError:
            if before:  # QEMU has stopped the guest for it, and left it so
                await self._qmp.execute("cont")
            raise

    async def _make_room(self) -> None:
        if self._has_room:
            return
        file = {"driver": "file", "filename": str(self._path.absolute())}
        await self._job("blockdev-create", options={**file, "size": 0})
        await self._qmp.execute("blockdev-add", **{"node-name": "snapshots-file", **file})
        options = {"driver": "qcow2", "file": "snapshots-file", "size": ROOM}
        await self._job("blockdev-create", options=options)
        node = {"driver": "qcow2", "file": "snapshots-file", "node-name": "snapshots"}
        await self._qmp.execute("blockdev-add", **node)
        self._has_room = True

    async def _snapshot_job(self, command: str, name: str, **arguments: str) -> None:
        blocks = [block.get("inserted") for block in await self._qmp.execute("query-block")]
        disks = [block["node-name"] for block in blocks if block and not block["ro"]]
        devices = [*disks, "snapshots"]
        await self._job(command, tag=name, devices=devices, **arguments)

    async def _job(self, command: str, **arguments: Any) -> None:
        """Run a job of QEMU to its end; UserError, with QEMU's words, if it fails."""
        concluded = {"status": "concluded"}
        await self._qmp.cause(
            command, "JOB_STATUS_CHANGE", concluded, **{"job-id": "job"}, **arguments
        )
        jobs = await self._qmp.execute("query-jobs")
        job = next(job for job in jobs if job["id"] == "job")
        await self._qmp.execute("job-dismiss", id="job")
        if "error" in job:
            raise UserError(f"{command}: {job['error']}")
