"""The writer of a paper-doll data set in the Dress Code folder layout, which the reader of Dress Code reads.

`fashion-rag demo world` and the demo server call it.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fashion_rag.data.dresscode import Phase
from fashion_rag.data.dresscode_files import keypoints_json, pairs_lines
from fashion_rag.data.pose import KEYPOINT_FRAME
from fashion_rag.demo.world.attributes import DollGarment, chunks, num_garments, sample_garment, sample_person
from fashion_rag.demo.world.draw import DEFAULT_SIZE, Rendering, render, render_garment
from fashion_rag.errors import InvalidRequest
from fashion_rag.request import CATEGORIES

# These files hold what was drawn: the DollGarment of each garment id and the DollPerson of each person id.
ATTRIBUTES_FILE, PERSONS_FILE = "attributes.json", "persons.json"


def write_dresscode(
    root: Path,
    num_pairs: int,
    seed: int,
    size: tuple[int, int] = DEFAULT_SIZE,
    phase: Phase = "test",
    categories: Sequence[str] = CATEGORIES,
    progress: Callable[[], None] | None = None,
) -> None:
    """Write `num_pairs` persons and garments of every category to the folder `root`, which is created.

    size: (height, width) of the pictures, 4:3 portrait. progress: called once for each pair.
    The same arguments write the same files. The captions, ATTRIBUTES_FILE and PERSONS_FILE replace those that an
    earlier call has written to the same folder. The garments of a category are distinct. In the unpaired list, which
    only the test phase has, each person gets the garment of the next one.
    Raises InvalidRequest if a category has fewer distinct garments than `num_pairs`.
    """
    limit = min(num_garments(category) for category in categories)
    if not 0 < num_pairs <= limit:
        raise InvalidRequest(
            "num_pairs", num_pairs, f"must lie between 1 and the {limit} distinct garments of a category"
        )
    captions: dict[str, list[str]] = {}
    attributes: dict[str, dict[str, Any]] = {}
    persons: dict[str, dict[str, Any]] = {}
    garment_ids = iter(range(num_pairs * len(categories)))
    for category in categories:
        folder = root / category
        for name in ("images", "label_maps", "keypoints"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        # Each category has its own generator, so that it does not depend on which other categories are written.
        rng = np.random.default_rng([seed, CATEGORIES.index(category)])
        names = []
        for garment in _distinct_garments(rng, category, num_pairs):
            garment_id = f"{next(garment_ids):06d}"
            person = sample_person(rng, category, garment)
            _write_person(folder, garment_id, render(person, size))
            _write_jpeg(folder / "images" / f"{garment_id}_1.jpg", render_garment(garment, size))
            captions[garment_id] = list(chunks(garment))
            attributes[garment_id] = asdict(garment)
            persons[garment_id] = asdict(person)
            names.append(garment_id)
            if progress is not None:
                progress()
        if phase == "train":
            (folder / "train_pairs.txt").write_text(pairs_lines(names, names))
        else:
            (folder / "test_pairs_paired.txt").write_text(pairs_lines(names, names))
            (folder / "test_pairs_unpaired.txt").write_text(pairs_lines(names, names[1:] + names[:1]))
    (root / "fine_captions.json").write_text(json.dumps(captions, indent=0))
    (root / "coarse_captions.json").write_text(json.dumps({}))
    (root / ATTRIBUTES_FILE).write_text(json.dumps(attributes, indent=0))
    (root / PERSONS_FILE).write_text(json.dumps(persons))


def _distinct_garments(rng: np.random.Generator, category: str, count: int) -> Iterator[DollGarment]:
    """Yield `count` random garments of a category that are all different."""
    garments: set[DollGarment] = set()
    while len(garments) < count:
        garment = sample_garment(rng, category)
        if garment not in garments:
            garments.add(garment)
            yield garment


def _write_person(folder: Path, person_id: str, rendering: Rendering) -> None:
    """Write the picture, the label map and the key points of a person."""
    _write_jpeg(folder / "images" / f"{person_id}_0.jpg", rendering.image)
    Image.fromarray(rendering.label_map).save(folder / "label_maps" / f"{person_id}_4.png")
    # Dress Code keeps key points in a frame of fixed size, whatever the size of the picture.
    points = rendering.keypoints * KEYPOINT_FRAME[0] / rendering.image.shape[0]
    (folder / "keypoints" / f"{person_id}_2.json").write_text(keypoints_json(points))


def _write_jpeg(path: Path, image: NDArray[np.uint8]) -> None:
    # Chroma subsampling would blur the colours of narrow stripes into each other.
    Image.fromarray(image).save(path, quality=95, subsampling=0)
