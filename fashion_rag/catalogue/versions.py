"""A catalogue's root on disk or in a store, and the versions in it: publishing, opening, fetching, pruning.

    ROOT/CURRENT                the name of the live version
    ROOT/versions/NAME/         the files of a version, for ever as they were published, and manifest.json
    ROOT/retired/STAMP-of-NAME  empty: when a version was replaced

A version without a manifest does not exist: the files are written first, then the manifest, then CURRENT, and the last
two appear whole or not at all. So whoever is killed leaves the old or the new version live, and at worst files that
nobody sees until `prune` removes them. What changes CURRENT or removes a version holds the root's lock.

The build publishes; the servers ask `current`, and then `live` and `fetch`; `changes.py` lays its log in the same root.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
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
CHANGES = "changes"  # the folder of the log of live changes
MAX_MANIFEST_BYTES = 2**26


class VersionConflict(ArtifactError):
    """Another version became live since the one to be replaced was looked up: nobody's work is overwritten."""


def current(root: Root) -> str | None:
    """Return the name of the live version, None before the first; cheap enough to ask every second."""
    try:
        name = root.read(CURRENT, 100).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None
    if not re.fullmatch(VERSION_NAME, name):
        raise ArtifactError(f"{root.full(CURRENT)}: got {name!r}; must be the name of a version")
    return name


def missing_catalogue(path: str) -> list[str]:
    """Return the file that says which version is live, at a path or URL, if it is not there (yet); else nothing."""
    root = Root.at(path)
    return [] if current(root) else [root.full(CURRENT)]


def live(root: Root, digests: bool = False) -> Version:
    """Return the version that CURRENT names, checked as by `open_version`. Raises ArtifactError if there is none."""
    name = current(root)
    if name is None:
        raise ArtifactError(f"{root.full(CURRENT)}: does not exist; no version has been published")
    return open_version(root, name, digests)


def open_version(root: Root, name: str, digests: bool = False) -> Version:
    """Return a version by name: its manifest is sound, and exactly its files are there in their sizes, none through a
    link.

    With `digests` all of them are read and compared. Raises ArtifactError with the reason.
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
    for file_name, entry in version.files.items() if digests else ():
        for _ in root.content(f"{version.folder}/{file_name}", entry):
            pass
    return version


def versions(root: Root) -> list[Version]:
    """Return the versions that can be opened, oldest first; what is unfinished or damaged is left out."""
    found = []
    for name in root.names("versions"):
        with suppress(ArtifactError):
            found.append(open_version(root, name))
    return found


def publish(
    root: Root,
    folder: Path,
    *,
    parent: str | None,
    num_garments: int,
    encoders: Mapping[str, str],
    changes: Mapping[str, str],
) -> Version:
    """Return the new live version, with copies of the files in `folder`, which is left as it is.

    parent: the version it was built from, None for the first. changes: those of the log it takes in beyond its parent.
    Raises VersionConflict if `parent` is not, or no longer, live: build on the live one and publish again; what was
    already copied stays, named in the message, for `activate`. Raises ArtifactError for a folder with links or odd
    names. Whatever it raises, and wherever it is killed, what is live stays live and whole.
    """
    _check_is_live(root, parent, str(folder))
    files = _entries(folder)
    digest = hashlib.sha256(json.dumps({name: asdict(files[name]) for name in files}).encode()).hexdigest()
    name = f"{stamp(root.names('versions'))}-{digest[:16]}"
    version = Version(name, files, dict(encoders), parent, num_garments, _inherited(root, parent) | dict(changes))
    manifest = manifest_of(version)
    for file_name, entry in files.items():
        root.copy_in(f"{version.folder}/{file_name}", Root.at(folder).content(file_name, entry))
    with root.locked() as check:
        _check_files(root, version)
        check()
        root.write(f"{version.folder}/{MANIFEST_FILE}", manifest)
        _swing(root, name, parent, check)
    return version


def activate(root: Root, name: str, *, replacing: str | None) -> Version:
    """Return an older version, or one that met a conflict, made live in place of the version `replacing`.

    Raises VersionConflict if that is not the live one, and ArtifactError as `open_version`.
    """
    with root.locked() as check:
        version = open_version(root, name)
        _swing(root, name, replacing, check)
    return version


def fetch(root: Root, version: Version, cache: Path) -> Path:
    """Return a local folder with the files of a version: its own where the root is local, else one below `cache`.

    Downloaded whole or not at all, once for all processes that share `cache`, and compared with the manifest. A cache
    is laid out as a root and can be pruned as one. Raises ArtifactError for files that are not as the manifest says.
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
    """Return the names of what was removed: versions but the live one and the `keep` newest, and what killed writers
    left.

    A version goes no earlier than `grace_s` after it was published and after it was last replaced, since readers may
    still be on it; an unfinished one, which may still be written, `grace_s` after its beginning.
    """
    limit = datetime.now(UTC) - timedelta(seconds=grace_s)
    with root.locked() as check:
        whole = [version.name for version in versions(root)]
        kept = {current(root), *whole[max(0, len(whole) - keep) :]}
        ours = [name for name in root.names("versions") if re.fullmatch(VERSION_NAME, name)]
        last_used = {name: said for name in ours if (said := moment(name))}
        for mark in root.names("retired"):
            said, name = moment(mark), mark.partition("-of-")[2]
            if said and name in last_used:
                last_used[name] = max(said, last_used[name])
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


def _swing(root: Root, name: str, replacing: str | None, check: Callable[[], None]) -> None:
    """Have CURRENT name a whole version. Under the root's lock."""
    _check_is_live(root, replacing, name)
    check()
    if replacing is not None:
        root.write(f"retired/{stamp()}-of-{replacing}", b"\n")
    check()
    root.write(CURRENT, f"{name}\n".encode())


def _check_is_live(root: Root, name: str | None, successor: str) -> None:
    found = current(root)
    if found != name:
        raise VersionConflict(f"{root.full(CURRENT)}: names {found}; must still name {name} for {successor} to follow")


def _entries(folder: Path) -> dict[str, FileEntry]:
    """Return what a manifest says of the files in a local folder, in order of their names."""
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
    """Return the changes that a version holds through its parent, as far as they are still in the log."""
    if parent is None:
        return {}
    in_log = set(root.names(CHANGES))
    try:
        taken_in = open_version(root, parent).changes
    except ArtifactError:
        return {}  # a damaged parent must not bar its own repair; its changes are laid over once more
    return {name: taken_in[name] for name in taken_in if name in in_log}


def _check_files(root: Root, version: Version) -> None:
    """Raise ArtifactError unless a version's folder holds exactly its files, in their sizes, and no links."""
    folder = root.full(version.folder)
    if root.is_local and os.path.islink(folder):
        raise ArtifactError(f"{folder}: must not be a link")
    found = {path.removeprefix(f"{folder}/"): info for path, info in root.fs.find(folder, detail=True).items()}
    for name in sorted((found.keys() | version.files.keys()) - {MANIFEST_FILE}):
        if name not in found:
            raise ArtifactError(f"{folder}/{name}: is missing; the manifest names it")
        if name not in version.files:
            raise ArtifactError(f"{folder}/{name}: is foreign; the manifest does not name it")
        if found[name]["size"] != version.files[name].size:
            raise ArtifactError(
                f"{folder}/{name}: has {found[name]['size']} bytes; the manifest says {version.files[name].size}"
            )
    for name, info in found.items():
        if info["type"] != "file":
            raise ArtifactError(f"{folder}/{name}: must be a plain file, not a link")
