"""The first step of an edit, which makes the model's tensors of the request's window. The pipeline calls it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fashion_rag.data.colour import to_srgb
from fashion_rag.data.image import to_tensor
from fashion_rag.data.pose import heat_maps, scale_keypoints
from fashion_rag.data.window import points_in, resized, whole
from fashion_rag.manifest import Manifest
from fashion_rag.request import CompleteRequest


class PreparedPhoto(NamedTuple):
    """A window at the model's size: image [1, 3, H, W] in [-1, 1], mask [1, 1, H, W], pose_map [1, 18, H, W]."""

    image: Tensor
    mask: Tensor
    pose_map: Tensor


def prepare(request: CompleteRequest, manifest: Manifest) -> PreparedPhoto:
    """Return the request's window, in sRGB, its mask and its pose, at the bundle's image size, on the CPU.

    Beyond the photo, photo and mask are continued. Key points outside the window are absent, except where the window is
    the whole photo, which is handled as in the paper's evaluation.
    """
    window, size = request.window, manifest.image_size
    # The window is resized before its colours are converted, because it may be a hundred times as large.
    photo = resized(request.image, window, size, Image.Resampling.BICUBIC)
    mask = resized((request.mask != 0).astype(np.uint8), window, size, Image.Resampling.NEAREST)
    keypoints = np.zeros((18, 2)) if request.keypoints is None else request.keypoints
    if window == whole(request.mask.shape):
        keypoints = scale_keypoints(keypoints, request.mask.shape, size)
    else:
        keypoints = points_in(window, keypoints, size)
    return PreparedPhoto(
        image=to_tensor(to_srgb(photo, request.icc_profile), size)[None],
        mask=torch.from_numpy(np.array(mask)).float()[None, None],
        pose_map=heat_maps(keypoints, size, manifest.pose_sigma)[None],
    )
