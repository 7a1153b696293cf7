"""Photos of other shapes than the model's, in which the doll of a held-out case stands. `photo_alone` edits them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fashion_rag.demo.model.evaluate import HeldOutCase
from fashion_rag.demo.world.attributes import DollPerson
from fashion_rag.demo.world.draw import render

Pixels = NDArray[np.uint8]

# A doll in a photo of another shape is drawn twice as large as on its own.
ENLARGED = 2
PHOTO_HEIGHT = 256
# The share of a drawn doll's height at which the floor begins.
FLOOR_SHARE = 80 / 96


@dataclass(frozen=True, eq=False)
class Scene:
    """A photo, uint8 [H, W, 3], in which a drawn doll stands with its upper left corner at row `top`, column `left`.

    enlarged: how many times larger the doll is than the picture that its case was drawn as.
    """

    photo: Pixels
    top: int
    left: int
    enlarged: int

    def doll(self, photo: Pixels, size: tuple[int, int]) -> Pixels:
        """Return the doll's part of a photo like this one, reduced to the `size` of the case, uint8 [H, W, 3]."""
        height, width = size[0] * self.enlarged, size[1] * self.enlarged
        part = photo[self.top : self.top + height, self.left : self.left + width]
        return np.array(Image.fromarray(part).reduce(self.enlarged))

    def mask(self, mask: Pixels) -> Pixels:
        """Return a mask of the case as a mask of the photo, uint8 [H, W]."""
        enlarged = mask.repeat(self.enlarged, axis=0).repeat(self.enlarged, axis=1)
        placed = np.zeros(self.photo.shape[:2], np.uint8)
        placed[self.top : self.top + enlarged.shape[0], self.left : self.left + enlarged.shape[1]] = enlarged
        return placed


def scene(case: HeldOutCase, aspect: float | None, rng: np.random.Generator) -> Scene:
    """Return a photo of this width by height in which the doll of the case stands at a random place."""
    if aspect is None:
        return Scene(case.request.image, 0, 0, 1)
    height, width = (side * ENLARGED for side in case.request.image.shape[:2])
    photo = _background(case.person, (PHOTO_HEIGHT, round(PHOTO_HEIGHT * aspect)))
    top = int(rng.integers(PHOTO_HEIGHT - height + 1))
    left = int(rng.integers(photo.shape[1] - width + 1))
    photo[top + round(FLOOR_SHARE * height) :] = case.person.background[1]
    photo[top : top + height, left : left + width] = render(case.person, (height, width)).image
    return Scene(photo, top, left, ENLARGED)


def _background(person: DollPerson, size: tuple[int, int]) -> Pixels:
    """Return the wall behind a person as a picture of this size."""
    return np.full((*size, 3), person.background[0], np.uint8)
