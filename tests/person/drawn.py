"""Drawn people in the frame of the shopper's mask, whole or cut, for the tests of `fashion_rag.person`."""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from fashion_rag.data.pose import KEYPOINT_FRAME
from fashion_rag.demo.world.attributes import sample_person
from fashion_rag.demo.world.draw import render
from fashion_rag.request import CATEGORIES

HEIGHT, WIDTH = KEYPOINT_FRAME
MIRRORED_JOINTS = [0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16]
MIRRORED_CLASSES = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 9, 11, 13, 12, 15, 14, 16, 17], np.uint8)


@dataclass(frozen=True, eq=False)
class Person:
    """A label map, uint8 [512, 384], its key points, and the category of a garment that the person wears."""

    category: str
    labels: NDArray[np.uint8]
    keypoints: NDArray[np.float64]

    def mirrored(self) -> "Person":
        points = self.keypoints[MIRRORED_JOINTS]
        points[:, 0] = np.where(points.any(axis=1), WIDTH - 1 - points[:, 0], 0)
        return replace(self, labels=MIRRORED_CLASSES[self.labels[:, ::-1]], keypoints=points)

    def without(self, *joints: int) -> "Person":
        """Return the person with these key points absent."""
        points = self.keypoints.copy()
        points[list(joints)] = 0
        return replace(self, keypoints=points)

    def cut(self, top: float, left: float, height: float) -> "Person":
        """Return what a window of the photo shows at the frame's size. Key points outside are absent."""
        scale = HEIGHT / height
        rows = np.floor(top + (np.arange(HEIGHT) + 0.5) / scale).astype(int)
        columns = np.floor(left + (np.arange(WIDTH) + 0.5) / scale).astype(int)
        inside = ((rows >= 0) & (rows < HEIGHT))[:, None] & ((columns >= 0) & (columns < WIDTH))[None, :]
        labels = self.labels[rows.clip(0, HEIGHT - 1)][:, columns.clip(0, WIDTH - 1)]
        points = (self.keypoints - (left, top)) * scale
        points[((points < 0) | (points >= (WIDTH, HEIGHT))).any(axis=1)] = 0
        return replace(self, labels=np.where(inside, labels, np.uint8(0)), keypoints=points)


@cache
def people(count: int, seed: int) -> tuple[Person, ...]:
    """Return drawn people with a garment of every category in turn. In every other round, skirts have class 5."""
    rng = np.random.default_rng(seed)
    drawn = []
    for number in range(count):
        category = CATEGORIES[number % len(CATEGORIES)]
        person = sample_person(rng, category)
        rendering = render(person, KEYPOINT_FRAME)
        labels = rendering.label_map.copy()
        if number // len(CATEGORIES) % 2 and any("skirt" in garment.kind for garment in person.outfit):
            labels[labels == 6] = 5
        drawn.append(Person(category, labels, rendering.keypoints))
    return tuple(drawn)


def wearing(*classes: int, seed: int = 0) -> Person:
    """Return a drawn person in whose label map all of these classes are."""
    for person in people(30, seed):
        if np.isin(classes, person.labels).all():
            return person
    raise AssertionError(f"nobody of the seed {seed} has the classes {classes}")
