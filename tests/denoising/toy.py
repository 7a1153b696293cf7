"""Edits of random tensors, and a stand-in for the UNet, for the tests of the runner and the engine."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fashion_rag.denoising.noise_schedule import NoiseSchedule
from fashion_rag.denoising.runner import Edit, Inputs
from fashion_rag.models.unet import DeepUNet
from fashion_rag.pipeline import Conditioning, Person, denoise
from fashion_rag.request import PLAIN, Shortcuts
from tests.tiny import TEXT_WIDTH

LEADING = NoiseSchedule(beta_schedule="scaled_linear")
TRAILING = NoiseSchedule(timestep_spacing="trailing", prediction_type="v_prediction", rescale_betas_zero_snr=True)
SIZES = ((16, 12), (12, 16))


class Spec(NamedTuple):
    seed: int = 0
    num_inference_steps: int = 3
    guidance_scale: float = 7.5
    size: tuple[int, int] = SIZES[0]
    sampler: NoiseSchedule = LEADING
    shortcuts: Shortcuts = PLAIN


DEFAULT = Spec()


def edit(edit_id: str, spec: Spec = DEFAULT, **changes: Any) -> Edit:
    known = Edit(
        edit_id, spec.size, spec.num_inference_steps, spec.guidance_scale, spec.sampler, shortcuts=spec.shortcuts
    )
    return dataclasses.replace(known, **changes)


def inputs(spec: Spec = DEFAULT, text_width: int = TEXT_WIDTH, **changes: Tensor) -> Inputs:
    generator = torch.Generator().manual_seed(spec.seed)
    channels = {"latents": 4, "mask": 1, "masked_image_latents": 4, "pose_map": 18}
    tensors = {name: torch.randn(1, count, *spec.size, generator=generator) for name, count in channels.items()}
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        tensors[name] = torch.randn(1, 77, text_width, generator=generator)
    return Inputs(**tensors | changes)


@torch.inference_mode()
def alone(unet: DeepUNet, spec: Spec = DEFAULT) -> list[Tensor]:
    """Return the latents that the pipeline makes of an edit: those it starts from, and those after each step."""
    own = inputs(spec)
    person = Person(own.mask, own.masked_image_latents, own.pose_map)
    conditioning = Conditioning(own.prompt_embeds, own.negative_prompt_embeds)
    steps, scale = spec.num_inference_steps, spec.guidance_scale
    walk = denoise(unet, spec.sampler, own.latents, person, conditioning, steps, scale, spec.shortcuts)
    return [own.latents, *walk]


class FakeUNet:
    """A prediction that depends on all of a row's input and on nothing else; remembers its calls.

    A call of the whole network takes `call_s` on `clock`, or what `call_s` says of its rows; it raises `error`. Its
    features depend on the call that they were made in. `shallow_rows` are those of the calls of the outermost layers,
    which take no time.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.call_s: float | Callable[[int], float] = 1.0
        self.error: Exception | None = None
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []
        self.shallow_rows: list[int] = []

    def clock(self) -> float:
        return self.now

    @property
    def rows(self) -> list[int]:
        return [len(sample) for sample, _, _ in self.calls]

    def __call__(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
        self.now += self.call_s(len(sample)) if callable(self.call_s) else self.call_s
        self.calls.append((sample, t, prompt_embeds))
        if self.error:
            raise self.error
        weights = torch.linspace(-1, 1, sample.shape[1])[:, None, None]
        row = prompt_embeds.mean((1, 2)) + t / 1000
        return torch.sin(sample[:, :4] + (weights * sample).sum(1, keepdim=True) + row[:, None, None, None])

    def deep(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, Tensor]:
        noise_pred = self(sample, t, prompt_embeds)
        return noise_pred, torch.cat([noise_pred, sample[:, 9:12]], dim=1)

    def shallow(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor, features: Tensor) -> Tensor:
        self.shallow_rows.append(len(sample))
        return torch.sin(
            sample[:, :4] + features[:, :4] + features[:, 4:].mean(1, keepdim=True) + t[:, None, None, None]
        )
