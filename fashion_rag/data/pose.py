"""Key points: read from JSON, scaled, and drawn as the pose channels of the UNet.

Points are 18 OpenPose (x, y) pairs; (0, 0) = absent. Sizes are (height, width). The pipeline, the training code, the
command line and the server call this. The functions that make tensors import PyTorch themselves, because a server that
only reads and scales points does without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from fashion_rag.errors import InvalidRequest

if TYPE_CHECKING:
    import torch

# The picture size in whose pixels Dress Code gives its key points.
KEYPOINT_FRAME = (512, 384)
NUM_KEYPOINTS = 18
# The largest coordinate that a caller may send, in pixels. No picture is nearly as large.
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


def scale_keypoints(
    keypoints: NDArray[np.float64], from_size: tuple[int, int], to_size: tuple[int, int]
) -> NDArray[np.float64]:
    """Return key points [18, 2] in pixels of `to_size`, given in pixels of `from_size`; absent points stay (0, 0)."""
    scale = (to_size[1] / from_size[1], to_size[0] / from_size[0])
    return np.asarray(keypoints, dtype=np.float64) * scale


def heat_maps(keypoints: NDArray[np.float64], size: tuple[int, int], sigma: float = 9.0) -> torch.Tensor:
    """Return a map for each point, float32 [18, H, W]: exp(-d^2 / sigma^2) with peak 1, or zero for absent points.

    keypoints: [18, 2] in pixels of `size`. sigma: in pixels, 9 in the paper at 512x384.
    """
    import torch

    # In float64, because with float32 distances the map is off by up to 7e-7.
    points = torch.as_tensor(keypoints, dtype=torch.float64)
    x, y = points[:, 0, None, None], points[:, 1, None, None]
    columns = torch.arange(size[1], dtype=torch.float64)[None, None, :]
    rows = torch.arange(size[0], dtype=torch.float64)[None, :, None]
    maps = torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / sigma**2)
    # The peak falls between pixels; the small term also keeps a point far outside the picture from dividing 0 by 0.
    maps = maps / (maps.amax(dim=(1, 2), keepdim=True) + 1.19e-7)
    present = (x > 0) | (y > 0)
    return (maps * present).float()


def to_latent(maps: torch.Tensor, latent_size: tuple[int, int]) -> torch.Tensor:
    """Return heat maps [18, H, W] or [B, 18, H, W] at the latents' size, bilinear without antialiasing as published."""
    from torch.nn import functional

    batched = maps if maps.ndim == 4 else maps[None]
    reduced = functional.interpolate(batched, size=latent_size, mode="bilinear", align_corners=False)
    return reduced if maps.ndim == 4 else reduced[0]
