from typing import Any

import pytest
import torch
from torch import Tensor

from fashion_rag.denoising.runner import Edit, Runner
from fashion_rag.denoising.sampler import SamplerConfig, previous_timesteps, timesteps
from fashion_rag.pipeline import Conditioning, Person, denoise

SAMPLER = SamplerConfig(beta_schedule="scaled_linear")


def edit(edit_id: str, seed: int = 0, **changes: Any) -> Edit:
    generator = torch.Generator().manual_seed(seed)
    channels = {"latents": 4, "mask": 1, "masked_image_latents": 4, "pose_map": 18}
    options: dict[str, Any] = {
        name: torch.randn(1, count, 4, 3, generator=generator) for name, count in channels.items()
    }
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        options[name] = torch.randn(1, 77, 8, generator=generator)
    return Edit(edit_id, **options | {"num_inference_steps": 4, "guidance_scale": 7.5} | changes)


def constant(edit_id: str, value: float, guidance_scale: float) -> Edit:
    maps = [torch.full((1, count, 2, 2), value + place / 10) for place, count in enumerate((4, 1, 4, 18))]
    prompts = [torch.full((1, 77, 8), value + place) for place in (0.5, 0.6)]
    return Edit(edit_id, *maps, *prompts, num_inference_steps=4, guidance_scale=guidance_scale)


class FakeUNet:
    """A prediction that depends on all of a row's input and on nothing else; remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
        self.calls.append((sample, t, prompt_embeds))
        weights = torch.linspace(-1, 1, sample.shape[1])[:, None, None]
        row = prompt_embeds.mean((1, 2)) + t / 1000
        return torch.sin(sample[:, :4] + (weights * sample).sum(1, keepdim=True) + row[:, None, None, None])


def test_every_edit_has_a_conditional_row_and_guided_ones_an_unconditional() -> None:
    unet = FakeUNet()
    edits = [constant("a", 1, guidance_scale=2.0), constant("b", 2, guidance_scale=1.0), constant("c", 3, 5.0)]
    latents = [torch.full((1, 4, 2, 2), value) for value in (7.0, 8.0, 9.0)]
    result = Runner(unet, SAMPLER).run(edits, latents, [(750, 500), (0, -1), (250, 0)])
    ((sample, t, prompt_embeds),) = unet.calls
    assert t.tolist() == [750, 0, 250, 750, 250]
    torch.testing.assert_close(prompt_embeds[:, 0, 0], torch.tensor([1.5, 2.5, 3.5, 1.6, 3.6]))
    expected = [
        [latent] * 4 + [value + 0.1] + [value + 0.2] * 4 + [pose] * 18
        for latent, value, pose in [(7, 1, 1.3), (8, 2, 2.3), (9, 3, 3.3), (7, 1, 0), (9, 3, 0)]
    ]
    torch.testing.assert_close(sample[..., 0, 0], torch.tensor(expected))
    assert result.shape == (3, 4, 2, 2)


@pytest.mark.parametrize("guidance_scales", [(7.5, 1.0, 3.0, 0.0), (0.5, 1.0), (7.5, 2.0), (30.0,)])
def test_a_shared_step_is_the_pipeline_s_step_of_each_edit(guidance_scales: tuple[float, ...]) -> None:
    edits = [edit(str(row), row, guidance_scale=scale) for row, scale in enumerate(guidance_scales)]
    steps = list(zip(timesteps(SAMPLER, 4).tolist(), previous_timesteps(SAMPLER, 4).tolist(), strict=True))
    # Edit number n has done n steps.
    alone = [
        [each.latents, *denoise(FakeUNet(), SAMPLER, each.latents, person(each), conditioning(each), 4, scale)]
        for each, scale in zip(edits, guidance_scales, strict=True)
    ]
    latents = [done[row] for row, done in enumerate(alone)]
    together = Runner(FakeUNet(), SAMPLER).run(edits, latents, steps[: len(edits)])
    torch.testing.assert_close(together, torch.cat([done[row + 1] for row, done in enumerate(alone)]))


def person(each: Edit) -> Person:
    return Person(each.mask, each.masked_image_latents, each.pose_map)


def conditioning(each: Edit) -> Conditioning:
    return Conditioning(each.prompt_embeds, each.negative_prompt_embeds)
