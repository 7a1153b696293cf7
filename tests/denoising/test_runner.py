import pytest
import torch

from fashion_rag.denoising.runner import Inputs, Runner
from fashion_rag.denoising.sampler import SamplerConfig, previous_timesteps, timesteps
from fashion_rag.errors import FashionRAGError
from tests.denoising import toy
from tests.denoising.toy import LEADING, SIZES, TRAILING, FakeUNet, Spec


def constant(value: float) -> Inputs:
    maps = [torch.full((1, count, 2, 2), value + place / 10) for place, count in enumerate((4, 1, 4, 18))]
    prompts = [torch.full((1, 77, 8), value + place) for place in (0.5, 0.6)]
    return Inputs(*maps, *prompts)


def steps_of(spec: Spec) -> list[tuple[int, int]]:
    walk = (spec.sampler, spec.num_inference_steps)
    return list(zip(timesteps(*walk).tolist(), previous_timesteps(*walk).tolist(), strict=True))


def test_guided_edits_have_an_unconditional_row_before_the_conditional_row_of_each() -> None:
    unet = FakeUNet()
    edits = [
        toy.edit(edit_id, guidance_scale=scale, size=(2, 2)) for edit_id, scale in (("a", 2.0), ("b", 1.0), ("c", 5.0))
    ]
    latents = [torch.full((1, 4, 2, 2), value) for value in (7.0, 8.0, 9.0)]
    inputs = [constant(value) for value in (1, 2, 3)]
    after, x0 = Runner(unet).run(edits, inputs, latents, [(750, 500), (0, -1), (250, 0)])
    ((sample, t, prompt_embeds),) = unet.calls
    assert t.tolist() == [750, 250, 750, 0, 250]
    torch.testing.assert_close(prompt_embeds[:, 0, 0], torch.tensor([1.6, 3.6, 1.5, 2.5, 3.5]))
    expected = [
        [latent] * 4 + [value + 0.1] + [value + 0.2] * 4 + [pose] * 18
        for latent, value, pose in [(7, 1, 0), (9, 3, 0), (7, 1, 1.3), (8, 2, 2.3), (9, 3, 3.3)]
    ]
    torch.testing.assert_close(sample[..., 0, 0], torch.tensor(expected))
    assert after.shape == x0.shape == (3, 4, 2, 2)


@pytest.mark.parametrize("guidance_scales", [(7.5, 1.0, 3.0, 0.0), (0.5, 1.0), (7.5, 2.0), (30.0,)])
@pytest.mark.parametrize("samplers", [(LEADING, LEADING), (LEADING, TRAILING), (TRAILING, LEADING)])
def test_a_shared_step_is_the_pipeline_s_step_of_each_edit(
    guidance_scales: tuple[float, ...], samplers: tuple[SamplerConfig, SamplerConfig]
) -> None:
    specs = [Spec(row, 4, scale, sampler=samplers[row % 2]) for row, scale in enumerate(guidance_scales)]
    # Edit number n has done n steps.
    alone = [toy.alone(FakeUNet(), spec) for spec in specs]
    together, _ = Runner(FakeUNet()).run(
        [toy.edit("", spec) for spec in specs],
        [toy.inputs(spec) for spec in specs],
        [done[row] for row, done in enumerate(alone)],
        [steps_of(spec)[row] for row, spec in enumerate(specs)],
    )
    torch.testing.assert_close(together, torch.cat([done[row + 1] for row, done in enumerate(alone)]))


@pytest.mark.parametrize("guidance_scale", [1.0, 2.3, 7.5])
def test_the_call_of_a_lone_edit_is_the_pipeline_s_to_the_bit(guidance_scale: float) -> None:
    spec = Spec(num_inference_steps=1, guidance_scale=guidance_scale)
    own, theirs = FakeUNet(), FakeUNet()
    start, end = toy.alone(theirs, spec)
    after, _ = Runner(own).run([toy.edit("a", spec)], [toy.inputs(spec)], [start], steps_of(spec))
    for mine, other in zip(own.calls[0], theirs.calls[0], strict=True):
        assert torch.equal(mine, other)
    assert torch.equal(after, end)


def test_the_prediction_is_where_the_last_step_would_lead() -> None:
    specs = [Spec(0, 4, sampler=TRAILING), Spec(1, 4, 1.0, sampler=TRAILING)]
    edits, inputs = [toy.edit("", spec) for spec in specs], [toy.inputs(spec) for spec in specs]
    latents = [own.latents for own in inputs]
    _, x0 = Runner(FakeUNet()).run(edits, inputs, latents, [(499, 249), (749, 499)])
    end, _ = Runner(FakeUNet()).run(edits, inputs, latents, [(499, -1), (749, -1)])
    torch.testing.assert_close(x0, end)


@pytest.mark.parametrize(
    ("name", "tensor", "got"),
    [
        ("latents", torch.zeros(1, 4, *SIZES[1]), r"\[1, 4, 12, 16\]; must be torch.float32 \[1, 4, 16, 12\]"),
        ("mask", torch.zeros(2, 1, *SIZES[0]), r"\[2, 1, 16, 12\]; must be torch.float32 \[1, 1, 16, 12\]"),
        ("masked_image_latents", torch.zeros(1, 4, *SIZES[0]).half(), "torch.float16"),
        ("pose_map", torch.zeros(18, *SIZES[0]), r"\[18, 16, 12\]"),
        ("prompt_embeds", torch.zeros(1, 77, 8), r"\[1, 77, 8\]; must be torch.float32 \[1, 77, 16\]"),
        ("negative_prompt_embeds", torch.zeros(1, 76, 16), r"\[1, 76, 16\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(name: str, tensor: torch.Tensor, got: str) -> None:
    fitting = toy.inputs()
    fitting.check(SIZES[0], fitting.prompt_embeds.shape)
    with pytest.raises(FashionRAGError, match=f"^{name}: got .*{got}"):
        toy.inputs(**{name: tensor}).check(SIZES[0], fitting.prompt_embeds.shape)
