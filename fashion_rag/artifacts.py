"""Artifacts on disk: JSON files, digests, and waiting for files that are not there yet.

Called by all modules that keep something on disk. `atomic_files.py` writes folders and files whole. `weights.py` reads
and writes weights; it is a module of its own, so that a process without networks does not import PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from fashion_rag.errors import ArtifactError

MANIFEST_FILE = "manifest.json"
LOOK_EVERY_S = 1.0
LOG_EVERY_S = 30.0
# The coarsest clock by which a file system dates files, that of FAT, ticks every 2 s.
RECENT_S = 3.0

logger = logging.getLogger(__name__)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises ArtifactError, naming the path, for one that is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not a readable JSON file: {error}") from error


def read_config(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises ArtifactError as `read_json`, and for anything but an object."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: holds a {type(content).__name__}; must be an object")
    return content


def write_json(path: Path, content: object) -> None:
    """Write `content` as a JSON file, with a line for each entry."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def wait_for(missing: Callable[[], Sequence[str]], wait_s: float) -> None:
    """Wait until `missing` returns no names any more, but at most `wait_s` seconds; log the names meanwhile."""
    started = last_logged = time.monotonic()
    while (names := missing()) and time.monotonic() - started < wait_s:
        if last_logged == started or time.monotonic() - last_logged > LOG_EVERY_S:
            last_logged = time.monotonic()
            logger.warning("waiting, at most %.0f s in all, for %s", wait_s, ", ".join(names))
        time.sleep(min(LOOK_EVERY_S, wait_s))


def cache_folder() -> Path:
    """Return the folder for files that can be made again: `fashion-rag` in $XDG_CACHE_HOME, or else in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fashion-rag"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal.

    A process reads a file again only if it has changed, or was written so lately that its times might not show that.
    """
    stat = path.stat()
    if time.time() - stat.st_mtime < RECENT_S:
        return _read_sha256(path)
    return _kept_sha256(path, (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))


@lru_cache(maxsize=1024)
def _kept_sha256(path: Path, identity: tuple[int, ...]) -> str:
    """Return the SHA-256 of a file. identity: what tells the file from all others at `path`, earlier ones included."""
    return _read_sha256(path)


def _read_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def joint_sha256(paths: Iterable[Path]) -> str:
    """Return one SHA-256 of several files in their order, which is the digest of their digests."""
    return hashlib.sha256("".join(map(sha256, paths)).encode()).hexdigest()


def copy_files(source: Path, target: Path) -> None:
    """Copy the plain files directly in `source` into the new folder `target`."""
    target.mkdir()
    for path in source.iterdir():
        if path.is_file():
            shutil.copyfile(path, target / path.name)
