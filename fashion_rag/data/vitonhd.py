"""The reader of the test split of a data set in the VITON-HD layout. The evaluation calls it.

The samples are like those of Dress Code. The layout below the root, beside retrieval files as in `dresscode.py`:

    test_pairs.txt                             on each line the file names of a person and a garment, unpaired
    captions.json                              the noun chunks of each garment id
    test/image/ID.jpg, test/cloth/ID.jpg       a person, a garment
    test/image-parse-v3/ID.png                 the label map of the person, with the labels of another data set
    test/openpose_json/ID_keypoints.json       the key points in pixels of the person's picture

An id is a file name without its ending, such as 00006_00. In the paired order a person keeps the garment of the same
id. Every garment is for the upper body. VITON-HD itself has no captions: their file is an addition of this project.

The layout is known from publications about the data set (arXiv 2103.16874), and the labels from the human parser that
made its label maps (CIHP, arXiv 1808.00157). The data set itself was not available, so two things are not verified:
that each person has 25 key points (18 are accepted, too), and that the label maps hold label numbers.
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
# The label of Dress Code for each label of CIHP: background, hat, hair, glove, sunglasses; upper garment, dress, coat;
# socks, trousers, skin of the torso (the neck), scarf, skirt, face; arms, legs, shoes. A dress or a coat counts as an
# upper garment, because the new garment replaces it. Dress Code has no label for socks and gloves: socks become legs,
# and gloves become arms.
LABELS = np.array([0, 1, 2, 14, 3, 4, 4, 4, 12, 6, 11, 17, 5, 11, 14, 15, 12, 13, 9, 10], dtype=np.uint8)
# The 18 points among OpenPose's 25, which also have the middle of the hips (number 8) and, at the end, the feet.
POINTS_OF_25 = (*range(8), *range(9, 19))


class VitonHD:
    """The samples of the test split, in the order of its pairs file. Pictures are read with their sample.

    The arguments and the errors are those of `DressCode`.
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
        self._retrieved = RetrievalFiles(
            root, "test", [CATEGORY], num_chunks=num_chunks, retrieval=retrieval, num_retrieved=num_retrieved
        )
        chunks = read_config(root / "captions.json")
        captions = {garment_id: caption(value, num_chunks) for garment_id, value in chunks.items()}
        ids: list[tuple[str, str]] = []
        for person, garment in read_pairs(root / "test_pairs.txt"):
            person_id = Path(person).stem
            garment_id = person_id if order == "paired" else Path(garment).stem
            ids.append((person_id, garment_id))
        self.pairs = list(captioned_pairs(ids, CATEGORY, captions))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample at `index`, after reading its pictures from disk."""
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
    """Return a label map with Dress Code's labels, uint8 [H, W]."""
    labels = read_label_map(path, size)
    if labels.max() >= len(LABELS):
        raise ArtifactError(f"{path}: has the label {labels.max()}; the labels are 0 to {len(LABELS) - 1}")
    return LABELS[labels]


def _read_keypoints(path: Path, photo: Path) -> NDArray[np.float64]:
    """Return the first person's key points [18, 2] in pixels of KEYPOINT_FRAME.

    All are (0, 0), which stands for a missing point, if the file has no person.
    """
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
