"""The folders of a bundle that hold the human parser and the pose estimator. `train` writes them here."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import (
    PreTrainedModel,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    VitPoseForPoseEstimation,
    VitPoseImageProcessor,
)
from transformers.image_utils import PILImageResampling

from fashion_rag.atomic_files import scratch_beside
from fashion_rag.demo.model import recipe

PARSER_PART, POSE_PART = "parser", "pose"


def write_photo_parts(folder: Path, parser: SegformerForSemanticSegmentation, pose: VitPoseForPoseEstimation) -> None:
    """Write the parts `parser` and `pose` into the folder of a bundle, in place of those that are there.

    Weights are stored as float16. All other files of the folder stay as they are.
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
    _write_part(folder / PARSER_PART, parser, parser_processor)
    _write_part(folder / POSE_PART, pose, pose_processor)


def _size(size: tuple[int, int]) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}


def _write_part(
    folder: Path, network: PreTrainedModel, processor: SegformerImageProcessor | VitPoseImageProcessor
) -> None:
    """Write a network and how its pictures are prepared to `folder`, which is replaced once the new one is whole."""
    with scratch_beside(folder) as scratch:
        new = scratch / "new"
        stored = copy.deepcopy(network).to(torch.float16)
        stored.save_pretrained(new)
        processor.save_pretrained(new)
        if folder.exists():
            folder.rename(scratch / "old")
        new.rename(folder)
