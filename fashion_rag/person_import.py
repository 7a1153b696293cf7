"""The import of a published human parser and pose estimator into a bundle.

`fashion-rag bundle import` calls it for new bundles, and `fashion-rag bundle add` for those that exist.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fashion_rag.artifacts import MANIFEST_FILE
from fashion_rag.atomic_files import scratch_beside, written_aside
from fashion_rag.bundle import Bundle
from fashion_rag.errors import ArtifactError
from fashion_rag.models.pretrained import CLIP_FILE, CONFIG_FILE, PROCESSOR_FILE
from fashion_rag.person.files import PARSER, POSE, copy_part, read_parser, read_pose_estimator
from fashion_rag.published import CARD_FILE, folder_of, read_card, read_pth, stated_licence
from fashion_rag.weights import no_keys, write_state

OLD_WEIGHTS_FILE = "pytorch_model.bin"
FILES = [CONFIG_FILE, CLIP_FILE, PROCESSOR_FILE, CARD_FILE]
# The names of the parts in the manifest's licence, which has a line for each of them.
TITLES = {PARSER: "Human parser", POSE: "Pose estimator"}
# A card that has one of these words says that the weights began as NVIDIA's SegFormer.
NVIDIA = ("nvidia/", "nvlabs/")
NVIDIA_PARSERS = ("fashn-ai/fashn-human-parser", "mattmdjaga/segformer_b2_clothes")


@dataclass(frozen=True)
class PublishedPart:
    """A human parser or a pose estimator that is ready to be copied into a bundle.

    part: its folder's name in the bundle. folder: its files. licence: a line that says what is known about its licence.
    """

    part: str
    folder: Path
    licence: str


def find_part(part: str, source: str, scratch: Path) -> PublishedPart:
    """Return the human parser or the pose estimator of a folder, or of an id on the Hugging Face hub.

    scratch: a folder for weights that have to be converted to safetensors. Raises ArtifactError for files that are
    missing or damaged, for another kind of network, and for weights that are not exactly those of the configuration.
    """
    folder = folder_of(source, FILES)
    licence = _licence(part, source, folder)
    if not (folder / CLIP_FILE).is_file():
        folder = _converted(folder_of(source, [*FILES, OLD_WEIGHTS_FILE]), scratch / part)
    read = {PARSER: read_parser, POSE: read_pose_estimator}[part]
    read(folder, wanted=no_keys)
    return PublishedPart(part, folder, licence)


def find_parts(parser: str | None, pose: str | None, scratch: Path) -> list[PublishedPart]:
    """Return the parts of which the folder or the id is given. Arguments and errors as for `find_part`."""
    sources = ((PARSER, parser), (POSE, pose))
    return [find_part(part, source, scratch) for part, source in sources if source is not None]


def add_parts(path: Path, parser: str | None = None, pose: str | None = None) -> Bundle:
    """Add a human parser, a pose estimator or both to the bundle in the folder `path`, and return it.

    parser, pose: a folder or an id on the Hugging Face hub; None = left as it is. A part that is there already is
    replaced. All other files stay as they are. The bundle is replaced once the new one is whole. Raises ArtifactError,
    leaving the bundle as it was, as `find_part`.
    """
    licence = Bundle.open(path).manifest.licence
    with scratch_beside(path) as scratch:
        parts = find_parts(parser, pose, scratch)
        for part in parts:
            licence = with_licence(licence, part)
        return replace_parts(path, {part.part: part.folder for part in parts}, licence)


def replace_parts(path: Path, folders: Mapping[str, Path], licence: str) -> Bundle:
    """Copy a human parser, a pose estimator or both into the bundle in the folder `path`, and return it.

    folders: by the part's folder in the bundle. licence: what the manifest is to say. Parts that are there already are
    replaced, and all other files stay as they are. The bundle is replaced once the new one is whole. Raises
    ArtifactError, leaving the bundle as it was, for files that are missing or do not fit.
    """
    bundle = Bundle.open(path)
    with written_aside(path) as new:
        shutil.copytree(path, new, copy_function=_link, dirs_exist_ok=True)
        for part, folder in folders.items():
            shutil.rmtree(new / part, ignore_errors=True)
            copy_part(folder, new / part)
        if licence != bundle.manifest.licence:
            # Removed first, because the file is also that of the bundle as it was.
            (new / MANIFEST_FILE).unlink()
            replace(bundle.manifest, licence=licence).write(new / MANIFEST_FILE)
        Bundle.open(new)
    return Bundle.open(path)


def with_licence(licence: str, part: PublishedPart) -> str:
    """Return a manifest's licence with the line of a part; an earlier line of the same part is left out."""
    lines = [line for line in licence.splitlines() if not line.startswith(f"{TITLES[part.part]} ")]
    return "\n".join([*lines, part.licence])


def _licence(part: str, source: str, folder: Path) -> str:
    """Return the line on the licence of a part. folder: where its model card may be."""
    name = Path(source).name if Path(source).is_dir() else source
    stated = stated_licence(folder)
    says = "its licence is not known, because it has no model card that states one"
    if stated is not None:
        says = f"its model card states the licence {stated}"
    line = f"{TITLES[part]} {name}: {says}."
    card = read_card(folder).lower()
    if part == PARSER and (source in NVIDIA_PARSERS or any(word in card for word in NVIDIA)):
        line += " Its weights began as NVIDIA's SegFormer, whose licence allows non-commercial use only."
    return line


def _converted(folder: Path, target: Path) -> Path:
    """Return the new folder `target`, now holding the files of `folder` with its older weights as safetensors."""
    old = folder / OLD_WEIGHTS_FILE
    if not old.is_file():
        raise ArtifactError(f"{folder / CLIP_FILE}: no such file, nor {OLD_WEIGHTS_FILE}")
    state = read_pth(old)
    target.mkdir()
    for name in (CONFIG_FILE, PROCESSOR_FILE):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    write_state(target / CLIP_FILE, state)
    return target


def _link(source: str, target: str) -> str:
    """Make `target` the same file as `source`, or a copy of it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target
