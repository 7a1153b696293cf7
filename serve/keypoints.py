"""Key points as callers send them: JSON in a form's field or in a file. `uploads` and the command line call it."""

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from fashion_rag.data.pose import KEYPOINT_FRAME, scale_keypoints
from fashion_rag.errors import InvalidRequest

NUM_KEYPOINTS = 18
# Of a key point that a caller sends, in pixels: no picture is nearly as large.
MAX_KEYPOINT = 100_000

Coordinate = Annotated[float, Field(strict=True, ge=-MAX_KEYPOINT, le=MAX_KEYPOINT, allow_inf_nan=False)]
Points = Annotated[list[tuple[Coordinate, Coordinate]], Field(min_length=NUM_KEYPOINTS, max_length=NUM_KEYPOINTS)]


class DressCodeFile(BaseModel):
    """A key points file of the Dress Code data set: a row of x, y, score and index for each point."""

    keypoints: Annotated[
        list[tuple[Coordinate, Coordinate, Coordinate, Coordinate]],
        Field(min_length=NUM_KEYPOINTS, max_length=NUM_KEYPOINTS),
    ]


KEYPOINTS: TypeAdapter[list[tuple[float, float]] | DressCodeFile] = TypeAdapter(Points | DressCodeFile)


def parse_keypoints(text: str, size: tuple[int, ...]) -> NDArray[np.float64]:
    """Return key points [18, 2] in pixels of a picture of `size` (height, width), from one of two JSON forms.

    [[x, y], ...]: 18 points in pixels of the picture. {"keypoints": [[x, y, score, index], ...]}: a Dress Code file,
    in that data set's own frame. Raises InvalidRequest for anything else.
    """
    rule = (
        'must be JSON: [[x, y], ...] with 18 points, or {"keypoints": [[x, y, score, index], ...]}, '
        f"of finite numbers from -{MAX_KEYPOINT} to {MAX_KEYPOINT}"
    )
    try:
        content = KEYPOINTS.validate_json(text)
    except ValidationError as error:
        raise InvalidRequest("keypoints", text, rule) from error
    if isinstance(content, DressCodeFile):
        points = np.array([row[:2] for row in content.keypoints], np.float64)
        return scale_keypoints(points, KEYPOINT_FRAME, (size[0], size[1]))
    return np.array(content, np.float64)
