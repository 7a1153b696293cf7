"""Reads the test split of a data set in the VITON-HD layout, as samples like Dress Code's. Called by the evaluation.

The layout, below the root but for the retrieval files, which are as in `dresscode.py`:

    test_pairs.txt                             a person's and a garment's file name a line: the unpaired order
    captions.json                              garment id -> noun chunks
    test/image/ID.jpg, test/cloth/ID.jpg       person, garment
    test/image-parse-v3/ID.png                 label map of the person, with labels of its own
    test/openpose_json/ID_keypoints.json       in pixels of the person's picture

An id is a file name without its ending, such as 00006_00. In the paired order a person keeps the garment of the same
id. Every garment is one for the upper body. Captions are no part of VITON-HD: their file is this project's own idea.

The layout is known from what is written about the data set (arXiv 2103.16874), the labels from the human parser that
made its label maps (CIHP, arXiv 1808.00157). The data set itself was never at hand: that its points are 25 a person (of
18, too, are taken), and that its label maps hold label numbers, has not been seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fashion_rag.artifacts import read_config
from fashion_rag.data.dresscode import (
    CHUNK_NAMES,
    Order,
    RetrievalFiles,
    Sample,
    caption,
    captioned_pairs,
    read_image,
    read_key,
    read_label_map,
    read_pairs,
)
from fashion_rag.data.pose import KEYPOINT_FRAME, scale_keypoints
from fashion_rag.errors import ArtifactError, InvalidRequest

CATEGORY = "upper_body"
# Dress Code's label in place of each of CIHP's: background, hat, hair, glove, sunglasses; upper garment, dress, coat;
# socks, trousers, skin of the torso (the neck), scarf, skirt, face; arms, legs, shoes. A dress or a coat is what the
# garment takes the place of; socks have no label in Dress Code and pass for a leg, gloves for an arm.
LABELS = np.array([0, 1, 2, 14, 3, 4, 4, 4, 12, 6, 11, 17, 5, 11, 14, 15, 12, 13, 9, 10], dtype=np.uint8)
# OpenPose's 25 points have the middle of the hips among the 18, and the feet after them.
POINTS_OF_25 = (*range(8), *range(9, 19))


class VitonHD:
    """The samples of the test split, in the order of its pairs file; pictures are read when a sample is.

    Arguments and errors as `DressCode`.
    """

    def __init__(
        self,
        root: Path,
        order: Order = "paired",
        *,
        num_chunks: int = 3,
        size: tuple[int, int] = (512, 384),
        retrieval: Path | None = None,
        num_retrieved: int = 0,
    ) -> None:
        if num_chunks not in CHUNK_NAMES:
            raise InvalidRequest("num_chunks", num_chunks, "must be 1, 2 or 3")
        self.root = root
        self.size = size
        self._retrieved = RetrievalFiles(root, "test", [CATEGORY], num_chunks, retrieval, num_retrieved)
        chunks = read_config(root / "captions.json")
        captions = {garment_id: caption(value, num_chunks) for garment_id, value in chunks.items()}
        names = ((Path(person).stem, Path(garment).stem) for person, garment in read_pairs(root / "test_pairs.txt"))
        ids = ((person, person if order == "paired" else garment) for person, garment in names)
        self.pairs = list(captioned_pairs(ids, CATEGORY, captions))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample at `index`, its pictures read from disk."""
        pair = self.pairs[index]
        folder = self.root / "test"
        photo = folder / "image" / f"{pair.person_id}.jpg"
        return Sample(
            person_id=pair.person_id,
            garment_id=pair.garment_id,
            category=pair.category,
            caption=pair.caption,
            image=read_image(photo, self.size),
            label_map=_read_labels(folder / "image-parse-v3" / f"{pair.person_id}.png", self.size),
            keypoints=_read_keypoints(folder / "openpose_json" / f"{pair.person_id}_keypoints.json", photo),
            garment_path=folder / "cloth" / f"{pair.garment_id}.jpg",
            retrieved_paths=self._retrieved.paths(pair),
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


def _read_labels(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    labels = read_label_map(path, size)
    if labels.max() >= len(LABELS):
        raise ArtifactError(f"{path}: has the label {labels.max()}; the labels are 0 to {len(LABELS) - 1}")
    return LABELS[labels]


def _read_keypoints(path: Path, photo: Path) -> NDArray[np.float64]:
    """Return the first person's points [18, 2] in pixels of KEYPOINT_FRAME; all absent where nobody was found."""
    people = read_key(path, "people")
    if not people:
        return np.zeros((18, 2))
    try:
        points = np.asarray(people[0]["pose_keypoints_2d"], dtype=np.float64).reshape(-1, 3)[:, :2]
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: no list of x, y, score in people[0].pose_keypoints_2d: {error!r}") from error
    if len(points) not in (18, 25):
        raise ArtifactError(f"{path}: {len(points)} key points; must be 18 or 25")
    if len(points) == 25:
        points = points[list(POINTS_OF_25)]
    with Image.open(photo) as image:
        return scale_keypoints(points, (image.height, image.width), KEYPOINT_FRAME)
