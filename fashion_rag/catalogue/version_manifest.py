"""The manifest of a catalogue version: which files it has, which encoders made it, which live changes it holds.

`versions.py` writes one last of all when it publishes, and trusts none that it reads until every rule below is kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from fashion_rag.artifacts import MANIFEST_FILE
from fashion_rag.catalogue.storage import STAMP, FileEntry
from fashion_rag.errors import ArtifactError

FORMAT_VERSION = 1
VERSION_NAME = STAMP + r"-[0-9a-f]{16}"
# No part begins with a dot, so none leads upwards.
FILE_NAME = r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*"


@dataclass(frozen=True)
class Version:
    """What a version's manifest says.

    name: the time of publishing and a digest of the files, so that equal content is known by its end. files: by their
    path in the version's folder. encoders: fingerprints, by what they encode. parent: the version it was built from.
    changes: the live changes it holds (name of the change -> id of the garment), its own and, while they are in the
    log, those of its ancestors.
    """

    name: str
    files: Mapping[str, FileEntry]
    encoders: Mapping[str, str]
    parent: str | None
    num_garments: int
    changes: Mapping[str, str]

    @property
    def folder(self) -> str:
        """Return the its folder's name in the root."""
        return f"versions/{self.name}"


def parse_manifest(data: bytes, name: str) -> Version:
    """Return the version that the manifest of the folder `name` tells of.

    Raises ArtifactError for a manifest that is none.
    """
    try:
        content = json.loads(data)
        found = content.pop("format_version")
        if found != FORMAT_VERSION:
            newer = " (written by a newer release?)" if isinstance(found, int) and found > FORMAT_VERSION else ""
            raise ArtifactError(f"format_version is {found!r}{newer}; must be {FORMAT_VERSION}")
        files = {file_name: FileEntry(**entry) for file_name, entry in content.pop("files").items()}
        version = Version(files=files, **content)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ArtifactError(f"not the manifest of a version: {error!r}") from error
    for field, sound in _rules(version, name).items():
        if not sound:
            raise ArtifactError(f"not the manifest of this version: {field}: got {getattr(version, field)!r:.80}")
    return version


def manifest_of(version: Version) -> bytes:
    """Return the manifest of a version. Raises ArtifactError if it would not be read again."""
    data = json.dumps({"format_version": FORMAT_VERSION} | asdict(version), indent=1).encode()
    parse_manifest(data, version.name)
    return data


def _rules(version: Version, name: str) -> dict[str, bool]:
    """Return whether each field of a version in the folder `name` is sound."""
    entries = version.files.values()
    return {
        "name": version.name == name and bool(re.fullmatch(VERSION_NAME, name)),
        "files": bool(version.files)
        and all(re.fullmatch(FILE_NAME, file_name) and file_name != MANIFEST_FILE for file_name in version.files)
        and all(type(entry.size) is int and entry.size >= 0 and isinstance(entry.sha256, str) for entry in entries),
        "encoders": is_texts(version.encoders),
        "parent": version.parent is None
        or (isinstance(version.parent, str) and bool(re.fullmatch(VERSION_NAME, version.parent))),
        "num_garments": type(version.num_garments) is int and version.num_garments >= 0,
        "changes": is_texts(version.changes),
    }


def is_texts(content: object) -> bool:
    """Return whether `content` is a dict from texts to texts, as read from JSON."""
    return isinstance(content, dict) and all(isinstance(text, str) for text in content.values())
