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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fashion_rag.errors import ArtifactError

MANIFEST_FILE = "manifest.json"
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
    """A new folder beside `folder` that takes its place, old content and all, when the block ends without an error.

    Raises ArtifactError if `folder` holds something that is not ours to replace, which is anything without a manifest.
    """
    if folder.exists() and not (folder / MANIFEST_FILE).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise ArtifactError(f"{folder}: exists and has no {MANIFEST_FILE}; give a new or an empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # On the same file system, so that the renames cannot fail half way through a copy.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
        new = Path(beside) / "new"
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(Path(beside) / "old")
        new.rename(folder)


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
    """Write a file that a reader finds whole or not at all, also after a power cut. One writer at a time: `locked`."""
    aside = path.with_name(f"{path.name}.part")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
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
