"""A catalogue's root on disk or in a store, and the versions in it: publishing, opening, fetching, pruning.

    ROOT/CURRENT                the name of the live version
    ROOT/versions/NAME/         the files of a version, which never change, and manifest.json
    ROOT/retired/STAMP-of-NAME  an empty file whose name says when a version was replaced

A version without a manifest does not exist. The files are written first, then the manifest, then CURRENT, and the last
two appear whole or not at all. So a process that is killed leaves the old or the new version live, and at worst files
that nobody sees until `prune` removes them. Whatever changes CURRENT or removes a version holds the root's lock.

The build publishes; the servers ask `current`, and then `live` and `fetch`; `changes.py` has its log in the same root.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fashion_rag.artifacts import MANIFEST_FILE, sha256
from fashion_rag.catalogue.storage import FileEntry, Root, moment, stamp
from fashion_rag.catalogue.version_manifest import (
    FILE_NAME,
    VERSION_NAME,
    Version,
    manifest_of,
    parse_manifest,
)
from fashion_rag.errors import ArtifactError

CURRENT = "CURRENT"
# The folder of the log of live changes.
CHANGES = "changes"
MAX_MANIFEST_BYTES = 2**26


class VersionConflict(ArtifactError):
    """The version to be replaced is not live any more, so that replacing it would discard another's work."""


def current(root: Root) -> str | None:
    """Return the name of the live version, None before the first. It is cheap enough to be asked every second.

    Raises ArtifactError if CURRENT holds something else.
    """
    try:
        name = root.read(CURRENT, 100).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None
    if not re.fullmatch(VERSION_NAME, name):
        raise ArtifactError(f"{root.full(CURRENT)}: got {name!r}; must be the name of a version")
    return name


def missing_catalogue(path: str) -> list[str]:
    """Return the file that names the live version at `path`, a path or URL, if it is not there (yet); else nothing."""
    root = Root.at(path)
    return [] if current(root) else [root.full(CURRENT)]


def live(root: Root, digests: bool = False) -> Version:
    """Return the version that CURRENT names, checked as by `open_version`. Raises ArtifactError if there is none."""
    name = current(root)
    if name is None:
        raise ArtifactError(f"{root.full(CURRENT)}: does not exist; no version has been published")
    return open_version(root, name, digests)


def open_version(root: Root, name: str, digests: bool = False) -> Version:
    """Return a version by its name.

    digests: also read all the files and compare their SHA-256.

    Raises ArtifactError unless the manifest is sound and the version's folder has exactly the files that the manifest
    names, in their sizes and none of them a link.
    """
    if not re.fullmatch(VERSION_NAME, name):
        raise ArtifactError(f"{root.path}: got {name!r}; must be the name of a version")
    path = f"versions/{name}/{MANIFEST_FILE}"
    try:
        data = root.read(path, MAX_MANIFEST_BYTES)
    except FileNotFoundError as error:
        raise ArtifactError(f"{root.full(path)}: does not exist; the version is unfinished or was pruned") from error
    try:
        version = parse_manifest(data, name)
    except ArtifactError as error:
        raise ArtifactError(f"{root.full(path)}: {error}") from error
    _check_files(root, version)
    if digests:
        for file_name, entry in version.files.items():
            # Reading to the end checks the digest.
            for _ in root.content(f"{version.folder}/{file_name}", entry):
                pass
    return version


def versions(root: Root) -> list[Version]:
    """Return the versions that can be opened, oldest first; unfinished and damaged ones are left out."""
    sound = []
    for name in root.names("versions"):
        with suppress(ArtifactError):
            sound.append(open_version(root, name))
    return sound


def publish(
    root: Root,
    folder: Path,
    *,
    parent: str | None,
    num_garments: int,
    encoders: Mapping[str, str],
    changes: Mapping[str, str],
) -> Version:
    """Copy the files in `folder` into a new version, make it live and return it.

    parent: the version it was built from, None for the first.
    num_garments: how many garments the version has.
    encoders: the fingerprints of its encoders.
    changes: the changes of the log that it takes in beyond those of its parent.

    Raises VersionConflict if `parent` is not the live version: build on the live one and publish again. What was copied
    by then stays, and the message names it, for `activate`. Raises ArtifactError for a folder with links or odd names.
    Whatever it raises, and wherever it is killed, the live version stays live and whole.
    """
    _check_is_live(root, parent, str(folder))
    files = _entries(folder)
    listing = {file_name: asdict(entry) for file_name, entry in files.items()}
    digest = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    name = f"{stamp(root.names('versions'))}-{digest[:16]}"
    version = Version(name, files, dict(encoders), parent, num_garments, _inherited(root, parent) | dict(changes))
    manifest = manifest_of(version)
    for file_name, entry in files.items():
        root.copy_in(f"{version.folder}/{file_name}", Root.at(folder).content(file_name, entry))
    with root.locked() as check:
        _check_files(root, version)
        check()
        root.write(f"{version.folder}/{MANIFEST_FILE}", manifest)
        _make_live(root, name, parent, check)
    return version


def activate(root: Root, name: str, *, replacing: str | None) -> Version:
    """Make an older version, or one whose publishing met a conflict, live again in place of `replacing`; return it.

    Raises VersionConflict if `replacing` is not the live version, and ArtifactError as `open_version` does.
    """
    with root.locked() as check:
        version = open_version(root, name)
        _make_live(root, name, replacing, check)
    return version


def fetch(root: Root, version: Version, cache: Path) -> Path:
    """Return a local folder with the files of a version: its own if the root is local, else a folder in `cache`.

    A version is downloaded whole or not at all, once for all processes that share `cache`, and compared with its
    manifest. A cache is laid out like a root and can be pruned like one. Raises ArtifactError for files that are not as
    the manifest says.
    """
    if root.is_local:
        _check_files(root, version)
        return Path(root.full(version.folder))
    local = Root.at(cache)
    with local.locked():
        if version not in versions(local):
            local.remove(version.folder)
            for name, entry in version.files.items():
                local.copy_in(f"{version.folder}/{name}", root.content(f"{version.folder}/{name}", entry))
            local.write(f"{version.folder}/{MANIFEST_FILE}", manifest_of(version))
    return Path(local.full(version.folder))


def prune(root: Root, keep: int = 3, grace_s: float = 3600.0) -> list[str]:
    """Remove old versions and what killed writers left; return the names of the versions.

    The live version and the `keep` newest stay. Others are removed no earlier than `grace_s` after they were published
    and after they were last replaced, since readers may still use them. An unfinished version, which may still be
    written, is removed `grace_s` after it was begun.
    """
    limit = datetime.now(UTC) - timedelta(seconds=grace_s)
    with root.locked() as check:
        whole = [version.name for version in versions(root)]
        kept = {current(root), *whole[max(0, len(whole) - keep) :]}
        ours = [name for name in root.names("versions") if re.fullmatch(VERSION_NAME, name)]
        last_used = _last_used(root, ours)
        removed = [name for name in last_used if name not in kept and last_used[name] < limit]
        for name in removed:
            check()
            root.remove(f"versions/{name}")
        for mark in root.names("retired"):
            if mark.partition("-of-")[2] not in last_used.keys() - removed:
                root.remove(f"retired/{mark}")
    for name in root.names(".aside"):
        with suppress(FileNotFoundError):
            if root.fs.modified(root.full(f".aside/{name}")) < limit:
                root.remove(f".aside/{name}")
    return removed


def _last_used(root: Root, names: Iterable[str]) -> dict[str, datetime]:
    """Return when each of these versions was begun or last replaced, whichever is later, by name."""
    last_used = {}
    for name in names:
        begun = moment(name)
        if begun:
            last_used[name] = begun
    for mark in root.names("retired"):
        replaced, name = moment(mark), mark.partition("-of-")[2]
        if replaced and name in last_used:
            last_used[name] = max(replaced, last_used[name])
    return last_used


def _make_live(root: Root, name: str, replacing: str | None, check: Callable[[], None]) -> None:
    """Write the name of a whole version into CURRENT. The caller holds the root's lock, whose check is `check`.

    Raises VersionConflict if `replacing` is not the live version.
    """
    _check_is_live(root, replacing, name)
    check()
    if replacing is not None:
        root.write(f"retired/{stamp()}-of-{replacing}", b"\n")
    check()
    root.write(CURRENT, f"{name}\n".encode())


def _check_is_live(root: Root, name: str | None, successor: str) -> None:
    """Raise VersionConflict, for the version or folder `successor`, unless `name` is the live version."""
    live_name = current(root)
    if live_name != name:
        raise VersionConflict(
            f"{root.full(CURRENT)}: names {live_name}; must still name {name} for {successor} to follow"
        )


def _entries(folder: Path) -> dict[str, FileEntry]:
    """Return what a manifest is to say of the files in a local folder, in order of their names.

    Raises ArtifactError for a folder with links, with odd names or without files.
    """
    entries = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ArtifactError(f"{path}: must be a plain file or a folder, not a link")
        if not re.fullmatch(FILE_NAME, name) or name == MANIFEST_FILE:
            raise ArtifactError(f"{path}: must match {FILE_NAME} and not be {MANIFEST_FILE}")
        if path.is_file():
            entries[name] = FileEntry(path.stat().st_size, sha256(path))
    if not entries:
        raise ArtifactError(f"{folder}: has no files to publish")
    return entries


def _inherited(root: Root, parent: str | None) -> dict[str, str]:
    """Return the changes that a version holds because its parent does, as far as they are still in the log."""
    if parent is None:
        return {}
    in_log = set(root.names(CHANGES))
    try:
        taken_in = open_version(root, parent).changes
    except ArtifactError:
        # A damaged parent must not prevent its own repair. Its changes are laid over the new version once more.
        return {}
    return {name: taken_in[name] for name in taken_in if name in in_log}


def _check_files(root: Root, version: Version) -> None:
    """Raise ArtifactError unless a version's folder holds exactly its files, in their sizes, and no links."""
    folder = root.full(version.folder)
    if root.is_local and os.path.islink(folder):
        raise ArtifactError(f"{folder}: must not be a link")
    on_disk = {path.removeprefix(f"{folder}/"): info for path, info in root.fs.find(folder, detail=True).items()}
    for name in sorted((on_disk.keys() | version.files.keys()) - {MANIFEST_FILE}):
        if name not in on_disk:
            raise ArtifactError(f"{folder}/{name}: is missing; the manifest names it")
        if name not in version.files:
            raise ArtifactError(f"{folder}/{name}: is foreign; the manifest does not name it")
        size, expected_size = on_disk[name]["size"], version.files[name].size
        if size != expected_size:
            raise ArtifactError(f"{folder}/{name}: has {size} bytes; the manifest says {expected_size}")
    for name, info in on_disk.items():
        if info["type"] != "file":
            raise ArtifactError(f"{folder}/{name}: must be a plain file, not a link")
