"""The log of live changes: one small file a change, laid over the live version until a build has taken it in.

    ROOT/changes/STAMP-DIGEST   a garment added, or put in place of an earlier one of its id, or deleted
    ROOT/images/ab/abcd....jpg  uploaded pictures, by the SHA-256 of their bytes

A change is written once and never rewritten; its name says when, and has the digest of its content, by which a damaged
file is known. **Order is that of the names, for every reader.** A stamp is the writer's clock, but always later than
every change already in the log: so a change that was made after another had been stored overrules it, however wrong
the clocks; only between changes that were being stored at the same time do the clocks decide, and then the digests.

The API appends; the servers poll `read_since` and `fold`; the build takes in what is `pending`, then calls `clear`.
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

    vector: float32 [D] of its picture. pseudo_words: float32 [P, W]. encoders: the fingerprints of what made them, as
    in a version; a reader leaves out, and a build makes anew, what other encoders made.
    """

    row: GarmentRow
    vector: NDArray[np.float32]
    pseudo_words: NDArray[np.float32]
    encoders: Mapping[str, str]

    @property
    def garment_id(self) -> str:
        return self.row.id


@dataclass(frozen=True)
class GarmentDeleted:
    """A garment that is gone; one that never was does no harm."""

    garment_id: str


Change = GarmentAdded | GarmentDeleted


@dataclass(frozen=True)
class NewChanges:
    """Changes in the log, by name in their order, and what is no change, by name with the reason."""

    changes: dict[str, Change]
    refused: dict[str, str]


@dataclass(frozen=True)
class Pending:
    """What a version lacks.

    last: the last word on each garment, by its id. taken_in: the name of each change and the id of its garment, for
    the version that takes them in. refused: what is no change, by name with the reason.
    """

    last: dict[str, Change]
    taken_in: dict[str, str]
    refused: dict[str, str]


def append(root: Root, change: Change) -> str:
    """Return the name of the change, which is stored when this returns.

    Raises InvalidRequest for what breaks a rule.
    """
    data = _encode(change)
    if len(data) > MAX_CHANGE_BYTES:
        raise InvalidRequest("change", f"{len(data)} bytes", f"must have at most {MAX_CHANGE_BYTES}")
    name = f"{stamp(root.names(CHANGES))}-{_digest(data)}"
    root.write(f"{CHANGES}/{name}", data)
    return name


def read_since(root: Root, seen: Collection[str]) -> NewChanges:
    """Return the changes, and what is none, with names that are not in `seen`: one listing, and a read for each new
    one.
    """
    found = NewChanges({}, {})
    for name in root.names(CHANGES):
        if name in seen:
            continue
        try:
            found.changes[name] = _read(root, name)
        except FileNotFoundError:
            continue  # cleared since the listing
        except (ArtifactError, InvalidRequest) as error:
            found.refused[name] = str(error)
    return found


def fold(changes: Mapping[str, Change], version: Version) -> dict[str, Change]:
    """Return the last word on each garment, by its id, that changes (by name) add to what a version holds.

    A change that the version holds is left out, and so is one that came to light late and that an overruling one,
    which the version holds, precedes: the order is the same before and after a build.
    """
    held: dict[str, str] = {}
    for name, garment_id in version.changes.items():
        held[garment_id] = max(name, held.get(garment_id, ""))
    in_order = ((name, changes[name]) for name in sorted(changes))
    return {change.garment_id: change for name, change in in_order if name > held.get(change.garment_id, "")}


def pending(root: Root, version: Version) -> Pending:
    """Return what the log has and `version` does not hold."""
    found = read_since(root, version.changes)
    taken_in = {name: change.garment_id for name, change in found.changes.items()}
    return Pending(fold(found.changes, version), taken_in, found.refused)


def clear(root: Root) -> list[str]:
    """Return the names of the changes removed: those that every version still on disk holds.

    So a reader of any version, and one that is rolled back to, finds all that it lacks; `prune` has the grace period.
    """
    held = [version.changes.keys() for version in versions(root)]
    in_log = [name for name in root.names(CHANGES) if moment(name)]
    # The latest stays, or one with a fast clock would overrule, from within a version, what comes after it.
    removed = [name for name in in_log[:-1] if held and all(name in changes for changes in held)]
    for name in removed:
        root.remove(f"{CHANGES}/{name}")
    return removed


def put_image(root: Root, jpeg: bytes) -> str:
    """Return the reference, for a garment's row, of a picture now stored whole; the same bytes have the same one."""
    digest = hashlib.sha256(jpeg).hexdigest()
    reference = f"images/{digest[:2]}/{digest}.jpg"
    root.write(reference, jpeg)
    return reference


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _read(root: Root, name: str) -> Change:
    if not re.fullmatch(CHANGE_NAME, name):
        raise ArtifactError(f"{name}: must match {CHANGE_NAME}")
    data = root.read(f"{CHANGES}/{name}", MAX_CHANGE_BYTES)
    if not name.endswith(_digest(data)):
        raise ArtifactError(f"{name}: has other content than its name says")
    return _decode(data)


def _encode(change: Change) -> bytes:
    """Return a safetensors file; what is not an array of floats is JSON, in an array of bytes."""
    if isinstance(change, GarmentDeleted):
        return save({"change": _json_array({"deleted": check_id(change.garment_id)})})
    _check_added(change)
    words = {"added": to_record(checked(change.row)), "encoders": dict(change.encoders)}
    return save({"change": _json_array(words), "vector": change.vector, "pseudo_words": change.pseudo_words})


def _json_array(content: object) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(content).encode(), np.uint8)


def _decode(data: bytes) -> Change:
    """Return the change in a file of `_encode`.

    Raises ArtifactError for another file, InvalidRequest for a broken rule.
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
    for name, array, dimensions in (("vector", added.vector, 1), ("pseudo_words", added.pseudo_words, 2)):
        if array.dtype != np.float32 or array.ndim != dimensions or not array.size or not np.isfinite(array).all():
            shown = f"{array.dtype} {list(array.shape)}"
            raise InvalidRequest(name, shown, f"must be finite float32 with {dimensions} dimension(s), none of them 0")
    if not is_texts(added.encoders):
        raise InvalidRequest("encoders", added.encoders, "must be texts by name")
