"""Tests of the training loop: it learns, resumes bit for bit, and is the same on any number of processes."""

import importlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fashion_rag.errors import InvalidRequest
from fashion_rag.training.fit import Precision, TrainingPlan, TrainingProgress, fit, learning_rate
from fashion_rag.training.processes import run_processes, silent

PLAN = TrainingPlan(num_steps=40, batch_size=8, learning_rate=0.05, ema_decay=0.5, save_every_s=-1.0)


class CutOff(Exception):
    pass


class Line:
    """A stage that fits a straight line to points with noise from both generators."""

    name = "line"

    def __init__(self, cut_off_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.network = nn.Linear(1, 1)
        self.cut_off_at = cut_off_at
        self.num_losses = 0

    def loss(self, rng: np.random.Generator, num_rows: int) -> Tensor:
        self.num_losses += 1
        if self.num_losses == self.cut_off_at:
            raise CutOff
        x = torch.from_numpy(rng.normal(size=(num_rows, 1))).float()
        return (self.network(x) - (3 * x - 1 + 0.01 * torch.randn_like(x))).square().mean()


def unwatched(progress: TrainingProgress, average: nn.Module) -> None:
    pass


def checkpoint(folder: Path, name: str = "line") -> dict[str, Any]:
    return torch.load(folder / f"{name}.pt", weights_only=True)  # type: ignore[no-any-return]


def leaves(value: Any) -> Iterator[Any]:
    """Yield all values in the containers of a checkpoint, in order."""
    if isinstance(value, dict):
        for key in value:
            yield key
            yield from leaves(value[key])
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from leaves(entry)
    else:
        yield value


def assert_equal(first: Any, second: Any) -> None:
    """Assert that both hold the same values, bit for bit."""
    for a, b in zip(leaves(first), leaves(second), strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def test_it_learns(tmp_path: Path) -> None:
    stage = Line()
    fit(stage, replace(PLAN, num_steps=400), tmp_path, seed=1, watch=unwatched)
    weight, bias = (parameter.item() for parameter in stage.network.parameters())
    assert weight == pytest.approx(3, abs=0.1)
    assert bias == pytest.approx(-1, abs=0.1)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_run_cut_off_ends_bit_for_bit_like_one_that_was_not(tmp_path: Path, precision: Precision) -> None:
    plan = replace(PLAN, precision=precision)
    unbroken, resumed = Line(), Line()
    fit(unbroken, plan, tmp_path / "a", seed=1, watch=unwatched)
    with pytest.raises(CutOff):
        fit(Line(cut_off_at=17), plan, tmp_path / "b", seed=1, watch=unwatched)
    assert checkpoint(tmp_path / "b")["step"] == 16
    fit(resumed, plan, tmp_path / "b", seed=1, watch=unwatched)
    assert resumed.num_losses == PLAN.num_steps - 16
    assert_equal(checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b"))
    assert_equal(unbroken.network.state_dict(), resumed.network.state_dict())
    assert bool(checkpoint(tmp_path / "a")["scaler"]) == (precision == "float16")


def test_a_checkpoint_without_a_scale_is_gone_on_from(tmp_path: Path) -> None:
    with pytest.raises(CutOff):
        fit(Line(cut_off_at=17), PLAN, tmp_path, seed=1, watch=unwatched)
    older = {key: value for key, value in checkpoint(tmp_path).items() if key != "scaler"}
    torch.save(older, tmp_path / "line.pt")
    stage = Line()
    fit(stage, PLAN, tmp_path, seed=1, watch=unwatched)
    assert stage.num_losses == PLAN.num_steps - 16


def test_another_seed_gives_another_run(tmp_path: Path) -> None:
    first, second = Line(), Line()
    fit(first, PLAN, tmp_path / "a", seed=1, watch=unwatched)
    fit(second, PLAN, tmp_path / "b", seed=2, watch=unwatched)
    assert not torch.equal(first.network.weight, second.network.weight)


def test_the_rate_warms_up_stays_and_runs_down() -> None:
    plan = TrainingPlan(num_steps=1000, batch_size=1, learning_rate=1.0)
    assert learning_rate(plan, 0) == pytest.approx(0.01)
    assert learning_rate(plan, 100) == learning_rate(plan, 749) == 1.0
    assert learning_rate(plan, 999) == pytest.approx(0.004)
    steady = replace(plan, warmup_steps=0, decay_share=0.0)
    assert learning_rate(steady, 0) == learning_rate(steady, 999) == 1.0


def test_what_is_watched(tmp_path: Path) -> None:
    seen: list[TrainingProgress] = []
    averages: list[Tensor] = []

    def watch(progress: TrainingProgress, average: nn.Module) -> None:
        seen.append(progress)
        averages.append(average.weight.clone())  # type: ignore[operator, union-attr]

    stage = Line()
    fit(stage, replace(PLAN, num_steps=3), tmp_path, seed=1, watch=watch)
    steps = [(progress.stage, progress.step, progress.num_steps) for progress in seen]
    assert steps == [("line", step, 3) for step in (1, 2, 3)]
    assert [progress.learning_rate for progress in seen] == pytest.approx([0.05 * step / 100 for step in (1, 2, 3)])
    for progress in seen:
        assert progress.loss > 1 and progress.gradient_norm > 1 and progress.images_per_s > 0
    assert torch.equal(averages[-1], stage.network.weight)


class Fixed:
    """A stage that fits a line to given points in their order, so that the parts of a batch add up to it."""

    name = "fixed"
    x = torch.linspace(-1, 1, 16)[:, None]

    def __init__(self) -> None:
        self.network = nn.Linear(1, 1)
        nn.init.constant_(self.network.weight, 0.0)
        nn.init.constant_(self.network.bias, 0.0)
        self.used = 0

    def loss(self, rng: np.random.Generator, num_rows: int) -> Tensor:
        x = self.x[self.used : self.used + num_rows]
        self.used += num_rows
        return (self.network(x) - x - 1).square().mean()


def test_parts_of_a_batch_add_up_to_it(tmp_path: Path) -> None:
    moments = []
    for num_parts in (1, 2, 4):
        stage = Fixed()
        fit(stage, replace(PLAN, num_steps=2, num_parts=num_parts), tmp_path / str(num_parts), 1, unwatched)
        assert stage.used == 16
        moments.append(checkpoint(tmp_path / str(num_parts), "fixed")["optimiser"]["state"][0]["exp_avg"])
    assert moments[0].abs().min() > 0
    for parted in moments[1:]:
        torch.testing.assert_close(parted, moments[0], rtol=1e-5, atol=0)


class Blows(Line):
    """A stage whose loss is infinite at one step."""

    def loss(self, rng: np.random.Generator, num_rows: int) -> Tensor:
        loss = super().loss(rng, num_rows)
        return loss * float("inf") if self.num_losses == 3 else loss


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_step_that_blows_up_changes_no_weight(tmp_path: Path, precision: Precision) -> None:
    norms: list[float] = []
    stage = Blows()
    plan = replace(PLAN, num_steps=4, precision=precision)
    fit(stage, plan, tmp_path, 1, lambda progress, average: norms.append(progress.gradient_norm))
    assert np.isfinite(norms).tolist() == [True, True, False, True]
    saved = checkpoint(tmp_path)
    assert saved["optimiser"]["state"][0]["step"] == 3
    assert all(tensor.isfinite().all() for tensor in saved["network"].values())


@pytest.mark.parametrize(("change", "field"), [({"batch_size": 9}, "batch_size"), ({"num_parts": 3}, "num_parts")])
def test_what_cannot_be_shared_evenly_is_refused(change: dict[str, int], field: str) -> None:
    with pytest.raises(InvalidRequest, match=field):
        replace(PLAN, **change).part_numbers(0, 2)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the module that other processes run. They cannot import `tests`, as installed packages have one, too."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module("training_jobs")


def test_two_processes_train_as_one_does(tmp_path: Path, jobs: ModuleType) -> None:
    run_processes(partial(jobs.train, tmp_path / "two"), 2, tmp_path, silent)
    run_processes(partial(jobs.train, tmp_path / "one"), 1, tmp_path, silent)
    assert_equal(checkpoint(tmp_path / "one", "sometimes"), checkpoint(tmp_path / "two", "sometimes"))


@pytest.mark.parametrize("death", ["die_in_the_second", "die_at_the_start_of_the_second"])
def test_a_process_that_dies_ends_the_first(tmp_path: Path, jobs: ModuleType, death: str) -> None:
    with pytest.raises(RuntimeError):
        run_processes(getattr(jobs, death), 2, tmp_path, silent)
