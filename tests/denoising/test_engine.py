import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fashion_rag.bundle import Bundle
from fashion_rag.denoising.engine import Engine, Event, Failed, Finished, Preview, Progress
from fashion_rag.denoising.runner import Edit, UNetCall
from fashion_rag.denoising.sampler import SamplerConfig
from fashion_rag.denoising.scheduler import Limits
from fashion_rag.errors import DeadlineExceeded, InvalidRequest, Overloaded
from fashion_rag.pipeline import Conditioning, Person, denoise
from tests.tiny import TEXT_WIDTH

SAMPLER = SamplerConfig(beta_schedule="scaled_linear")
TRAILING = SamplerConfig(timestep_spacing="trailing", prediction_type="v_prediction", rescale_betas_zero_snr=True)
SIZES = ((16, 12), (12, 16))


class Spec(NamedTuple):
    seed: int = 0
    num_inference_steps: int = 3
    guidance_scale: float = 7.5
    size: tuple[int, int] = SIZES[0]


DEFAULT = Spec()


def edit(edit_id: str, spec: Spec = DEFAULT, **changes: Any) -> Edit:
    generator = torch.Generator().manual_seed(spec.seed)
    channels = {"latents": 4, "mask": 1, "masked_image_latents": 4, "pose_map": 18}
    options: dict[str, Any] = {
        name: torch.randn(1, count, *spec.size, generator=generator) for name, count in channels.items()
    }
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        options[name] = torch.randn(1, 77, TEXT_WIDTH, generator=generator)
    options |= {"num_inference_steps": spec.num_inference_steps, "guidance_scale": spec.guidance_scale}
    return Edit(edit_id, **options | changes)


@torch.inference_mode()
def alone(unet: UNetCall, sampler: SamplerConfig, spec: Spec) -> Tensor:
    """What the pipeline makes of an edit."""
    one = edit("alone", spec)
    person = Person(one.mask, one.masked_image_latents, one.pose_map)
    conditioning = Conditioning(one.prompt_embeds, one.negative_prompt_embeds)
    steps, scale = spec.num_inference_steps, spec.guidance_scale
    *_, latents = denoise(unet, sampler, one.latents, person, conditioning, steps, scale)
    return latents


class FakeUNet:
    """A prediction that depends on all of a row's input. A call takes `call_s` on `clock`, and raises `error`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.call_s = 1.0
        self.error: Exception | None = None
        self.rows: list[int] = []

    def clock(self) -> float:
        return self.now

    def __call__(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
        self.now += self.call_s
        self.rows.append(len(sample))
        if self.error:
            raise self.error
        row = prompt_embeds.mean((1, 2)) + t / 1000
        return torch.sin(sample[:, :4] + sample.mean(1, keepdim=True) + row[:, None, None, None])


def engine_of(
    unet: FakeUNet, sampler: SamplerConfig = SAMPLER, preview: Preview | None = None, **limits: Any
) -> Engine:
    return Engine(unet, sampler, Limits(**limits), preview, unet.clock)


def run(engine: Engine) -> list[Event]:
    events: list[Event] = []
    while len(engine):
        events += engine.step()
    return events


def finished(events: list[Event]) -> dict[str, Tensor]:
    return {event.id: event.latents for event in events if isinstance(event, Finished)}


def failures(events: list[Event]) -> dict[str, Exception]:
    return {event.id: event.error for event in events if isinstance(event, Failed)}


@pytest.fixture(scope="module")
def pictures(tiny_bundle: Path) -> tuple[Bundle, UNetCall, Callable[[Tensor], Tensor], Callable[[Spec], Tensor]]:
    bundle = Bundle.open(tiny_bundle)
    unet, vae = bundle.load_unet(), bundle.load_vae()

    def decode(latents: Tensor) -> Tensor:
        return vae.decode(latents) / 2

    @functools.cache
    def decoded_alone(spec: Spec) -> Tensor:
        return decode(alone(unet, bundle.sampler, spec))

    return bundle, unet, decode, decoded_alone


specs = st.builds(
    Spec,
    st.integers(0, 2),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([0.0, 1.0, 2.5, 7.5]),
    st.sampled_from(SIZES),
)
# What comes before a step: edits that arrive, with their deadlines, and numbers of earlier ones that are cancelled.
turns = st.tuples(
    st.lists(st.tuples(specs, st.sampled_from([np.inf, 50.0, 90.0])), max_size=3),
    st.lists(st.integers(0, 9), max_size=1),
)


@settings(max_examples=10, deadline=None)
@given(turns=st.lists(turns, min_size=1, max_size=4), max_rows=st.integers(2, 7))
def test_a_picture_is_the_same_whatever_it_was_batched_with(pictures: Any, turns: Any, max_rows: int) -> None:
    bundle, unet, decode, decoded_alone = pictures
    engine = Engine(unet, bundle.sampler, Limits(max_rows, max_waiting=100), clock=lambda: 0.0)
    added: dict[str, Spec] = {}
    cancelled: set[str] = set()
    events: list[Event] = []
    for arriving, leaving in turns:
        for spec, deadline in arriving:
            added[str(len(added))] = spec
            engine.add(edit(str(len(added) - 1), spec, deadline=deadline))
        for edit_id in map(str, leaving):
            if edit_id in added and edit_id not in finished(events):
                engine.cancel(edit_id)
                cancelled.add(edit_id)
        happened = engine.step()
        assert not cancelled & {event.id for event in happened}
        events += happened
    events += run(engine)

    results = finished(events)
    assert results.keys() == added.keys() - cancelled
    assert len(events) == sum(isinstance(event, Progress) for event in events) + len(results)
    for edit_id, latents in results.items():
        torch.testing.assert_close(decode(latents), decoded_alone(added[edit_id]), rtol=0, atol=1 / 255)


@pytest.mark.parametrize("sampler", [SAMPLER, TRAILING])
@pytest.mark.parametrize("num_inference_steps", [1, 4, 7])
def test_a_whole_run_equals_the_pipeline_s(sampler: SamplerConfig, num_inference_steps: int) -> None:
    spec = Spec(num_inference_steps=num_inference_steps)
    engine = engine_of(FakeUNet(), sampler)
    engine.add(edit("a", spec))
    torch.testing.assert_close(finished(run(engine))["a"], alone(FakeUNet(), sampler, spec))


def test_edits_at_different_steps_share_calls_and_join_and_leave_between_them() -> None:
    unet = FakeUNet()
    engine = engine_of(unet)
    engine.add(edit("a", Spec(num_inference_steps=3)))
    engine.step()
    engine.add(edit("b", Spec(num_inference_steps=3, guidance_scale=1.0)))
    events = run(engine)
    assert unet.rows == [2, 3, 3, 1]
    assert [(event.id, event.step, event.num_steps) for event in events if isinstance(event, Progress)] == [
        ("a", 2, 3), ("b", 1, 3), ("a", 3, 3), ("b", 2, 3), ("b", 3, 3)
    ]  # fmt: skip
    assert [event.id for event in events if isinstance(event, Finished)] == ["a", "b"]


def test_sizes_take_turns_by_due_time_and_never_share_a_call() -> None:
    unet = FakeUNet()
    engine = engine_of(unet)
    engine.add(edit("a", Spec(num_inference_steps=2)))
    engine.add(edit("b", Spec(num_inference_steps=1, size=SIZES[1]), deadline=50.0))
    assert finished(engine.step()).keys() == {"b"}
    assert finished(run(engine)).keys() == {"a"}
    assert unet.rows == [2, 2, 2]


def test_a_cancelled_edit_s_rows_are_free_in_the_next_step() -> None:
    unet = FakeUNet()
    engine = engine_of(unet, max_rows=4)
    for edit_id in "abc":
        engine.add(edit(edit_id))
    assert {event.id for event in engine.step()} == {"a", "b"}
    engine.cancel("a")
    assert {event.id for event in engine.step()} == {"b", "c"}
    engine.cancel("nobody")
    assert finished(run(engine)).keys() == {"b", "c"}


def test_an_edit_that_turns_nan_fails_alone() -> None:
    engine = engine_of(FakeUNet())
    engine.add(edit("good"))
    engine.add(edit("bad", prompt_embeds=torch.full((1, 77, TEXT_WIDTH), torch.nan)))
    events = run(engine)
    assert {edit_id: str(error) for edit_id, error in failures(events).items()} == {
        "bad": "step 1 of 3: the latents are not finite"
    }
    torch.testing.assert_close(finished(events)["good"], alone(FakeUNet(), SAMPLER, DEFAULT))


def test_a_failing_call_fails_its_edits_and_the_others_go_on() -> None:
    unet = FakeUNet()
    engine = engine_of(unet, max_rows=4)
    for edit_id in "abc":
        engine.add(edit(edit_id))
    engine.step()
    unet.error = RuntimeError("out of memory")
    failed = failures(engine.step())
    assert {edit_id: str(error) for edit_id, error in failed.items()} == dict.fromkeys(
        "ab", "step 2 of 3: the UNet call failed: RuntimeError('out of memory')"
    )
    assert failed["a"].__cause__ is unet.error
    unet.error = None
    torch.testing.assert_close(finished(run(engine))["c"], alone(FakeUNet(), SAMPLER, DEFAULT))


def test_an_edit_that_cannot_meet_its_deadline_is_refused_before_it_runs_on() -> None:
    unet = FakeUNet()
    engine = engine_of(unet)
    engine.add(edit("in time", Spec(num_inference_steps=10), deadline=10.0))
    engine.add(edit("late", Spec(num_inference_steps=10), deadline=9.5))
    assert failures(engine.step()) == {}  # nothing is known yet of how long a step takes
    events = run(engine)
    (error,) = failures(events).values()
    assert isinstance(error, DeadlineExceeded)
    assert str(error) == "9 of 10 steps at 1 s each are left, and 8.5 s until the deadline"
    assert unet.rows == [4] + [2] * 9
    assert finished(events).keys() == {"in time"}


def test_one_slow_step_refuses_nobody() -> None:
    unet = FakeUNet()
    engine = engine_of(unet)
    engine.add(edit("warm up", Spec(num_inference_steps=3)))
    for unet.call_s in (1.0, 1000.0, 3.0):
        engine.step()
    assert engine.step_time_s == 3.0
    engine.add(edit("a", Spec(num_inference_steps=3), deadline=unet.now + 10))
    assert finished(run(engine)).keys() == {"a"}


def test_a_slow_spell_does_not_refuse_everything_after_it() -> None:
    unet = FakeUNet()
    engine = engine_of(unet)
    unet.call_s = 1000.0
    engine.add(edit("slow"))
    run(engine)
    unet.call_s = 1.0
    for edit_id in "ab":
        engine.add(edit(edit_id, deadline=unet.now + 10))
        events = run(engine)
    assert finished(events).keys() == {"b"}


def test_overload_and_what_cannot_run_are_refused_at_the_door() -> None:
    unet = FakeUNet()
    engine = engine_of(unet, max_rows=2, max_waiting=1)
    engine.add(edit("a", Spec(num_inference_steps=5)))
    unet.call_s = 2.0
    engine.step()
    engine.add(edit("b"))
    with pytest.raises(Overloaded) as refusal:
        engine.add(edit("c"))
    assert refusal.value.retry_after_s == 8.0
    engine.cancel("b")
    with pytest.raises(InvalidRequest, match="request_id"):
        engine.add(edit("a"))
    with pytest.raises(InvalidRequest, match="steps: got 1001"):
        engine.add(edit("c", Spec(num_inference_steps=1001)))
    assert finished(run(engine)).keys() == {"a"}


def test_previews_are_the_linear_map_of_each_edit_s_own_latents() -> None:
    matrix = torch.tensor([[0.3, 0.0, 0.0], [0.0, 0.3, 0.0], [0.0, 0.0, 0.3], [0.1, 0.1, 0.1]])
    engine = engine_of(FakeUNet(), preview=Preview(matrix, torch.tensor([0.0, 0.1, -0.1])))
    for edit_id, seed in (("a", 0), ("b", 1)):
        engine.add(edit(edit_id, Spec(seed, num_inference_steps=1)))
    events = engine.step()
    for event in events:
        if isinstance(event, Progress):
            latents = finished(events)[event.id][0].movedim(0, -1).numpy()
            colours = latents[..., :3] * 0.3 + latents[..., 3:] * 0.1 + np.array([0.0, 0.1, -0.1])
            assert event.preview is not None and event.preview.dtype == np.uint8
            np.testing.assert_allclose(event.preview, np.clip(colours * 127.5 + 127.5, 0, 255), atol=0.51)


def test_latents_leave_without_those_of_the_batch() -> None:
    engine = engine_of(FakeUNet())
    for edit_id in "abcd":
        engine.add(edit(edit_id))
    latents = finished(run(engine))["a"]
    assert len(pickle.dumps(latents)) < 2 * latents.nbytes


def test_an_idle_engine_does_nothing() -> None:
    unet = FakeUNet()
    assert engine_of(unet).step() == []
    assert unet.rows == []
