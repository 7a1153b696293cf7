"""The training loop: it learns, and a run cut off goes on as if it had not been."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from fashion_rag.demo import fit as fitting
from fashion_rag.demo.fit import Plan, fit, learning_rate

PLAN = Plan(num_steps=40, batch_size=8, learning_rate=0.05, ema_decay=0.5)


class CutOff(Exception):
    pass


class Line:
    """A straight line to be found, in noise that comes from both generators."""

    name = "line"

    def __init__(self, cut_off_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.network = nn.Linear(1, 1)
        self.cut_off_at = cut_off_at
        self.num_losses = 0

    def loss(self, rng: np.random.Generator, batch_size: int) -> Tensor:
        self.num_losses += 1
        if self.num_losses == self.cut_off_at:
            raise CutOff
        x = torch.from_numpy(rng.normal(size=(batch_size, 1))).float()
        return (self.network(x) - (3 * x - 1 + 0.01 * torch.randn_like(x))).square().mean()


def silent(stage: str, step: int, num_steps: int, loss: float) -> None:
    pass


def test_it_learns(tmp_path: Path) -> None:
    stage = Line()
    fit(stage, replace(PLAN, num_steps=400), tmp_path, seed=1, report=silent)
    weight, bias = (parameter.item() for parameter in stage.network.parameters())
    assert weight == pytest.approx(3, abs=0.1)
    assert bias == pytest.approx(-1, abs=0.1)


def test_a_run_cut_off_ends_bit_for_bit_like_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "SAVE_EVERY_S", -1.0)
    unbroken = Line()
    fit(unbroken, PLAN, tmp_path / "a", seed=1, report=silent)
    with pytest.raises(CutOff):
        fit(Line(cut_off_at=17), PLAN, tmp_path / "b", seed=1, report=silent)
    resumed = Line()
    fit(resumed, PLAN, tmp_path / "b", seed=1, report=silent)
    assert resumed.num_losses == PLAN.num_steps - 16
    for a, b in zip(unbroken.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_another_seed_gives_another_run(tmp_path: Path) -> None:
    one, other = Line(), Line()
    fit(one, PLAN, tmp_path / "a", seed=1, report=silent)
    fit(other, PLAN, tmp_path / "b", seed=2, report=silent)
    assert not torch.equal(one.network.weight, other.network.weight)


def test_the_rate_warms_up_stays_and_runs_down() -> None:
    plan = Plan(num_steps=1000, batch_size=1, learning_rate=1.0)
    assert learning_rate(plan, 0) == pytest.approx(0.01)
    assert learning_rate(plan, 100) == learning_rate(plan, 749) == 1.0
    assert learning_rate(plan, 999) == pytest.approx(0.004)


class Sometimes:
    """A network of which only every other process uses the second half."""

    name = "sometimes"

    def __init__(self, rank: int) -> None:
        torch.manual_seed(rank)
        self.network = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
        self.rank = rank

    def loss(self, rng: np.random.Generator, batch_size: int) -> Tensor:
        x = torch.from_numpy(rng.normal(size=(batch_size, 1))).float()
        y: Tensor = self.network[0](x)
        return (y + self.network[1](x) if self.rank else y).square().mean()


def train_in_one_of_two(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    stage = Sometimes(rank)
    fit(stage, PLAN, folder, seed=1, report=silent)
    torch.save(stage.network.state_dict(), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_processes_agree_though_they_start_apart_and_one_leaves_a_part_unused(tmp_path: Path) -> None:
    spawn(train_in_one_of_two, args=(tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for key in first:
        assert torch.equal(first[key], second[key])
