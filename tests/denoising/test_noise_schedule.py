from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from fashion_rag.denoising.noise_schedule import (
    NoiseSchedule,
    alphas_cumprod,
    guide,
    timesteps,
)
from fashion_rag.errors import ArtifactError, InvalidRequest

EPSILON = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
}
ZERO_SNR = EPSILON | {
    "steps_offset": 0,
    "set_alpha_to_one": True,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
}
CONFIGS = [EPSILON, ZERO_SNR, EPSILON | {"beta_schedule": "linear", "prediction_type": "v_prediction"}]


def both(options: dict[str, Any]) -> tuple[NoiseSchedule, DDIMScheduler]:
    scheduler = DDIMScheduler(**options)
    return NoiseSchedule.from_diffusers(dict(scheduler.config) | {"_class_name": "DDIMScheduler"}), scheduler


def noise(seed: int, rows: int) -> torch.Tensor:
    return torch.randn(rows, 4, 6, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_inference_steps", [1, 2, 7, 10, 24, 50, 333, 999])
@pytest.mark.parametrize("options", CONFIGS)
def test_timesteps_are_those_of_diffusers(options: dict[str, Any], num_inference_steps: int) -> None:
    config, scheduler = both(options)
    scheduler.set_timesteps(num_inference_steps)
    assert torch.equal(timesteps(config, num_inference_steps), scheduler.timesteps)


def test_guidance_scales_may_differ_by_row() -> None:
    uncond, cond = noise(0, rows=2), noise(1, rows=2)
    guided = guide(uncond, cond, torch.tensor([7.5, 2.0]))
    torch.testing.assert_close(guided[0], guide(uncond[:1], cond[:1], 7.5)[0])
    torch.testing.assert_close(guided[1], uncond[1] + 2 * (cond[1] - uncond[1]))


def test_schedule_may_be_trained_through_after_inference() -> None:
    config, _ = both(EPSILON | {"beta_start": 0.0009})  # a schedule that no other test has cached
    with torch.inference_mode():
        alphas = alphas_cumprod(config, torch.device("cpu"))
    weight = torch.ones(1, requires_grad=True)
    (weight * alphas[:3]).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("num_inference_steps", [0, 1000, 1001])
def test_more_steps_than_the_schedule_has_are_refused(num_inference_steps: int) -> None:
    config, _ = both(EPSILON)  # its offset of 1 puts the first of 1000 steps beyond the end
    with pytest.raises(InvalidRequest, match=f"steps: got {num_inference_steps}"):
        timesteps(config, num_inference_steps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "PNDMScheduler"}, "PNDMScheduler"),
        ({"_class_name": None}, "_class_name"),
        ({"clip_sample": True}, "clip_sample must be False"),
        ({"thresholding": True}, "thresholding must be False"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas must be None"),
        ({"prediction_type": "sample"}, "prediction_type is 'sample'"),
        ({"timestep_spacing": "linspace"}, "timestep_spacing is 'linspace'"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule is 'squaredcos_cap_v2'"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr needs prediction_type 'v_prediction'"),
        ({"snr_shift_scale": 3.0}, "unknown options.*snr_shift_scale"),
    ],
)
def test_what_would_change_the_result_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        NoiseSchedule.from_diffusers({"_class_name": "DDIMScheduler"} | EPSILON | change)


def test_a_configuration_silent_on_clipping_is_refused() -> None:
    options = {name: value for name, value in EPSILON.items() if name != "clip_sample"}
    with pytest.raises(ArtifactError, match="clip_sample"):
        NoiseSchedule.from_diffusers({"_class_name": "DDIMScheduler"} | options)


def test_keys_without_effect_and_defaults_are_those_of_diffusers() -> None:
    raw = {"_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0", "clip_sample": False, "skip_prk_steps": True}
    config = NoiseSchedule.from_diffusers(raw)
    expected = DDIMScheduler(clip_sample=False).config
    assert all(getattr(config, name) == expected[name] for name in NoiseSchedule.__dataclass_fields__)
