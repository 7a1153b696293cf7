"""The reader of a data set in the Dress Code layout. The evaluation, the training and the catalogue's ingest call it.

`vitonhd.py` uses the functions of this module to read the same kind of samples from another layout.

The layout, where all folders but RETRIEVAL lie below the root:

    fine_captions.json, coarse_captions.json               the noun chunks of each garment id
    CATEGORY/{train_pairs,test_pairs_ORDER}.txt            on each line the file names of a person and a garment
    CATEGORY/images/ID_0.jpg                               a person (ID_1.jpg: a garment)
    CATEGORY/label_maps/ID_4.png, keypoints/ID_2.json      the label map and the key points of the person
    CATEGORY/cleaned_inshop_imgs/ID_1_cleaned.jpg          a garment without background; not all garments have one
    RETRIEVAL/MODEL/PHASE_CATEGORY_{single,double,triplet}.json    for each caption its garment files, best first
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fashion_rag.artifacts import read_config
from fashion_rag.errors import ArtifactError, InvalidRequest
from fashion_rag.request import CATEGORIES

Phase = Literal["train", "test"]
Order = Literal["paired", "unpaired"]

# A fine caption with fewer chunks is not used.
MIN_FINE_CHUNKS = 3
CHUNK_NAMES = {1: "single", 2: "double", 3: "triplet"}
RETRIEVAL_MODEL = "ViT-L-14_laion2b_s32b_b82k"


@dataclass(frozen=True, eq=False)
class Sample:
    """A person to edit, and the garment that they are to wear.

    image: RGB. label_map: uint8 [H, W], of the same size. keypoints: float64 [18, 2], x and y in pixels of
    `pose.KEYPOINT_FRAME`. garment_path: the picture of the pair's garment. retrieved_paths: the pictures of the
    retrieved garments, best first.
    """

    person_id: str
    garment_id: str
    category: str
    caption: str
    image: Image.Image
    label_map: NDArray[np.uint8]
    keypoints: NDArray[np.float64]
    garment_path: Path
    retrieved_paths: tuple[Path, ...]


@dataclass(frozen=True)
class InShopGarment:
    """An in-shop garment; the caption is empty if it has none."""

    garment_id: str
    category: str
    caption: str
    path: Path


@dataclass(frozen=True)
class Pair:
    """A person and the garment that they are to wear: a sample whose pictures have not been read."""

    person_id: str
    garment_id: str
    category: str
    caption: str


class RetrievalFiles:
    """The garments that the retrieval files list for each caption. No file is opened if num_retrieved is 0.

    root: folder of the data set. num_chunks: how many chunks make a caption. retrieval: folder of the retrieval files.
    Raises what DressCode raises.
    """

    def __init__(
        self,
        root: Path,
        phase: Phase,
        categories: Sequence[str],
        num_chunks: int,
        retrieval: Path | None,
        num_retrieved: int,
    ) -> None:
        if num_retrieved and retrieval is None:
            raise InvalidRequest("num_retrieved", num_retrieved, "must be 0 without a retrieval folder")
        self.root = root
        self.num_retrieved = num_retrieved
        self._names: dict[str, dict[str, list[str]]] = {}
        if retrieval is not None and num_retrieved:
            for category in categories:
                path = retrieval / RETRIEVAL_MODEL / f"{phase}_{category}_{CHUNK_NAMES[num_chunks]}.json"
                self._names[category] = read_key(path, "pred_files")

    def paths(self, pair: Pair) -> tuple[Path, ...]:
        """Return the paths of the pictures of the `num_retrieved` garments for the pair's caption, best first."""
        if not self.num_retrieved:
            return ()
        names = self._names[pair.category].get(pair.caption, [])[: self.num_retrieved]
        if len(names) < self.num_retrieved:
            raise ArtifactError(
                f"retrieval file of {pair.category}: {len(names)} garments for {pair.caption!r}; "
                f"{self.num_retrieved} are needed"
            )
        return tuple(_with_fallback(self.root / name) for name in names)


class DressCode:
    """The samples of a phase, in the alphabetical order of their categories. Pictures are read with their sample.

    order: which garment a person gets; only the test phase has both orders. num_chunks: how many chunks make a caption.
    size: (height, width) of the image and the label map. retrieval: folder of the retrieval files, needed for
    num_retrieved > 0.
    Pairs without a caption, and further pairs of a person in a category, are left out as in the paper's evaluation.

    Raises InvalidRequest for an argument outside its range. Raises ArtifactError, with the path, for a file that is
    missing or damaged; this may also happen when a sample is read.
    """

    def __init__(
        self,
        root: Path,
        phase: Phase = "test",
        order: Order = "paired",
        *,
        categories: Sequence[str] = CATEGORIES,
        num_chunks: int = 3,
        size: tuple[int, int] = (512, 384),
        retrieval: Path | None = None,
        num_retrieved: int = 0,
    ) -> None:
        _check(num_chunks, categories)
        categories = sorted(set(categories))
        self.root = root
        self.size = size
        self._retrieved = RetrievalFiles(
            root, phase, categories, num_chunks=num_chunks, retrieval=retrieval, num_retrieved=num_retrieved
        )
        captions = _captions(root, num_chunks)
        self.pairs: list[Pair] = []
        for category in categories:
            self.pairs += captioned_pairs(_pairs(root, category, phase, order), category, captions)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample at `index`, after reading its pictures from disk."""
        pair = self.pairs[index]
        folder = self.root / pair.category
        return Sample(
            person_id=pair.person_id,
            garment_id=pair.garment_id,
            category=pair.category,
            caption=pair.caption,
            image=read_image(folder / "images" / f"{pair.person_id}_0.jpg", self.size),
            label_map=read_label_map(folder / "label_maps" / f"{pair.person_id}_4.png", self.size),
            keypoints=_read_keypoints(folder / "keypoints" / f"{pair.person_id}_2.json"),
            garment_path=_garment_path(self.root, pair.category, pair.garment_id),
            retrieved_paths=self._retrieved.paths(pair),
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


def garments(
    root: Path, phase: Phase = "test", *, categories: Sequence[str] = CATEGORIES, num_chunks: int = 3
) -> Iterator[InShopGarment]:
    """Yield each in-shop garment of the paired pairs files once. Raises what DressCode raises."""
    _check(num_chunks, categories)
    captions = _captions(root, num_chunks)
    for category in sorted(set(categories)):
        garment_ids = [garment_id for _, garment_id in _pairs(root, category, phase, "paired")]
        for garment_id in dict.fromkeys(garment_ids):
            path = _garment_path(root, category, garment_id)
            yield InShopGarment(garment_id, category, captions.get(garment_id, ""), path)


def _check(num_chunks: int, categories: Sequence[str]) -> None:
    if num_chunks not in CHUNK_NAMES:
        raise InvalidRequest("num_chunks", num_chunks, "must be 1, 2 or 3")
    if unknown := set(categories) - set(CATEGORIES):
        raise InvalidRequest("categories", sorted(unknown), f"must be of {', '.join(CATEGORIES)}")


def _captions(root: Path, num_chunks: int) -> dict[str, str]:
    """Return the caption of each garment id. A coarse caption goes before a fine one."""
    fine, coarse = read_config(root / "fine_captions.json"), read_config(root / "coarse_captions.json")
    chunks = {key: value for key, value in fine.items() if len(value) >= MIN_FINE_CHUNKS} | coarse
    return {key: caption(value, num_chunks) for key, value in chunks.items()}


def caption(chunks: Sequence[str], num_chunks: int) -> str:
    """Return the first chunks in alphabetical order, joined by ", "."""
    return ", ".join(sorted(chunks)[:num_chunks])


def _pairs(root: Path, category: str, phase: Phase, order: Order) -> Iterator[tuple[str, str]]:
    """Yield the ids of the person and the garment on each line of a pairs file."""
    file_name = "train_pairs.txt" if phase == "train" else f"test_pairs_{order}.txt"
    for person, garment in read_pairs(root / category / file_name):
        yield person.split("_")[0], garment.split("_")[0]


def read_pairs(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the file names of the person and the garment on each line. Raises ArtifactError for any other line."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not a readable pairs file: {error}") from error
    for number, line in enumerate(lines, start=1):
        if names := line.split():
            if len(names) != 2:
                raise ArtifactError(f"{path}, line {number}: {line!r}; must be a person's and a garment's file name")
            yield names[0], names[1]


def captioned_pairs(pairs: Iterable[tuple[str, str]], category: str, captions: Mapping[str, str]) -> Iterator[Pair]:
    """Yield the first pair of each person whose garment has a caption.

    pairs: the ids of a person and a garment. captions: by garment id.
    """
    persons: set[str] = set()
    for person_id, garment_id in pairs:
        if captions.get(garment_id) and person_id not in persons:
            persons.add(person_id)
            yield Pair(person_id, garment_id, category, captions[garment_id])


def _garment_path(root: Path, category: str, garment_id: str) -> Path:
    return _with_fallback(root / category / "cleaned_inshop_imgs" / f"{garment_id}_1_cleaned.jpg")


def _with_fallback(path: Path) -> Path:
    """Return the path of a cleaned garment picture, or of the plain picture if the garment has no cleaned one."""
    if path.is_file():
        return path
    plain = path.parent.parent / "images" / path.name.replace("_cleaned", "")
    if plain.is_file():
        return plain
    raise ArtifactError(f"{path}: no such garment picture; the plain one, {plain}, is missing, too")


def read_key(path: Path, key: str) -> Any:
    """Return the value of `key` in the object of a JSON file. Raises ArtifactError if the key is missing."""
    content = read_config(path)
    if key not in content:
        raise ArtifactError(f"{path}: the key {key!r} is missing")
    return content[key]


def _read_keypoints(path: Path) -> NDArray[np.float64]:
    """Return a person's key points, float64 [18, 2], in pixels of KEYPOINT_FRAME."""
    rows = np.asarray(read_key(path, "keypoints"), dtype=np.float64)
    if rows.shape != (18, 4):
        raise ArtifactError(f"{path}: key points of shape {rows.shape}; must be 18 rows of 4")
    return rows[:, :2]


def read_image(path: Path, size: tuple[int, int]) -> Image.Image:
    """Return an RGB picture, resized to `size` (height, width) with bicubic interpolation.

    Raises ArtifactError, with the path, if it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BICUBIC)
    except OSError as error:
        raise ArtifactError(f"{path}: not a readable picture: {error}") from error


def read_label_map(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a label map, uint8 [H, W], resized to `size` (height, width) with the nearest label.

    Raises ArtifactError, with the path, if it cannot be read or is no label map.
    """
    try:
        with Image.open(path) as image:
            # Pillow gives the indices of a palette picture, which are the labels.
            labels = np.array(image.resize((size[1], size[0]), Image.Resampling.NEAREST))
    except OSError as error:
        raise ArtifactError(f"{path}: not a readable label map: {error}") from error
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ArtifactError(f"{path}: {labels.dtype} {labels.shape}; a label map must be 8-bit grey or palette")
    return labels
