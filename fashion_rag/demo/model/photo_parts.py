"""The files of the human parser and the pose estimator for a bundle. `packaging` puts them into one."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import (
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    VitPoseForPoseEstimation,
    VitPoseImageProcessor,
)
from transformers.image_utils import PILImageResampling

from fashion_rag.demo.model import recipe
from fashion_rag.person.files import PARSER, POSE


def write_photo_parts(
    folder: Path, parser: SegformerForSemanticSegmentation, pose: VitPoseForPoseEstimation
) -> dict[str, Path]:
    """Write the two networks to new folders in `folder`, and return these by the name that they have in a bundle.

    Weights are stored as float16.
    """
    parser_processor = SegformerImageProcessor(
        size=_size(recipe.PARSER_SIZE),
        resample=PILImageResampling.BICUBIC,
        image_mean=list(recipe.PHOTO_MEAN),
        image_std=list(recipe.PHOTO_STD),
    )
    pose_processor = VitPoseImageProcessor(
        size=_size(recipe.POSE_SIZE),
        image_mean=list(recipe.PHOTO_MEAN),
        image_std=list(recipe.PHOTO_STD),
    )
    networks = {PARSER: (parser, parser_processor), POSE: (pose, pose_processor)}
    for part, (network, processor) in networks.items():
        copy.deepcopy(network).to(torch.float16).save_pretrained(folder / part)
        processor.save_pretrained(folder / part)
    return {part: folder / part for part in networks}


def _size(size: tuple[int, int]) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}
