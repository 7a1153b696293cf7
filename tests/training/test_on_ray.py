"""A test that training by Ray Train survives the death of a worker, and gives the same weights."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
from torch import nn

from fashion_rag.training.data import Source
from fashion_rag.training.fit import TrainingPlan, TrainingProgress
from fashion_rag.training.objective import SampleMix
from fashion_rag.training.on_ray import train_on_ray
from fashion_rag.training.run import TrainingSettings, train

PLAN = TrainingPlan(
    8, batch_size=4, learning_rate=1e-3, num_parts=2, warmup_steps=2, precision="float32", save_every_s=-1
)

pytestmark = [
    pytest.mark.slow,
    # Ray Train 2.60 copies all settings of Ray Data, including deprecated ones.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
    pytest.mark.filterwarnings("ignore::UserWarning:ray.data.context"),
]


@pytest.fixture
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=3, include_dashboard=False)
    yield
    ray.shutdown()


def test_a_worker_that_dies_is_made_good(cluster: None, source: Source, tiny_bundle: Path, tmp_path: Path) -> None:
    local = TrainingSettings(tiny_bundle, source, tmp_path / "here", tmp_path / "out", PLAN, SampleMix(), sheet_every=0)
    on_ray = replace(local, work=tmp_path / "there")
    dead = tmp_path / "dead"

    # Workers cannot import `tests`, but a local function is sent to them with its code.
    def die_once(progress: TrainingProgress, average: nn.Module) -> None:
        if progress.step == 5 and not dead.exists():
            dead.touch()
            os._exit(1)

    train(local, num_processes=1)
    bundle = train_on_ray(on_ray, num_workers=2, watch=die_once)
    assert dead.exists() and bundle.path == on_ray.out
    expected = torch.load(local.work / "unet.pt", weights_only=True)
    trained = torch.load(on_ray.work / "unet.pt", weights_only=True)
    for key in ("network", "average"):
        assert all(torch.equal(expected[key][name], trained[key][name]) for name in expected[key])
