import pytest
import torch

from fashion_rag.denoising.noise_schedule import NoiseSchedule
from fashion_rag.denoising.plan import History, Step, plan
from fashion_rag.denoising.runner import Inputs, Position, Runner, StepRow
from fashion_rag.errors import FashionRAGError
from fashion_rag.request import Shortcuts, Solver
from tests.denoising import toy
from tests.denoising.toy import LEADING, SIZES, TRAILING, FakeUNet, Spec


def constant(value: float) -> Inputs:
    maps = [torch.full((1, count, 2, 2), value + place / 10) for place, count in enumerate((4, 1, 4, 18))]
    prompts = [torch.full((1, 77, 8), value + place) for place in (0.5, 0.6)]
    return Inputs(*maps, *prompts)


def steps_of(spec: Spec) -> tuple[Step, ...]:
    return plan(spec.sampler, spec.num_inference_steps, spec.guidance_scale, spec.shortcuts)


def test_guided_edits_have_an_unconditional_row_before_the_conditional_row_of_each() -> None:
    unet = FakeUNet()
    edits = [
        toy.edit(edit_id, guidance_scale=scale, size=(2, 2)) for edit_id, scale in (("a", 2.0), ("b", 1.0), ("c", 5.0))
    ]
    positions = [Position(torch.full((1, 4, 2, 2), value)) for value in (7.0, 8.0, 9.0)]
    inputs = [constant(value) for value in (1, 2, 3)]
    # Of four steps at 750, 500, 250 and 0.
    steps = [steps_of(Spec(0, 4, edit.guidance_scale))[number] for edit, number in zip(edits, (0, 3, 2), strict=True)]
    results = Runner(unet).run([StepRow(*row) for row in zip(edits, inputs, positions, steps, strict=True)])
    ((sample, t, prompt_embeds),) = unet.calls
    assert t.tolist() == [750, 250, 750, 0, 250]
    torch.testing.assert_close(prompt_embeds[:, 0, 0], torch.tensor([1.6, 3.6, 1.5, 2.5, 3.5]))
    expected = [
        [latent] * 4 + [value + 0.1] + [value + 0.2] * 4 + [pose] * 18
        for latent, value, pose in [(7, 1, 0), (9, 3, 0), (7, 1, 1.3), (8, 2, 2.3), (9, 3, 3.3)]
    ]
    torch.testing.assert_close(sample[..., 0, 0], torch.tensor(expected))
    assert [result.x0.shape for result in results] == [(1, 4, 2, 2)] * 3
    assert [result.position.latents.shape for result in results] == [(1, 4, 2, 2)] * 3


@pytest.mark.parametrize("guidance_scales", [(7.5, 1.0, 3.0, 0.0), (0.5, 1.0), (7.5, 2.0), (30.0,)])
@pytest.mark.parametrize("samplers", [(LEADING, LEADING), (LEADING, TRAILING), (TRAILING, LEADING)])
def test_a_shared_step_is_the_pipeline_s_step_of_each_edit(
    guidance_scales: tuple[float, ...], samplers: tuple[NoiseSchedule, NoiseSchedule]
) -> None:
    specs = [Spec(row, 4, scale, sampler=samplers[row % 2]) for row, scale in enumerate(guidance_scales)]
    # Edit number n has done n steps.
    alone = [toy.alone(FakeUNet(), spec) for spec in specs]
    rows = [
        StepRow(toy.edit("", spec), toy.inputs(spec), Position(alone[number][number]), steps_of(spec)[number])
        for number, spec in enumerate(specs)
    ]
    for number, result in enumerate(Runner(FakeUNet()).run(rows)):
        torch.testing.assert_close(result.position.latents, alone[number][number + 1])


@pytest.mark.parametrize("guidance_scale", [1.0, 2.3, 7.5])
def test_the_call_of_a_lone_edit_is_the_pipeline_s_to_the_bit(guidance_scale: float) -> None:
    spec = Spec(num_inference_steps=1, guidance_scale=guidance_scale)
    own, theirs = FakeUNet(), FakeUNet()
    start, end = toy.alone(theirs, spec)
    (step,) = steps_of(spec)
    (result,) = Runner(own).run([StepRow(toy.edit("a", spec), toy.inputs(spec), Position(start), step)])
    for mine, pipelines in zip(own.calls[0], theirs.calls[0], strict=True):
        assert torch.equal(mine, pipelines)
    assert torch.equal(result.position.latents, end)


def test_the_prediction_is_where_the_last_step_leads() -> None:
    specs = [Spec(0, 4, sampler=TRAILING), Spec(1, 4, 1.0, sampler=TRAILING)]
    rows = [
        StepRow(toy.edit("", spec), toy.inputs(spec), Position(toy.inputs(spec).latents), steps_of(spec)[-1])
        for spec in specs
    ]
    for result in Runner(FakeUNet()).run(rows):
        torch.testing.assert_close(result.x0, result.position.latents)


MANY = [
    Shortcuts(),
    Shortcuts(Solver.DPMPP_2M),
    Shortcuts(Solver.UNIPC),
    Shortcuts(guidance_start=0.2, guidance_end=0.7),
    Shortcuts(cache_interval=3),
    Shortcuts(Solver.UNIPC, 0.5, 1.0, cache_interval=2),
    Shortcuts(Solver.DPMPP_2M, 0.0, 0.4, cache_interval=4),
]


def test_edits_of_all_shortcuts_share_steps_and_come_out_as_alone() -> None:
    specs = [Spec(row, 9, 5.0, sampler=(LEADING, TRAILING)[row % 2], shortcuts=one) for row, one in enumerate(MANY)]
    alone = [toy.alone(FakeUNet(), spec) for spec in specs]
    edits, inputs = [toy.edit("", spec) for spec in specs], [toy.inputs(spec) for spec in specs]
    plans = [steps_of(spec) for spec in specs]
    unet = FakeUNet()
    at = [Position.first(own.latents, spec.shortcuts.solver) for own, spec in zip(inputs, specs, strict=True)]
    # Edit number n begins n steps later, so that they stand at different steps.
    for turn in range(9 + len(specs)):
        here = [row for row in range(len(specs)) if 0 <= turn - row < 9]
        if here:
            rows = [StepRow(edits[row], inputs[row], at[row], plans[row][turn - row]) for row in here]
            for row, result in zip(here, Runner(unet).run(rows), strict=True):
                at[row] = result.position.alone()
                expected = alone[row][turn - row + 1]
                torch.testing.assert_close(result.position.latents, expected, rtol=1e-5, atol=1e-5)
    assert sum(unet.rows) == sum(step.rows.deep for one in plans for step in one)
    assert sum(unet.shallow_rows) == sum(step.rows.shallow for one in plans for step in one) > 0


def test_features_are_kept_only_as_long_as_they_are_needed() -> None:
    spec = Spec(0, 4, 5.0, shortcuts=Shortcuts(cache_interval=3))
    position, kept = Position(toy.inputs(spec).latents), []
    for step in steps_of(spec):
        (result,) = Runner(FakeUNet()).run([StepRow(toy.edit("", spec), toy.inputs(spec), position, step)])
        position = result.position
        kept.append(position.features is not None)
    assert kept == [True, True, False, False]


def test_a_copy_of_a_position_shares_no_memory() -> None:
    batch = torch.zeros(3, 4, 2, 2)
    copy = Position(batch[:1], History(batch[1:2], batch[2:], batch[:1]), batch[:2]).alone()
    assert copy.history is not None and copy.features is not None
    for tensor in (copy.latents, *copy.history, copy.features):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


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
