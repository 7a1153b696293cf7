"""What the paper-doll world gives a load: prompts, and as many persons as it wants, with masks and key points."""

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
# Persons and prompts each have random numbers of their own.
PERSONS, PROMPTS = 0, 1


def draw_photos(planned: Iterable[Planned], manifest: Manifest, progress: Callable[[], None] | None = None) -> Photos:
    """The photo of every person in `planned`, in the size of a bundle; `progress` is called after each.

    A person looks the same in every plan.
    """
    photos = {}
    for category, person in sorted({(edit.category, edit.person) for edit in planned}):
        photos[category, person] = _photo(category, person, manifest)
        if progress is not None:
            progress()
    return photos


def drawn_prompts() -> dict[str, list[str]]:
    """By category, captions in noun chunks of garments such as the drawn catalogue has; always the same."""
    rng = np.random.default_rng(PROMPTS)
    return {
        category: [", ".join(sorted(chunks(sample_garment(rng, category)))) for _ in range(NUM_PROMPTS)]
        for category in CATEGORIES
    }


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
