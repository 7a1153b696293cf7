"""A training set and a stage of UNet and adapter in the toy bundle's sizes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fashion_rag.bundle import Bundle
from fashion_rag.denoising.noise_schedule import NoiseSchedule
from fashion_rag.training.objective import EditStage, SampleMix, TrainingSet, networks

CPU = torch.device("cpu")
EPSILON = NoiseSchedule()
V = replace(EPSILON, prediction_type="v_prediction")
NUM_SAMPLES = 6


def training_set() -> TrainingSet:
    """Return six samples of the toy bundle's sizes, with three garments each."""
    rng = np.random.default_rng(0)
    mask = np.zeros((NUM_SAMPLES, 1, 16, 12), np.uint8)
    mask[:, :, 4:8] = 1
    return TrainingSet(
        moments=rng.normal(size=(NUM_SAMPLES, 8, 16, 12)).astype(np.float16) - 3,
        masked_moments=rng.normal(size=(NUM_SAMPLES, 8, 16, 12)).astype(np.float16) - 3,
        mask=mask,
        pose=np.ones((NUM_SAMPLES, 18, 16, 12), np.float16),
        hidden=rng.normal(size=(3 * NUM_SAMPLES, 5, 16)).astype(np.float16),
        garments=np.arange(3 * NUM_SAMPLES).reshape(NUM_SAMPLES, 3),
        categories=["dresses", "upper_body"] * 3,
        captions=[("red", "blue")] * NUM_SAMPLES,
        scaling_factor=0.5,
    )


def make_stage(path: Path, mix: SampleMix, sampler: NoiseSchedule | None = None) -> EditStage:
    bundle = Bundle.open(path)
    adapter: Any = bundle.load_garment_encoder().network
    network = networks(bundle.load_unet(), adapter.adapter)
    return EditStage(
        network, training_set(), bundle.load_prompt_encoder(), sampler or bundle.sampler, mix, CPU, "float32"
    )
