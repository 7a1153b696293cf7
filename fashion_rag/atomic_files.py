"""Folders and files that appear whole or not at all, and locks. Called by all modules that keep something on disk.

A process that is killed while it writes leaves a hidden folder, which the next run in the same place removes.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fashion_rag.artifacts import MANIFEST_FILE
from fashion_rag.errors import ArtifactError

# A folder of half-written files ends in this suffix, and has a lock that the process which writes them holds.
SCRATCH_LOCK = "written-by-fashion-rag.lock"
SCRATCH_SUFFIX = ".partial"
OLD, NEW = "old", "new"

logger = logging.getLogger(__name__)


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """Make a new folder that replaces `folder` and all its content when the block ends without an error.

    Raises ArtifactError as `check_replaceable`. What killed runs have left is removed first, as by `scratch_beside`.
    """
    check_replaceable(folder)
    # The new folder is on the same file system, so a rename copies nothing and cannot fail half way.
    with scratch_beside(folder) as scratch:
        new = scratch / NEW
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(scratch / OLD)
        new.rename(folder)


def check_replaceable(folder: Path) -> None:
    """Raise ArtifactError if `folder` holds files but no manifest, because they may be somebody else's."""
    if not folder.exists() or (folder / MANIFEST_FILE).is_file():
        return
    if folder.is_file() or any(folder.iterdir()):
        raise ArtifactError(f"{folder}: exists and has no {MANIFEST_FILE}; give a new or an empty folder")


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """Make a hidden folder beside `path` that is removed at the end of the block.

    A run that is killed leaves its folder there. So the folders that no live process holds are removed first, and a
    warning is logged for each.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    # Under this first name nobody takes the folder for a leftover while it has no lock yet.
    begun = Path(tempfile.mkdtemp(prefix=f".{path.name}-", suffix=".begun", dir=path.parent))
    scratch = begun.with_suffix(SCRATCH_SUFFIX)
    with (begun / SCRATCH_LOCK).open("w") as lock:
        # On a file system without locks, other processes cannot lock it either, and so do not remove it.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        begun.rename(scratch)
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def remove_leftovers(parent: Path) -> None:
    """Remove the folders that `scratch_beside` has made in `parent` and that no live process holds any more."""
    for lock_path in sorted(parent.glob(f".*{SCRATCH_SUFFIX}/{SCRATCH_LOCK}")):
        with suppress(OSError), lock_path.open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its holder may have removed it before this process had the lock.
            if lock_path.exists():
                _remove_leftover(lock_path.parent)


def _remove_leftover(scratch: Path) -> None:
    """Remove the folder of a killed run. If the run was about to put a finished folder in place, do that first."""
    folder = scratch.with_name(scratch.stem[1:].rpartition("-")[0])
    if (scratch / OLD).exists() and (scratch / NEW).exists() and not folder.exists():
        (scratch / NEW).rename(folder)
        logger.warning("%s: put in place, as a run that was killed had finished it", folder)
    num_bytes = sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file())
    shutil.rmtree(scratch)
    logger.warning("%s: removed %.1f MB that a run left when it was killed", scratch, num_bytes / 1e6)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` while the block runs.

    The kernel frees the lock when its holder dies. The file stays, because others may wait for it.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("%s: another process is at work here; waiting for it", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file that a reader finds whole or not at all, even after a power cut.

    Only one process may write at a time; `locked` sees to that. A write that fails, as on a full disk, leaves nothing.
    What a killed process leaves is overwritten by the next write.
    """
    aside = path.with_name(f"{path.name}.part")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
