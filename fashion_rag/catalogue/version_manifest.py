"""The manifest of a catalogue version: which files it has, which encoders made it, which live changes it holds.

`versions.py` writes a manifest as the last file of a version, and accepts only manifests that keep every rule.
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

    name: the time of publishing and a digest of the files, so that versions of equal content have the same end of the
    name. files: by their path in the version's folder. encoders: fingerprints, by what they encode. parent: the version
    it was built from. changes: the live changes it holds (name of the change -> id of the garment): its own and, while
    they are in the log, those of its ancestors.
    """

    name: str
    files: Mapping[str, FileEntry]
    encoders: Mapping[str, str]
    parent: str | None
    num_garments: int
    changes: Mapping[str, str]

    @property
    def folder(self) -> str:
        """Return the name of the version's folder in the root."""
        return f"versions/{self.name}"


def parse_manifest(data: bytes, name: str) -> Version:
    """Return the version that a manifest describes. name: of the folder that the manifest is in.

    Raises ArtifactError for a manifest that is damaged, of another format, or of another version.
    """
    try:
        content = json.loads(data)
        format_version = content.pop("format_version")
        if format_version != FORMAT_VERSION:
            is_newer = isinstance(format_version, int) and format_version > FORMAT_VERSION
            hint = " (written by a newer release?)" if is_newer else ""
            raise ArtifactError(f"format_version is {format_version!r}{hint}; must be {FORMAT_VERSION}")
        files = {file_name: FileEntry(**entry) for file_name, entry in content.pop("files").items()}
        version = Version(files=files, **content)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ArtifactError(f"not the manifest of a version: {error!r}") from error
    for field, is_sound in _field_checks(version, name).items():
        if not is_sound:
            raise ArtifactError(f"not the manifest of this version: {field}: got {getattr(version, field)!r:.80}")
    return version


def manifest_of(version: Version) -> bytes:
    """Return the manifest of a version. Raises ArtifactError if `parse_manifest` would refuse it."""
    data = json.dumps({"format_version": FORMAT_VERSION} | asdict(version), indent=1).encode()
    parse_manifest(data, version.name)
    return data


def _field_checks(version: Version, name: str) -> dict[str, bool]:
    """Return for each field of a version in the folder `name` whether it keeps the rules."""
    return {
        "name": version.name == name and _is_version_name(name),
        "files": bool(version.files) and all(_is_sound_file(*item) for item in version.files.items()),
        "encoders": is_texts(version.encoders),
        "parent": version.parent is None or _is_version_name(version.parent),
        "num_garments": type(version.num_garments) is int and version.num_garments >= 0,
        "changes": is_texts(version.changes),
    }


def _is_version_name(name: object) -> bool:
    return isinstance(name, str) and bool(re.fullmatch(VERSION_NAME, name))


def _is_sound_file(name: str, entry: FileEntry) -> bool:
    has_sound_name = bool(re.fullmatch(FILE_NAME, name)) and name != MANIFEST_FILE
    # A bool is an int, but not a size.
    return has_sound_name and type(entry.size) is int and entry.size >= 0 and isinstance(entry.sha256, str)


def is_texts(content: object) -> bool:
    """Return whether `content` is a dict from texts to texts, as read from JSON."""
    return isinstance(content, dict) and all(isinstance(text, str) for text in content.values())
