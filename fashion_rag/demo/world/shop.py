"""The writer of what a shop has: plain photos of paper dolls, in-shop pictures, and a file that says who wears what.

`fashion-rag demo shop` calls it, so that `fashion-rag prepare` can be tried without photos.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fashion_rag.demo.world.attributes import DollGarment, chunks, sample_garment, sample_person
from fashion_rag.demo.world.draw import Rendering, render, render_garment
from fashion_rag.request import CATEGORIES

# The (height, width) of a doll's own picture, and the sizes to which it is continued.
DOLL_SIZE = (192, 144)
PHOTO_SIZES = ((192, 144), (192, 256), (240, 240), (288, 162))
GARMENT_SIZES = ((192, 144), (200, 200))


@dataclass(frozen=True, eq=False)
class DrawnPair:
    """A photo of a doll with the truth about it, and the in-shop picture of its garment, uint8 [H, W, 3].

    photo_name, garment_name: the names of their files.
    """

    category: str
    garment: DollGarment
    photo: Rendering
    in_shop: NDArray[np.uint8]
    photo_name: str
    garment_name: str


def draw_shop(num_pairs: int, seed: int) -> Iterator[DrawnPair]:
    """Yield `num_pairs` pairs of every category. The same arguments give the same pairs."""
    for category in CATEGORIES:
        rng = np.random.default_rng([seed, CATEGORIES.index(category)])
        for number in range(num_pairs):
            garment = sample_garment(rng, category)
            drawn = render(sample_person(rng, category, garment), DOLL_SIZE)
            size = GARMENT_SIZES[number % len(GARMENT_SIZES)]
            yield DrawnPair(
                category=category,
                garment=garment,
                photo=_in_larger_photo(drawn, PHOTO_SIZES[number % len(PHOTO_SIZES)]),
                in_shop=continued(render_garment(garment, DOLL_SIZE), size),
                photo_name=f"{category}-worn-{number}.jpg",
                garment_name=f"{garment.kind}-{number}.jpg",
            )


def write_shop(root: Path, num_pairs: int, seed: int, progress: Callable[[], None] = lambda: None) -> None:
    """Write the pairs of `draw_shop` to the folder `root`, which is created: photos/, garments/ and pairs.csv.

    Every fourth garment of a category is for tests. progress: called once for each pair.
    """
    for folder in ("photos", "garments"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    with (root / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("photo", "garment", "category", "caption", "split"))
        for number, pair in enumerate(draw_shop(num_pairs, seed)):
            _write_jpeg(root / "photos" / pair.photo_name, pair.photo.image)
            _write_jpeg(root / "garments" / pair.garment_name, pair.in_shop)
            caption = ", ".join(chunks(pair.garment))
            split = "test" if number % num_pairs % 4 == 3 else "train"
            writer.writerow((pair.photo_name, pair.garment_name, pair.category, caption, split))
            progress()


def _in_larger_photo(drawn: Rendering, size: tuple[int, int]) -> Rendering:
    """Return a drawn person in the middle of a larger photo of `size`."""
    top, left = (size[0] - drawn.image.shape[0]) // 2, (size[1] - drawn.image.shape[1]) // 2
    label_map = np.zeros(size, np.uint8)
    label_map[top : top + drawn.image.shape[0], left : left + drawn.image.shape[1]] = drawn.label_map
    return Rendering(continued(drawn.image, size), label_map, drawn.keypoints + np.array([left, top]))


def continued(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a picture, uint8 [h, w, 3], in the middle of a larger one of `size`, continued at its edges."""
    rows, columns = size[0] - image.shape[0], size[1] - image.shape[1]
    margins = ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0))
    return np.pad(image, margins, mode="edge")


def _write_jpeg(path: Path, image: NDArray[np.uint8]) -> None:
    # Chroma subsampling would blur the colours of narrow stripes into each other.
    Image.fromarray(image).save(path, quality=95, subsampling=0)
