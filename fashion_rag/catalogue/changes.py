"""The log of live changes: one small file a change, laid over the live version until a build has taken it in.

    ROOT/changes/STAMP-DIGEST   a garment that was added, that replaced the one with its id, or that was deleted
    ROOT/images/ab/abcd....jpg  uploaded pictures, by the SHA-256 of their bytes

A change is written once and never rewritten. Its name has the time, and the digest of the content, by which a damaged
file is recognised. **The order of the changes is that of their names, for every reader.** The time is that of the
writer's clock, but always later than every change already in the log. So a change that was made after another had been
stored overrules it, however wrong the clocks are. Only between changes that were stored at the same time do the clocks
decide, and then the digests.

The API calls `append`; the servers poll `read_since` and `fold`; the build takes in what is `pending`; `clear` then
removes what every version holds.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fashion_rag.catalogue.storage import STAMP, Root, moment, stamp
from fashion_rag.catalogue.table import GarmentRow, check_id, checked, from_record, to_record
from fashion_rag.catalogue.version_manifest import Version, is_texts
from fashion_rag.catalogue.versions import CHANGES, versions
from fashion_rag.errors import ArtifactError, InvalidRequest

CHANGE_NAME = STAMP + r"-[0-9a-f]{32}"
MAX_CHANGE_BYTES = 2**24


@dataclass(frozen=True, eq=False)
class GarmentAdded:
    """A garment that is new, or takes the place of the one with its id.

    vector: float32 [D] of its picture. pseudo_words: float32 [P, W]. encoders: the fingerprints of the encoders that
    made them, as in a version. Readers leave out what other encoders made; a build encodes it again.
    """

    row: GarmentRow
    vector: NDArray[np.float32]
    pseudo_words: NDArray[np.float32]
    encoders: Mapping[str, str]

    @property
    def garment_id(self) -> str:
        """Return the id of the garment."""
        return self.row.id


@dataclass(frozen=True)
class GarmentDeleted:
    """The deletion of a garment, which need not be in the catalogue."""

    garment_id: str


Change = GarmentAdded | GarmentDeleted


@dataclass(frozen=True)
class NewChanges:
    """What a reader of the log has not seen before.

    changes: by name, in their order. refused: files that are not sound changes, by name with the reason.
    """

    changes: dict[str, Change]
    refused: dict[str, str]


@dataclass(frozen=True)
class Pending:
    """What the log has and a version does not hold.

    last: the last change of each garment, by its id. taken_in: the name of each change and the id of its garment, for
    the version that takes them in. refused: files that are not sound changes, by name with the reason.
    """

    last: dict[str, Change]
    taken_in: dict[str, str]
    refused: dict[str, str]


def append(root: Root, change: Change) -> str:
    """Store a change in the log and return its name.

    Raises InvalidRequest for a change that breaks a rule.
    """
    data = _encode(change)
    if len(data) > MAX_CHANGE_BYTES:
        raise InvalidRequest("change", f"{len(data)} bytes", f"must have at most {MAX_CHANGE_BYTES}")
    name = f"{stamp(root.names(CHANGES))}-{_digest(data)}"
    root.write(f"{CHANGES}/{name}", data)
    return name


def read_since(root: Root, seen: Collection[str]) -> NewChanges:
    """Return the changes, and the files that are not sound changes, whose names are not in `seen`.

    This takes one listing of the log, and one read for each new name.
    """
    changes: dict[str, Change] = {}
    refused: dict[str, str] = {}
    for name in root.names(CHANGES):
        if name in seen:
            continue
        try:
            changes[name] = _read(root, name)
        except FileNotFoundError:
            continue  # It was cleared since the listing.
        except (ArtifactError, InvalidRequest) as error:
            refused[name] = str(error)
    return NewChanges(changes, refused)


def fold(changes: Mapping[str, Change], version: Version) -> dict[str, Change]:
    """Return the last change of each garment, by its id, that the changes (by name) add to what a version holds.

    Changes that the version holds are left out. So are changes that came to light only after the build of the version,
    if the version holds a later change of the same garment: the order is the same before and after a build.
    """
    last_held: dict[str, str] = {}
    for name, garment_id in version.changes.items():
        last_held[garment_id] = max(name, last_held.get(garment_id, ""))
    last: dict[str, Change] = {}
    for name in sorted(changes):
        change = changes[name]
        if name > last_held.get(change.garment_id, ""):
            last[change.garment_id] = change
    return last


def pending(root: Root, version: Version) -> Pending:
    """Return what the log has and `version` does not hold."""
    new = read_since(root, version.changes)
    taken_in = {name: change.garment_id for name, change in new.changes.items()}
    return Pending(fold(new.changes, version), taken_in, new.refused)


def clear(root: Root) -> list[str]:
    """Remove the changes that every version still on disk holds, and return their names.

    So the log still has all that any of these versions lacks, also for a version that is made live again. There is no
    grace period here: `prune` keeps the versions that readers may still use.
    """
    held = [version.changes.keys() for version in versions(root)]
    in_log = [name for name in root.names(CHANGES) if moment(name)]
    # The latest change stays, so that what is appended later gets a later name. Otherwise a change of a fast clock that
    # a version holds would overrule changes that were made after it.
    removed = [name for name in in_log[:-1] if held and all(name in changes for changes in held)]
    for name in removed:
        root.remove(f"{CHANGES}/{name}")
    return removed


def put_image(root: Root, jpeg: bytes) -> str:
    """Store a picture and return its reference for a garment's row. The same bytes have the same reference."""
    digest = hashlib.sha256(jpeg).hexdigest()
    reference = f"images/{digest[:2]}/{digest}.jpg"
    root.write(reference, jpeg)
    return reference


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _read(root: Root, name: str) -> Change:
    """Return the change of this name. Raises ArtifactError or InvalidRequest if it is not sound."""
    if not re.fullmatch(CHANGE_NAME, name):
        raise ArtifactError(f"{name}: must match {CHANGE_NAME}")
    data = root.read(f"{CHANGES}/{name}", MAX_CHANGE_BYTES)
    if not name.endswith(_digest(data)):
        raise ArtifactError(f"{name}: has other content than its name says")
    return _decode(data)


def _encode(change: Change) -> bytes:
    """Return a change as a safetensors file, in which all but the arrays is JSON in an array of bytes.

    Raises InvalidRequest for a change that breaks a rule.
    """
    if isinstance(change, GarmentDeleted):
        return save({"change": _json_array({"deleted": check_id(change.garment_id)})})
    _check_added(change)
    words = {"added": to_record(checked(change.row)), "encoders": dict(change.encoders)}
    return save({"change": _json_array(words), "vector": change.vector, "pseudo_words": change.pseudo_words})


def _json_array(content: object) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(content).encode(), np.uint8)


def _decode(data: bytes) -> Change:
    """Return the change in a file of `_encode`.

    Raises ArtifactError for another file, and InvalidRequest for a change that breaks a rule.
    """
    try:
        arrays = load(data)
        words = json.loads(arrays["change"].tobytes())
        if set(words) == {"deleted"}:
            return GarmentDeleted(check_id(words["deleted"]))
        added = GarmentAdded(from_record(words["added"]), arrays["vector"], arrays["pseudo_words"], words["encoders"])
    except (KeyError, RecursionError, SafetensorError, TypeError, ValueError) as error:
        raise ArtifactError(f"not a change: {error!r}") from error
    _check_added(added)
    return added


def _check_added(added: GarmentAdded) -> None:
    """Raise InvalidRequest unless the arrays have their types and shapes and the encoders are texts."""
    for name, array, dimensions in (("vector", added.vector, 1), ("pseudo_words", added.pseudo_words, 2)):
        if array.dtype != np.float32 or array.ndim != dimensions or not array.size or not np.isfinite(array).all():
            shown = f"{array.dtype} {list(array.shape)}"
            raise InvalidRequest(name, shown, f"must be finite float32 with {dimensions} dimension(s), none of them 0")
    if not is_texts(added.encoders):
        raise InvalidRequest("encoders", added.encoders, "must be texts by name")
