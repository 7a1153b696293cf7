"""Prompts for a load, and photos of as many persons as it needs, with masks and key points: all of paper dolls."""

import io
import json
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fashion_rag.data.masks import repaint_mask_for
from fashion_rag.data.pose import KEYPOINT_FRAME
from fashion_rag.demo.world.attributes import chunks, sample_garment, sample_person
from fashion_rag.demo.world.draw import render
from fashion_rag.manifest import Manifest
from fashion_rag.request import CATEGORIES
from serve.bench.mix import Photo, Photos, Planned

NUM_PROMPTS = 200
# Persons and prompts have separate random numbers.
PERSONS, PROMPTS = 0, 1


def draw_photos(planned: Iterable[Planned], manifest: Manifest, progress: Callable[[], None] | None = None) -> Photos:
    """Return the photo of every person in `planned`, in the size of a bundle; `progress` is called after each.

    A person looks the same in every plan.
    """
    photos = {}
    for category, person in sorted({(edit.category, edit.person) for edit in planned}):
        photos[category, person] = _photo(category, person, manifest)
        if progress is not None:
            progress()
    return photos


def drawn_prompts() -> dict[str, list[str]]:
    """Return prompts by category, always the same: captions, in noun chunks, of garments as in the drawn catalogue."""
    rng = np.random.default_rng(PROMPTS)
    prompts: dict[str, list[str]] = {}
    for category in CATEGORIES:
        garments = [sample_garment(rng, category) for _ in range(NUM_PROMPTS)]
        prompts[category] = [", ".join(sorted(chunks(garment))) for garment in garments]
    return prompts


def _photo(category: str, number: int, manifest: Manifest) -> Photo:
    rng = np.random.default_rng([PERSONS, CATEGORIES.index(category), number])
    size = manifest.image_size
    drawn = render(sample_person(rng, category), size)
    points = drawn.keypoints * KEYPOINT_FRAME[0] / size[0]
    mask = repaint_mask_for(drawn.label_map, points, category, "bounding_box", size, manifest.mask_rule_size)
    return Photo(_png(drawn.image), _png(mask * np.uint8(255)), json.dumps(drawn.keypoints.tolist()))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    return content.getvalue()
