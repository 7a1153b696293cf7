"""Artifacts on disk: folders that appear whole or not at all, JSON files, digests and locks.

Called by whatever keeps something on disk. Weights are read and written by `weights.py`, so that who needs none of
them does not import PyTorch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fashion_rag.errors import ArtifactError

MANIFEST_FILE = "manifest.json"
# A folder of half-written files ends in this suffix, and has a lock that the process which writes them holds.
SCRATCH_LOCK = "written-by-fashion-rag.lock"
SCRATCH_SUFFIX = ".partial"
OLD, NEW = "old", "new"
LOOK_EVERY_S = 1.0
SAY_EVERY_S = 30.0

logger = logging.getLogger(__name__)


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises ArtifactError, naming the path, for one that is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not a readable JSON file: {error}") from error


def read_config(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ArtifactError as `read_json`, and for anything but an object."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: holds a {type(content).__name__}; must be an object")
    return content


def write_json(path: Path, content: object) -> None:
    """Write `content` as a JSON file, one line an entry."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """Make a new folder that takes the place of `folder`, old content and all, when the block ends without an error.

    Raises ArtifactError as `check_replaceable`. What killed runs left is removed first, as `scratch_beside` does.
    """
    check_replaceable(folder)
    # On the same file system, so that the renames cannot fail half way through a copy.
    with scratch_beside(folder) as scratch:
        new = scratch / NEW
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(scratch / OLD)
        new.rename(folder)


def check_replaceable(folder: Path) -> None:
    """Raise ArtifactError if `folder` holds something that is not ours to replace: anything without a manifest."""
    if folder.exists() and not (folder / MANIFEST_FILE).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise ArtifactError(f"{folder}: exists and has no {MANIFEST_FILE}; give a new or an empty folder")


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """Make a hidden folder beside `path` that is removed at the end of the block.

    A run that is killed leaves it there. So those beside `path` that no live process holds are removed first, with a
    warning for each.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    # Nobody looks for leftovers under this first name, so that the folder is never seen without its lock.
    begun = Path(tempfile.mkdtemp(prefix=f".{path.name}-", suffix=".begun", dir=path.parent))
    scratch = begun.with_suffix(SCRATCH_SUFFIX)
    with (begun / SCRATCH_LOCK).open("w") as lock:
        with suppress(OSError):  # on a file system without locks nobody else can remove the folder either
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
            if lock_path.exists():  # its holder may have removed it before this process had the lock
                _remove_leftover(lock_path.parent)


def _remove_leftover(scratch: Path) -> None:
    """Remove what a killed run left; what it had already put aside for a finished folder is put in its place."""
    folder = scratch.with_name(scratch.stem[1:].rpartition("-")[0])
    if (scratch / OLD).exists() and (scratch / NEW).exists() and not folder.exists():
        (scratch / NEW).rename(folder)
        logger.warning("%s: put in place, as a run that was killed had finished it", folder)
    num_bytes = sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file())
    shutil.rmtree(scratch)
    logger.warning("%s: removed %.1f MB that a run left when it was killed", scratch, num_bytes / 1e6)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`. The kernel frees it when its holder dies; the file stays, as others may wait on it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("%s: another process is at work here; waiting for it", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file that a reader finds whole or not at all, also after a power cut. One writer at a time: `locked`.

    A write that fails, as on a full disk, leaves nothing; what a killed one leaves, the next one overwrites.
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


def wait_for(missing: Callable[[], Sequence[str]], wait_s: float) -> None:
    """Returns once `missing` names nothing any more, or after `wait_s` seconds; says meanwhile what it waits for."""
    started = said = time.monotonic()
    while (names := missing()) and time.monotonic() - started < wait_s:
        if said == started or time.monotonic() - said > SAY_EVERY_S:
            said = time.monotonic()
            logger.warning("waiting, at most %.0f s in all, for %s", wait_s, ", ".join(names))
        time.sleep(min(LOOK_EVERY_S, wait_s))


def cache_folder() -> Path:
    """Where this project keeps what it can make again: `fashion-rag` in $XDG_CACHE_HOME, or else in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fashion-rag"


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def joint_sha256(paths: Iterable[Path]) -> str:
    """One SHA-256 of several files in their order: of their digests, which do not run into one another."""
    return hashlib.sha256("".join(map(sha256, paths)).encode()).hexdigest()


def copy_files(source: Path, target: Path) -> None:
    """Copy the plain files directly in `source` into the new folder `target`."""
    target.mkdir()
    for path in source.iterdir():
        if path.is_file():
            shutil.copyfile(path, target / path.name)
