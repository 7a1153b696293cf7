"""Training cases of the paper-doll world, drawn once and kept in files. `train` calls it.

A case is a dressed person, a mask over one of their garments, and three in-shop pictures: the garment itself, a sibling
(the same colours and pattern, another cut) and a cousin (the same kind, other colours or another pattern). Half of the
persons fill the frame of the drawn world, and half are seen through a window as edits have it of larger photos. Half of
the masks follow the paper's rule, and half that for shoppers' photos.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fashion_rag.data.masks import nearest, repaint_mask_for
from fashion_rag.data.pose import KEYPOINT_FRAME, scale_keypoints
from fashion_rag.data.window import PERSON_SHARE, box_of
from fashion_rag.demo.world.attributes import (
    KINDS,
    PALETTE,
    PATTERNS,
    DollGarment,
    DollPerson,
    chunks,
    kind_caption,
    sample_garment,
    sample_person,
)
from fashion_rag.demo.world.backgrounds import draw_room
from fashion_rag.demo.world.draw import Placement, Rendering, render, render_garment, render_into
from fashion_rag.demo.world.figure import FLOOR_TOP, HEIGHT, LABELS, SKIRT
from fashion_rag.person.worn_mask import worn_mask
from fashion_rag.request import CATEGORIES, MaskType

CHUNK = 500
MASK_RULE_SIZE = (512, 384)
# How often a person is seen through a window, and how often the mask follows the rule for shoppers' photos.
WINDOW_SHARE, WORN_MASK_SHARE = 0.5, 0.5
# The order of the garments of a case.
WORN, SIBLING, COUSIN = range(3)
# The attributes that are stored as class numbers.
ATTRIBUTES = ("kind", "colour", "pattern", "second_colour")
_VALUES = {
    "kind": tuple(KINDS),
    "colour": tuple(PALETTE),
    "pattern": PATTERNS,
    "second_colour": (None, *PALETTE),
}
NUM_VALUES = {name: len(values) for name, values in _VALUES.items()}


def held_out(garment: DollGarment) -> bool:
    """Return whether the garment's combination of kind, colours and pattern is kept out of training.

    About one combination in ten is.
    """
    combination = (garment.kind, garment.colour, garment.pattern, garment.second_colour)
    return zlib.crc32(repr(combination).encode()) % 10 == 0


def sample_split(rng: np.random.Generator, category: str, test: bool) -> DollGarment:
    """Return a random garment of `category`: a held-out one for `test`, otherwise one that training may see."""
    while True:
        garment = sample_garment(rng, category)
        if held_out(garment) == test:
            return garment


def _sibling(rng: np.random.Generator, garment: DollGarment) -> DollGarment:
    """Return a random garment in the same colours and pattern, on the same side of the split."""
    while True:
        cut = sample_garment(rng, garment.category)
        sibling = replace(cut, colour=garment.colour, pattern=garment.pattern, second_colour=garment.second_colour)
        if held_out(sibling) == held_out(garment):
            return sibling


def _cousin(rng: np.random.Generator, garment: DollGarment) -> DollGarment:
    """Return a garment of the same kind and cut in random colours or pattern, on the same side of the split."""
    while True:
        look = sample_garment(rng, garment.category)
        cousin = replace(garment, colour=look.colour, pattern=look.pattern, second_colour=look.second_colour)
        if rng.random() < 0.5 and (cousin.pattern == "plain") == (garment.pattern == "plain"):
            cousin = replace(cousin, colour=garment.colour, second_colour=garment.second_colour)
        if cousin != garment and held_out(cousin) == held_out(garment):
            return cousin


def attribute_ids(garment: DollGarment) -> list[int]:
    """Return the garment's attributes as class numbers, in the order of ATTRIBUTES."""
    return [_VALUES[name].index(getattr(garment, name)) for name in ATTRIBUTES]


def _draw_chunk(folder: Path, size: tuple[int, int], seed: int, test: bool, length: int, number: int) -> None:
    """Draw the cases of one chunk, and write them to a file in `folder`."""
    images, masks, garments, keypoints, attributes = [], [], [], [], []
    texts: list[dict[str, str]] = []
    for index in range(number * length, (number + 1) * length):
        rng = np.random.default_rng([seed, index])
        category = CATEGORIES[index % 3]
        garment = sample_split(rng, category, test)
        person = sample_person(rng, category, garment)
        drawn = render(person, size)
        if rng.random() < WINDOW_SHARE:
            drawn = _in_window(rng, person, drawn)
        mask_type: MaskType = "mask" if rng.random() < 0.3 else "bounding_box"
        case_garments = (garment, _sibling(rng, garment), _cousin(rng, garment))
        images.append(drawn.image)
        masks.append(_mask_over(rng, drawn, category, mask_type))
        garments.append(np.stack([render_garment(case_garment, size) for case_garment in case_garments]))
        keypoints.append(drawn.keypoints)
        attributes.append([attribute_ids(case_garment) for case_garment in case_garments])
        captions = {f"caption_{i}": ", ".join(chunks(case_garment)) for i, case_garment in enumerate(case_garments)}
        texts.append({"category": category, "kind": kind_caption(garment)} | captions)
    partial_file = folder / f"{number:04d}.partial.npz"
    np.savez(
        partial_file,
        images=np.stack(images),
        masks=np.stack(masks),
        garments=np.stack(garments),
        keypoints=np.stack(keypoints),
        attributes=np.array(attributes),
        texts=np.frombuffer(json.dumps(texts).encode(), np.uint8),
    )
    partial_file.rename(folder / f"{number:04d}.npz")


def _in_window(rng: np.random.Generator, person: DollPerson, drawn: Rendering) -> Rendering:
    """Return a person as a window round them shows them, at the size of `drawn`, which shows them in their own frame.

    The window is moved a little and has another size than the pipeline's, because what finds the person may be wrong.
    """
    height, width = drawn.label_map.shape
    box = box_of(drawn.label_map > 0)
    assert box is not None
    rows, columns = box.size
    # All lengths are in pixels of the person's own frame.
    window_height = max(rows, columns * height / width) / PERSON_SHARE * rng.uniform(0.92, 1.15)
    top = (box.top + box.bottom) / 2 - window_height * (0.5 + rng.uniform(-0.05, 0.05))
    left = (box.left + box.right) / 2 - window_height * width / height * (0.5 + rng.uniform(-0.05, 0.05))
    zoom = height / window_height
    place = Placement(zoom * height / HEIGHT, -left * zoom, -top * zoom)
    room = draw_room((height, width), person.background, horizon=place.top + place.scale * FLOOR_TOP)
    image, truth = render_into(room, person, place, has_shadow=True)
    # The paper's rule knows trousers, but no skirts.
    labels = np.where(truth.label_map == SKIRT, LABELS["lower_body"], truth.label_map)
    return Rendering(image, labels, truth.keypoints)


def _mask_over(rng: np.random.Generator, drawn: Rendering, category: str, mask_type: MaskType) -> NDArray[np.uint8]:
    """Return the mask over the garment of a category, uint8 [H, W], by one of the two rules."""
    height, width = drawn.label_map.shape
    frame = scale_keypoints(drawn.keypoints, (height, width), KEYPOINT_FRAME)
    if rng.random() < WORN_MASK_SHARE:
        labels = nearest(drawn.label_map, MASK_RULE_SIZE)
        return nearest(worn_mask(labels, frame, category, mask_type), (height, width))
    return repaint_mask_for(drawn.label_map, frame, category, mask_type, (height, width), MASK_RULE_SIZE)


@dataclass(frozen=True, eq=False)
class TrainingCases:
    """The arrays of N training cases.

    images: the persons, uint8 [N, H, W, 3]. masks: uint8 [N, H, W]. garments: the in-shop pictures of the garment worn,
    the sibling and the cousin, uint8 [N, 3, H, W, 3]. keypoints: float64 [N, 18, 2] in pixels. attributes: those of the
    three garments in the order of ATTRIBUTES, int64 [N, 3, 4]. texts: for each case its category, the kind of the
    garment worn, and the captions of the three garments (caption_0 to caption_2).
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    garments: NDArray[np.uint8]
    keypoints: NDArray[np.float64]
    attributes: NDArray[np.int64]
    texts: list[dict[str, str]]

    def __len__(self) -> int:
        return len(self.texts)


def draw_cases(
    cache: Path,
    num_cases: int,
    size: tuple[int, int],
    seed: int,
    test: bool = False,
    num_workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TrainingCases:
    """Return the first `num_cases` cases of `seed`, after drawing those that `cache` does not hold yet.

    num_cases: rounded up to a multiple of CHUNK. size: (height, width) of the pictures. test: draw held-out garments.
    progress: takes how many chunks have been drawn, and how many have to be.
    """
    split = "test" if test else "train"
    folder = cache / f"cases-{size[0]}x{size[1]}-seed{seed}-{split}"
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(math.ceil(num_cases / CHUNK))
    missing = [number for number in numbers if not (folder / f"{number:04d}.npz").exists()]
    draw = partial(_draw_chunk, folder, size, seed, test, CHUNK)
    # The processes are spawned, because PyTorch's threads would hang in a forked copy of this process.
    with ExitStack() as stack:
        drawn: Iterable[None] = map(draw, missing)
        if num_workers > 1 and missing:
            pool = stack.enter_context(ProcessPoolExecutor(num_workers, get_context("spawn")))
            drawn = pool.map(draw, missing)
        for done, _ in enumerate(drawn, 1):
            progress(done, len(missing))
    arrays: dict[str, list[NDArray[np.generic]]] = {}
    texts: list[dict[str, str]] = []
    for number in numbers:
        with np.load(folder / f"{number:04d}.npz") as chunk:
            texts += json.loads(chunk["texts"].tobytes())
            for key in ("images", "masks", "garments", "keypoints", "attributes"):
                arrays.setdefault(key, []).append(chunk[key])
    return TrainingCases(**{key: np.concatenate(parts) for key, parts in arrays.items()}, texts=texts)
