"""The preparation of pictures: photos are read and cut to the model's shape, garments get a border to that shape.

`run` calls it in its own process, and `on_ray` in many. A picture that cannot be used is not an error; its fault is
kept on disk like a prepared picture, so that it is not tried again.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fashion_rag.atomic_files import write_whole
from fashion_rag.catalogue.garments import stored_jpeg
from fashion_rag.data.dresscode_files import keypoints_json
from fashion_rag.data.image import bordered, open_image
from fashion_rag.data.masks import L_SHOULDER, R_SHOULDER
from fashion_rag.data.pose import KEYPOINT_FRAME
from fashion_rag.data.window import points_in, resized
from fashion_rag.errors import InvalidRequest
from fashion_rag.person.reading import PhotoReading
from fashion_rag.preparation.files import image_path, keypoints_path, label_map_path, write_outcome
from fashion_rag.preparation.planning import Picture

# Photos of a batch are in memory together, at up to 192 MB each, and go through the networks together.
BATCH_SIZE = 8
# A change of what this module writes must change this number, so that pictures are prepared again.
FORMAT = 1

SKIRT, TROUSERS = 5, 6
# The classes of the garments of a category, and what they are called in messages.
GARMENT_CLASSES = {"dresses": (7,), "upper_body": (4,), "lower_body": (SKIRT, TROUSERS)}
GARMENT_WORDS = {"dresses": "dress", "upper_body": "upper garment", "lower_body": "skirt or trousers"}
# The share of the window that a garment must take to count as in view.
MIN_GARMENT_SHARE = 0.01

# Returns what is seen in each photo.
Read = Callable[[Sequence[Image.Image]], Sequence[PhotoReading]]


@dataclass(frozen=True)
class OutputForm:
    """Where prepared pictures go, and their size.

    root: folder of the data set. shape: the (height, width) of the model's pictures. max_height: of written pictures,
    in pixels; a smaller window of a photo is not enlarged.
    """

    root: Path
    shape: tuple[int, int]
    max_height: int

    def size(self, height: int) -> tuple[int, int]:
        """Return the (height, width) at which a picture of this height is written."""
        written = min(height, self.max_height)
        return written, max(1, round(written * self.shape[1] / self.shape[0]))


class Outcome(NamedTuple):
    """What became of a picture. fault: the rule that it breaks if it cannot be used; None if it was prepared."""

    picture: Picture
    fault: str | None


def prepare_pictures(pictures: Sequence[Picture], read: Read, form: OutputForm) -> list[Outcome]:
    """Write the files of the pictures, and return what became of each. read: reads the photos among them."""
    opened: dict[Path, Image.Image] = {}
    faults: dict[Path, str] = {}
    for picture in pictures:
        try:
            if picture.source not in opened:
                opened[picture.source] = open_image(picture.source, field=picture.kind)
        except InvalidRequest as error:
            faults[picture.source] = error.rule
    # One photo may show garments of two categories.
    photos = dict.fromkeys(picture.source for picture in pictures if picture.kind == "photo")
    readable = [source for source in photos if source in opened]
    readings = dict(zip(readable, read([opened[source] for source in readable]) if readable else (), strict=True))
    outcomes = []
    for picture in pictures:
        fault = faults.get(picture.source)
        if fault is None and picture.kind == "photo":
            fault = _write_photo(picture, opened[picture.source], readings[picture.source], form)
        elif fault is None:
            _write_garment(picture, opened[picture.source], form)
        write_outcome(form.root, picture, fault)
        outcomes.append(Outcome(picture, fault))
    return outcomes


def fault_of(reading: PhotoReading, category: str) -> str | None:
    """Return the rule that a photo breaks if it cannot be used for a garment of the category; None if it can be."""
    if reading.num_persons != 1:
        seen = "nobody is" if reading.num_persons == 0 else f"{reading.num_persons} persons are"
        return f"must show one person, and {seen} seen in it"
    if np.isin(reading.label_map, GARMENT_CLASSES[category]).mean() < MIN_GARMENT_SHARE:
        return f"must show a garment of category {category}, and no {GARMENT_WORDS[category]} is seen in it"
    if reading.keypoints is None:
        return "must be read with a pose estimator, and the bundle has none"
    shoulders = points_in(reading.window, reading.keypoints, KEYPOINT_FRAME)[[L_SHOULDER, R_SHOULDER]]
    # The paper's mask runs along the arms from shoulder to shoulder, and would run to the corner (0, 0) instead.
    if category != "lower_body" and not shoulders.any(axis=1).all():
        return f"must show both shoulders for the mask of category {category}, and they are not seen in it"
    return None


def _write_photo(person: Picture, photo: Image.Image, reading: PhotoReading, form: OutputForm) -> str | None:
    """Write image, label map and key points of a person, and return None; return the fault of an unusable photo.

    A skirt is written as class 6, trousers. The paper's mask for lower garments, which training and evaluation use,
    repaints class 6 and not class 5, and would leave a skirt as it is.
    """
    fault = fault_of(reading, person.category)
    if fault is not None or reading.keypoints is None:
        return fault
    size = form.size(reading.window.height)
    cut = resized(np.asarray(photo), reading.window, size, Image.Resampling.BICUBIC)
    write_whole(image_path(form.root, person), stored_jpeg(cut))
    classes = np.where(reading.label_map == SKIRT, np.uint8(TROUSERS), reading.label_map)
    label_map = Image.fromarray(classes).resize((size[1], size[0]), Image.Resampling.NEAREST)
    write_whole(label_map_path(form.root, person), _png(label_map))
    points: NDArray[np.float64] = points_in(reading.window, reading.keypoints, KEYPOINT_FRAME)
    write_whole(keypoints_path(form.root, person), keypoints_json(points).encode())
    return None


def _write_garment(garment: Picture, picture: Image.Image, form: OutputForm) -> None:
    """Write a garment picture, with a border if it has another shape than the model's pictures."""
    # The smallest picture of the shape round this one has its height, or the height that belongs to its width.
    height, width = form.size(max(picture.height, round(picture.width * form.shape[0] / form.shape[1])))
    shaped = bordered(picture, (height, width))
    if shaped.height > height:
        shaped = shaped.resize((width, height), Image.Resampling.BICUBIC)
    write_whole(image_path(form.root, garment), stored_jpeg(shaped))


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()
