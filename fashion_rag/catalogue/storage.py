"""A folder on disk or in a store, written by many: files that are whole or not there, a lock, names that sort by time.

`versions.py` and `changes.py` keep a catalogue in one.
"""

from __future__ import annotations

import fcntl
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

from fashion_rag.errors import ArtifactError

STAMP = r"2[01][0-9]{6}T[0-9]{12}Z"
CHUNK_BYTES = 2**20
# Where the lock is a file in a store: how long it holds if its holder died, far above what a holder needs.
LEASE_S = 60.0


def moment(name: str) -> datetime | None:
    """Return the time at the head of a stamped name, None where there is none."""
    try:
        said = datetime.strptime(name[:22], "%Y%m%dT%H%M%S%fZ").replace(tzinfo=UTC)
    except ValueError:
        return None
    return said if re.match(STAMP, name) else None


def stamp(earlier: Iterable[str] = ()) -> str:
    """Return the head of a new stamped name: the time now, or the next after the stamped names in `earlier`."""
    now = datetime.now(UTC)
    latest = next((said for name in sorted(earlier, reverse=True) if (said := moment(name))), None)
    return _as_stamp(now if latest is None else max(now, latest + timedelta(microseconds=1)))


def _as_stamp(said: datetime) -> str:
    return said.strftime("%Y%m%dT%H%M%S%fZ")


@dataclass(frozen=True)
class FileEntry:
    """What a manifest says of a file: its size in bytes and the SHA-256 of its content."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Root:
    """A folder in a local or remote file system; names in it are relative, with '/'. Made by `at`."""

    fs: Any
    path: str

    @classmethod
    def at(cls, url: str | Path) -> Root:
        """Return the root at a local path, or at any URL that fsspec knows. It need not exist yet.

        Raises ArtifactError for a URL of a kind that fsspec does not know, or needs another package for.
        """
        # Other processes write here as well, so a listing must never be an old one.
        try:
            return cls(*fsspec.core.url_to_fs(str(url), use_listings_cache=False))
        except (ImportError, ValueError) as error:
            raise ArtifactError(f"{url}: must be a folder or a URL that can be opened: {error}") from error

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def full(self, name: str) -> str:
        """Return what the file system calls `name`."""
        return f"{self.path}/{name}"

    def names(self, folder: str) -> list[str]:
        """Return what lies directly in a folder, sorted; nothing where there is no such folder."""
        try:
            return sorted(posixpath.basename(path) for path in self.fs.ls(self.full(folder), detail=False))
        except FileNotFoundError:
            return []

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the bytes of a file.

        Raises FileNotFoundError, and ArtifactError where it is too long or unreadable.
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
        """Write a file, whole or not at all, in place of an earlier one."""
        path = self.full(name)
        self.fs.makedirs(posixpath.dirname(path), exist_ok=True)
        if not self.is_local:
            self.fs.pipe_file(path, data)
            return
        aside = self.full(f".aside/{secrets.token_hex(8)}")
        os.makedirs(posixpath.dirname(aside), exist_ok=True)
        with open(aside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        self._sync(posixpath.dirname(name))

    def copy_in(self, name: str, chunks: Iterable[bytes]) -> None:
        """Write a file piece by piece. Cut short it stays as it is: it counts only once a manifest names it."""
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
        """Yield a file in chunks. Raises ArtifactError, at its end at the latest, if it is not what `entry` says."""
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
        """Have a local disk keep the names in a folder, and those of the folders above it."""
        while True:
            descriptor = os.open(self.full(folder), os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
            if not folder:
                break
            folder = posixpath.dirname(folder)

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all in it; nothing where there is none."""
        with suppress(FileNotFoundError):
            self.fs.rm(self.full(name), recursive=True)

    @contextmanager
    def locked(self) -> Iterator[Callable[[], None]]:
        """Hold off everybody else who takes this lock; yields a check, to be called before each step that needs it.

        Locally the lock ends with the process that holds it. In a store it is a file that lapses after LEASE_S, and
        the check raises ArtifactError from half that time on: only who stalls for the other half inside one step could
        meet the next holder.
        """
        if self.is_local:
            os.makedirs(self.path, exist_ok=True)
            with open(self.full(".lock"), "wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
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
        """Return a file in locks/ that was there alone when it was laid down, and when that was (of time.monotonic).

        Of two that see each other's, both step back. This asks for no exclusive creation, which not every store has;
        and nobody removes a new holder's file for a lapsed one, since no name comes twice.
        """
        give_up = time.monotonic() + 2 * LEASE_S
        while (taken := time.monotonic()) < give_up:
            now = datetime.now(UTC)
            ticket = f"locks/{_as_stamp(now + timedelta(seconds=LEASE_S))}-{secrets.token_hex(8)}"
            self.write(ticket, b"lock\n")
            others = [name for name in self.names("locks") if f"locks/{name}" != ticket]
            lapsed = {name for name in others if (end := moment(name)) and end < now}
            for name in lapsed:
                self.remove(f"locks/{name}")
            if lapsed.issuperset(others):
                return ticket, taken
            self.remove(ticket)
            time.sleep(random.uniform(0.05, 0.5))
        raise ArtifactError(f"{self.full('locks')}: others have held the lock for {2 * LEASE_S:g} s")
