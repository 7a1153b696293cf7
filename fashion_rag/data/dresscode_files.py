"""The texts of files in the Dress Code layout, for those who write a data set. `dresscode.py` reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def keypoints_json(keypoints: NDArray[np.float64]) -> str:
    """Return the key points file of a person as JSON.

    keypoints: [18, 2] in pixels of `pose.KEYPOINT_FRAME`. Each point has a score, 0 where it is absent, and its number.
    """
    rows = []
    for number, (x, y) in enumerate(keypoints.tolist()):
        score = 1.0 if x > 0 or y > 0 else 0.0
        rows.append([round(x, 3), round(y, 3), score, float(number)])
    return json.dumps({"keypoints": rows})


def pairs_lines(person_ids: Sequence[str], garment_ids: Sequence[str]) -> str:
    """Return the content of a pairs file, with a line for each person and the garment of the same place."""
    lines = [f"{person}_0.jpg {garment}_1.jpg\n" for person, garment in zip(person_ids, garment_ids, strict=True)]
    return "".join(lines)
