"""A folder on disk or in a store that many processes write to: whole files, a lock, and names that sort by time.

`versions.py` and `changes.py` keep a catalogue in such a `Root`.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import random
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from fashion_rag.atomic_files import locked
from fashion_rag.errors import ArtifactError

STAMP = r"2[01][0-9]{6}T[0-9]{12}Z"
CHUNK_BYTES = 2**20
# In a store the lock is a file. It lapses after this time if its holder has died; a holder needs far less.
LEASE_S = 60.0


def moment(name: str) -> datetime | None:
    """Return the time with which a stamped name begins, None if it begins with something else."""
    try:
        time_in_name = datetime.strptime(name[:22], "%Y%m%dT%H%M%S%fZ").replace(tzinfo=UTC)
    except ValueError:
        return None
    return time_in_name if re.match(STAMP, name) else None


def stamp(earlier: Iterable[str] = ()) -> str:
    """Return the beginning of a new stamped name: the time now, or just after the latest stamp in `earlier`."""
    time_of_stamp = datetime.now(UTC)
    for name in sorted(earlier, reverse=True):
        latest = moment(name)
        if latest is not None:
            time_of_stamp = max(time_of_stamp, latest + timedelta(microseconds=1))
            break
    return _as_stamp(time_of_stamp)


def _as_stamp(time_of_stamp: datetime) -> str:
    return time_of_stamp.strftime("%Y%m%dT%H%M%S%fZ")


@dataclass(frozen=True)
class FileEntry:
    """What a manifest says of a file: its size in bytes and the SHA-256 of its content."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Root:
    """A folder in a local or remote file system, made by `at`. Names of files in it are relative to it, with '/'."""

    fs: Any
    path: str

    @classmethod
    def at(cls, url: str | Path) -> Root:
        """Return the root at a local path, or at any URL that fsspec knows. It need not exist yet.

        Raises ArtifactError for a URL of a kind that fsspec does not know, or for which it needs another package.
        """
        # Other processes write here as well, so listings must not come from a cache.
        try:
            return cls(*fsspec.core.url_to_fs(str(url), use_listings_cache=False))
        except (ImportError, ValueError) as error:
            raise ArtifactError(f"{url}: must be a folder or a URL that can be opened: {error}") from error

    @property
    def is_local(self) -> bool:
        """Return whether the root is in the local file system."""
        return isinstance(self.fs, LocalFileSystem)

    def full(self, name: str) -> str:
        """Return the path by which the file system knows `name`."""
        return f"{self.path}/{name}"

    def names(self, folder: str) -> list[str]:
        """Return the names directly in a folder, sorted; none if there is no such folder."""
        try:
            return sorted(posixpath.basename(path) for path in self.fs.ls(self.full(folder), detail=False))
        except FileNotFoundError:
            return []

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the bytes of a file.

        Raises FileNotFoundError, and ArtifactError for a file that is too long or cannot be read.
        """
        try:
            data: bytes = self.fs.cat_file(self.full(name), start=0, end=max_bytes + 1)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ArtifactError(f"{self.full(name)}: cannot be read: {error}") from error
        if len(data) > max_bytes:
            raise ArtifactError(f"{self.full(name)}: must have at most {max_bytes} bytes")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all, in place of an earlier one. Several may write it at the same time."""
        path = self.full(name)
        self.fs.makedirs(posixpath.dirname(path), exist_ok=True)
        if not self.is_local:
            self.fs.pipe_file(path, data)
            return
        # `atomic_files.write_whole` is for one writer at a time and may leave half a file in a folder that is listed.
        aside = self.full(f".aside/{secrets.token_hex(8)}")
        os.makedirs(posixpath.dirname(aside), exist_ok=True)
        with open(aside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        self._sync(posixpath.dirname(name))

    def copy_in(self, name: str, chunks: Iterable[bytes]) -> None:
        """Write a file piece by piece. If this fails, a part may stay: a file counts only when a manifest names it."""
        path = self.full(name)
        self.fs.makedirs(posixpath.dirname(path), exist_ok=True)
        with self.fs.open(path, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            if self.is_local:
                file.flush()
                os.fsync(file.fileno())
        if self.is_local:
            self._sync(posixpath.dirname(name))

    def content(self, name: str, entry: FileEntry) -> Iterator[bytes]:
        """Yield a file in chunks. Raises ArtifactError, at its end at the latest, if it is not the file of `entry`."""
        digest, size = hashlib.sha256(), 0
        try:
            with self.fs.open(self.full(name), "rb") as file:
                while size <= entry.size and (chunk := file.read(CHUNK_BYTES)):
                    size += len(chunk)
                    digest.update(chunk)
                    yield chunk
        except OSError as error:
            raise ArtifactError(f"{self.full(name)}: cannot be read: {error}") from error
        if (size, digest.hexdigest()) != (entry.size, entry.sha256):
            raise ArtifactError(
                f"{self.full(name)}: is not the file of {entry.size} bytes with the SHA-256 {entry.sha256}"
            )

    def _sync(self, folder: str) -> None:
        """Write the names in a local folder, and in the folders above it, to the disk."""
        while True:
            descriptor = os.open(self.full(folder), os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
            if not folder:
                break
            folder = posixpath.dirname(folder)

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it, if there is one."""
        with suppress(FileNotFoundError):
            self.fs.rm(self.full(name), recursive=True)

    @contextmanager
    def locked(self) -> Iterator[Callable[[], None]]:
        """Hold the root's lock while the block runs; yield a check, to be called before each step that needs the lock.

        The lock of a local root ends with the process that holds it. In a store the lock is a file that lapses after
        LEASE_S, and the check raises ArtifactError from half that time on. So two could hold the lock at once only if
        the first one stalls for the other half of the time within one step.
        """
        if self.is_local:
            os.makedirs(self.path, exist_ok=True)
            with locked(Path(self.full(".lock"))):
                yield lambda: None
            return
        ticket, taken = self._only_ticket()

        def check() -> None:
            if time.monotonic() - taken > LEASE_S / 2:
                raise ArtifactError(f"{self.path}: took longer than {LEASE_S / 2:g} s under the lock; try again")

        try:
            yield check
        finally:
            self.remove(ticket)

    def _only_ticket(self) -> tuple[str, float]:
        """Return a new file in locks/ beside which there was no other, and when it was written (by time.monotonic).

        Two processes that see each other's files both remove their own and try again. So the store need not be able to
        create a file exclusively, which not every store can. No name is used twice, so that nobody can take the file of
        a new holder for one that has lapsed.

        Raises ArtifactError if others hold the lock for twice LEASE_S.
        """
        give_up = time.monotonic() + 2 * LEASE_S
        while (taken := time.monotonic()) < give_up:
            now = datetime.now(UTC)
            ticket = f"locks/{_as_stamp(now + timedelta(seconds=LEASE_S))}-{secrets.token_hex(8)}"
            self.write(ticket, b"lock\n")
            others = [name for name in self.names("locks") if f"locks/{name}" != ticket]
            lapsed = set()
            for name in others:
                end = moment(name)
                if end and end < now:
                    lapsed.add(name)
                    self.remove(f"locks/{name}")
            if lapsed.issuperset(others):
                return ticket, taken
            self.remove(ticket)
            time.sleep(random.uniform(0.05, 0.5))
        raise ArtifactError(f"{self.full('locks')}: others have held the lock for {2 * LEASE_S:g} s")
