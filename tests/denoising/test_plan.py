"""Holds the solvers to diffusers' schedulers, and plans to their rules."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from fashion_rag.denoising.noise_schedule import NoiseSchedule, alphas_cumprod
from fashion_rag.denoising.plan import History, Step, advance, combine, plan
from fashion_rag.denoising.rows import Rows
from fashion_rag.errors import InvalidRequest
from fashion_rag.request import PLAIN, Shortcuts, Solver

EPSILON = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
}
ZERO_SNR = EPSILON | {
    "steps_offset": 0,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
}
CONFIGS = [EPSILON, ZERO_SNR, EPSILON | {"beta_schedule": "linear", "prediction_type": "v_prediction"}]
OTHERS = {Solver.DPMPP_2M: DPMSolverMultistepScheduler, Solver.UNIPC: UniPCMultistepScheduler}


def config_of(options: dict[str, Any]) -> NoiseSchedule:
    return NoiseSchedule.from_diffusers({"_class_name": "DDIMScheduler", "clip_sample": False} | options)


def theirs(options: dict[str, Any], solver: Solver) -> Any:
    if solver == Solver.DDIM:
        return DDIMScheduler(clip_sample=False, **options)
    return OTHERS[solver](**options)


def noise(seed: int, rows: int = 2) -> Tensor:
    return torch.randn(rows, 4, 6, 5, generator=torch.Generator().manual_seed(seed))


def model(latents: Tensor, t: int) -> Tensor:
    return torch.sin(3 * latents + t / 300) + 0.3 * latents


def walked(steps: tuple[Step, ...], latents: Tensor) -> Tensor:
    history = History.before_first_step(latents)
    for step in steps:
        noise_pred = model(latents, step.t)
        latents, _, after = advance([step] * len(latents), latents, noise_pred, history)
        assert after is not None
        history = after
    return latents


# Of diffusers' own use of numpy.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 7, 10, 20, 50])
@pytest.mark.parametrize("solver", Solver)
@pytest.mark.parametrize("options", CONFIGS)
def test_a_whole_run_equals_diffusers(options: dict[str, Any], solver: Solver, num_steps: int) -> None:
    scheduler = theirs(options, solver)
    scheduler.set_timesteps(num_steps)
    steps = plan(config_of(options), num_steps, 1.0, Shortcuts(solver))
    assert [step.t for step in steps] == scheduler.timesteps.tolist()
    expected = noise(0)
    for t in scheduler.timesteps:
        expected = scheduler.step(model(expected, int(t)), t, expected).prev_sample
    torch.testing.assert_close(walked(steps, noise(0)), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("solver", Solver)
@pytest.mark.parametrize("options", CONFIGS)
def test_the_true_prediction_leads_back_to_the_picture(options: dict[str, Any], solver: Solver) -> None:
    config = config_of(options | {"set_alpha_to_one": True})
    steps = plan(config, 5, 1.0, Shortcuts(solver))
    x0, epsilon = noise(0), noise(1)
    alpha = alphas_cumprod(config, torch.device("cpu"))[steps[2].t]
    latents = alpha.sqrt() * x0 + (1 - alpha).sqrt() * epsilon
    truth = epsilon if config.prediction_type == "epsilon" else alpha.sqrt() * epsilon - (1 - alpha).sqrt() * x0
    torch.testing.assert_close(combine([steps[2].x0] * 2, [latents, truth]), x0, rtol=1e-4, atol=1e-4)


def test_a_sum_does_not_depend_on_the_other_rows_to_the_bit() -> None:
    terms = [noise(seed, rows=4) for seed in range(5)]
    steps = [plan(config_of(EPSILON), 9, 1.0, Shortcuts(solver))[4] for solver in (*Solver, Solver.DDIM)]
    together = combine([step.onward for step in steps], terms)
    for row, step in enumerate(steps):
        one = slice(row, row + 1)
        assert torch.equal(together[one], combine([step.onward], [term[one] for term in terms]))


@pytest.mark.parametrize(
    ("num_steps", "start", "end", "guided"),
    [
        (4, 0.0, 1.0, "1111"),
        (4, 0.5, 1.0, "0011"),
        (5, 0.2, 0.6, "01100"),
        (10, 0.3, 0.3, "0000000000"),
        (3, 0.5, 1.0, "001"),
        (50, 0.14, 0.16, "0" * 7 + "1" + "0" * 42),
    ],
)
def test_there_is_guidance_in_its_part_of_the_steps(num_steps: int, start: float, end: float, guided: str) -> None:
    shortcuts = Shortcuts(guidance_start=start, guidance_end=end)
    steps = plan(config_of(EPSILON), num_steps, 7.5, shortcuts)
    assert "".join(str(int(step.guided)) for step in steps) == guided
    assert [step.rows for step in steps] == [Rows(1 + int(flag)) for flag in guided]
    assert not any(step.guided for step in plan(config_of(EPSILON), num_steps, 1.0, shortcuts))


@pytest.mark.parametrize(
    ("num_steps", "interval", "start", "deep"),
    [
        (6, 1, 0.0, "111111"),
        (7, 3, 0.0, "1001001"),
        (6, 10, 0.0, "100000"),
        # Guidance begins with a deep step, because there are no features of its second row yet.
        (8, 4, 0.25, "10101000"),
        (8, 4, 0.5, "10001000"),
    ],
)
def test_every_so_many_steps_are_deep(num_steps: int, interval: int, start: float, deep: str) -> None:
    steps = plan(config_of(EPSILON), num_steps, 7.5, Shortcuts(guidance_start=start, cache_interval=interval))
    assert "".join(str(int(step.deep)) for step in steps) == deep
    assert [step.keeps for step in steps] == [flag == "0" for flag in deep[1:]] + [False]
    for step in steps:
        num_rows = 2 if step.guided else 1
        assert step.rows == (Rows(num_rows) if step.deep else Rows(0, num_rows))


def test_shortcuts_are_off_by_default() -> None:
    steps = plan(config_of(EPSILON), 5, 7.5, PLAIN)
    assert all(step.deep and step.guided and not step.keeps for step in steps)
    assert steps == plan(config_of(EPSILON), 5, 7.5, Shortcuts())


@pytest.mark.parametrize("num_steps", [0, 1000, 1001])
def test_steps_that_the_schedule_has_not_are_refused(num_steps: int) -> None:
    with pytest.raises(InvalidRequest, match="steps"):
        plan(config_of(EPSILON), num_steps, 1.0, Shortcuts(Solver.UNIPC))
