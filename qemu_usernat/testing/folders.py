"""Where logs go: a folder that somebody wants to have, or one that nobody will look for."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def kept_or_temporary(folder: Path | None) -> Iterator[Path]:
    """`folder`, made if it is not there, and kept; without one a temporary one, for the block."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    prefix = "qemu-usernat-"
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name:
        yield Path(name)
