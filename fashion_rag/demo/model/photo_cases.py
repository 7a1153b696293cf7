"""Training cases of the human parser and the pose estimator: drawn photos with their truth, kept in files.

`train` calls it. Photos have different sizes, so a file holds the pixels of its photos one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fashion_rag.data.window import Box
from fashion_rag.demo.model.cases import sample_split
from fashion_rag.demo.world.attributes import DollGarment
from fashion_rag.demo.world.photos import DollPhoto, sample_photo

CHUNK = 250


@dataclass(frozen=True, eq=False)
class PhotoCase:
    """A drawn photo and its truth, as training needs it.

    image: uint8 [H, W, 3]. label_map: Dress Code's classes, uint8 [H, W]. box: that of the largest person in pixels;
    None for nobody. keypoints: their OpenPose points in pixels, (0, 0) = absent, float64 [18, 2]. head_size: the
    distance between their ears in pixels.
    """

    image: NDArray[np.uint8]
    label_map: NDArray[np.uint8]
    box: Box | None
    keypoints: NDArray[np.float64]
    head_size: float


def sample_test_photo(seed: int, index: int) -> DollPhoto:
    """Return photo number `index` of a test set, in which everybody wears held-out garments."""
    return _sample(seed, index, test=True)


def _sample(seed: int, index: int, test: bool) -> DollPhoto:
    def garment(rng: np.random.Generator, category: str) -> DollGarment:
        return sample_split(rng, category, test)

    # The last number keeps the photos apart from the cases of the other stages, and test photos from those of training.
    return sample_photo(np.random.default_rng([seed, index, 2 + test]), garment)


def _draw_chunk(folder: Path, seed: int, number: int) -> None:
    """Draw the photos of one chunk, and write them to a file in `folder`.

    There, a box is (top, left, height, width); of nobody, it is all 0.
    """
    photos = [_sample(seed, index, test=False) for index in range(number * CHUNK, (number + 1) * CHUNK)]
    boxes = np.zeros((len(photos), 4), np.int64)
    for row, photo in enumerate(photos):
        if photo.box is not None:
            boxes[row] = photo.box.top, photo.box.left, *photo.box.size
    partial_file = folder / f"{number:04d}.partial.npz"
    np.savez(
        partial_file,
        images=np.concatenate([photo.image.reshape(-1, 3) for photo in photos]),
        label_maps=np.concatenate([photo.label_map.ravel() for photo in photos]),
        sizes=np.array([photo.label_map.shape for photo in photos]),
        boxes=boxes,
        keypoints=np.stack([photo.keypoints for photo in photos]),
        head_sizes=np.array([photo.head_size for photo in photos]),
    )
    partial_file.rename(folder / f"{number:04d}.npz")


def draw_photo_cases(
    cache: Path,
    num_cases: int,
    seed: int,
    num_workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[PhotoCase]:
    """Return the first `num_cases` photos of `seed`, after drawing those that `cache` does not hold yet.

    num_cases: rounded up to a multiple of CHUNK. progress: takes how many chunks have been drawn, and how many have to
    be.
    """
    folder = cache / f"photos-seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(math.ceil(num_cases / CHUNK))
    missing = [number for number in numbers if not (folder / f"{number:04d}.npz").exists()]
    draw = partial(_draw_chunk, folder, seed)
    # The processes are spawned, because PyTorch's threads would hang in a forked copy of this process.
    with ExitStack() as stack:
        drawn: Iterable[None] = map(draw, missing)
        if num_workers > 1 and missing:
            pool = stack.enter_context(ProcessPoolExecutor(num_workers, get_context("spawn")))
            drawn = pool.map(draw, missing)
        for done, _ in enumerate(drawn, 1):
            progress(done, len(missing))
    cases: list[PhotoCase] = []
    for number in numbers:
        cases += _read_chunk(folder / f"{number:04d}.npz")
    return cases


def _read_chunk(path: Path) -> list[PhotoCase]:
    with np.load(path) as chunk:
        arrays = {name: chunk[name] for name in chunk.files}
    ends = arrays["sizes"].prod(axis=1).cumsum()
    cases = []
    for row, (height, width) in enumerate(arrays["sizes"]):
        pixels = slice(ends[row] - height * width, ends[row])
        top, left, box_height, box_width = (int(value) for value in arrays["boxes"][row])
        case = PhotoCase(
            image=arrays["images"][pixels].reshape(height, width, 3),
            label_map=arrays["label_maps"][pixels].reshape(height, width),
            box=Box(top, left, top + box_height, left + box_width) if box_height else None,
            keypoints=arrays["keypoints"][row],
            head_size=float(arrays["head_sizes"][row]),
        )
        cases.append(case)
    return cases
