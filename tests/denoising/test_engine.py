import functools
import math
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fashion_rag.bundle import Bundle
from fashion_rag.denoising.call_queue import STALE_S
from fashion_rag.denoising.engine import Engine, Event, Failed, Finished, Preview, Progress
from fashion_rag.denoising.rows import Rows
from fashion_rag.denoising.runner import Inputs
from fashion_rag.denoising.scheduler import Limits, running_rows
from fashion_rag.errors import DeadlineExceeded, FashionRAGError, InvalidRequest, Overloaded
from fashion_rag.models.unet import DeepUNet
from fashion_rag.request import PLAIN, Shortcuts, Solver
from tests.denoising import toy
from tests.denoising.toy import DEFAULT, LEADING, SIZES, TRAILING, FakeUNet, Spec
from tests.tiny import TEXT_WIDTH


def engine_of(unet: FakeUNet, preview: Preview | None = None, **limits: Any) -> Engine:
    return Engine(unet, Limits(**limits), preview, unet.clock)


def add(engine: Engine, *edit_ids: str, spec: Spec = DEFAULT, **changes: Any) -> None:
    for edit_id in edit_ids:
        engine.add(toy.edit(edit_id, spec, **changes), toy.inputs(spec))


def run(engine: Engine) -> list[Event]:
    events: list[Event] = []
    while len(engine):
        events += engine.step()
    return events


def finished(events: Iterable[Event]) -> dict[str, Tensor]:
    return {event.id: event.latents for event in events if isinstance(event, Finished)}


def failures(events: Iterable[Event]) -> dict[str, FashionRAGError]:
    return {event.id: event.error for event in events if isinstance(event, Failed)}


def progress(events: Iterable[Event]) -> list[Progress]:
    return [event for event in events if isinstance(event, Progress)]


@pytest.fixture(scope="module")
def pictures(tiny_bundle: Path) -> tuple[DeepUNet, Callable[[Tensor], Tensor], Callable[[Spec], Tensor]]:
    """Return a UNet, its latents' pictures (0 to 1, not clamped), and the picture that the pipeline makes of
    an edit.
    """
    bundle = Bundle.open(tiny_bundle)
    unet, vae = bundle.load_unet(), bundle.load_vae()

    def decode(latents: Tensor) -> Tensor:
        return vae.decode(latents) / 2

    @functools.cache
    def decoded_alone(spec: Spec) -> Tensor:
        return decode(toy.alone(unet, spec)[-1])

    return unet, decode, decoded_alone


specs = st.builds(
    Spec,
    st.integers(0, 2),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([0.0, 1.0, 2.5, 7.5]),
    st.sampled_from(SIZES),
    st.sampled_from([LEADING, TRAILING]),
    st.sampled_from(
        [
            PLAIN,
            Shortcuts(Solver.UNIPC),
            Shortcuts(Solver.DPMPP_2M, 0.3, 0.8),
            Shortcuts(cache_interval=2),
            Shortcuts(Solver.DPMPP_2M, 0.0, 0.6, 3),
        ]
    ),
)
# One step: edits that arrive before it, with deadlines and with or without their inputs; numbers of edits whose inputs
# come while it runs; and numbers of edits that are cancelled before it, and while it runs.
numbers = st.lists(st.integers(0, 9), max_size=2)
turns = st.tuples(
    st.lists(st.tuples(specs, st.sampled_from([math.inf, 50.0, 90.0]), st.booleans()), max_size=3),
    numbers,
    numbers,
    numbers,
)


@settings(max_examples=15, deadline=None)
@given(turns=st.lists(turns, min_size=1, max_size=5), max_rows=st.integers(2, 7))
def test_a_picture_is_the_same_whatever_it_was_batched_with(pictures: Any, turns: Any, max_rows: int) -> None:
    unet, decode, decoded_alone = pictures
    engine = Engine(unet, Limits(max_rows, max_waiting=100), clock=lambda: 0.0)
    added: dict[str, Spec] = {}
    cancelled: set[str] = set()
    events: list[Event] = []

    def cancel(edit_ids: Iterable[int]) -> None:
        for edit_id in map(str, edit_ids):
            if edit_id in added and edit_id not in finished(events):
                cancelled.add(edit_id)
            engine.cancel(edit_id)

    def provide(edit_ids: Iterable[str]) -> None:
        for edit_id in edit_ids:
            engine.provide(edit_id, toy.inputs(added.get(edit_id, DEFAULT)))

    for arriving, provided, leaving, leaving_late in turns:
        for spec, deadline, at_once in arriving:
            edit_id = str(len(added))
            added[edit_id] = spec
            engine.add(toy.edit(edit_id, spec, deadline=deadline), toy.inputs(spec) if at_once else None)
        cancel(leaving)
        batch, happened = engine.schedule()
        assert not batch or running_rows(batch).total <= max_rows
        outcome = engine.run(batch)
        cancel(leaving_late)
        provide(map(str, provided))
        happened += engine.postprocess(batch, outcome) if batch else []
        assert not cancelled & {event.id for event in happened}
        events += happened
    provide(added)
    events += run(engine)

    results = finished(events)
    assert results.keys() == added.keys() - cancelled
    steps = Counter(event.id for event in progress(events))
    assert len(events) == steps.total() + len(results)
    assert all(steps[edit_id] == added[edit_id].num_inference_steps for edit_id in results)
    for edit_id, latents in results.items():
        # A hundredth of a level of the 255 that the picture will have.
        torch.testing.assert_close(decode(latents), decoded_alone(added[edit_id]), rtol=0, atol=0.01 / 255)


@settings(max_examples=60, deadline=None)
@given(
    arriving=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.0, 0.5, 1.0, 4.0]),
            st.integers(1, 6),
            st.sampled_from([1.0, 7.5]),
            st.sampled_from(SIZES),
            st.sampled_from([0.0, 2.0, 5.0, 20.0, math.inf]),
        ),
        max_size=20,
    ),
    max_rows=st.sampled_from([2, 3, 4, 8]),
    margin_s=st.sampled_from([0.0, 0.75]),
)
def test_under_overload_every_edit_let_in_is_done_before_its_deadline(
    arriving: Any, max_rows: int, margin_s: float
) -> None:
    unet = FakeUNet()
    unet.call_s = lambda num_rows: 0.25 + num_rows / 8
    engine = engine_of(unet, max_rows=max_rows, max_waiting=4, margin_s=margin_s)
    engine.warm_up(toy.inputs())
    now, queue = unet.now, []
    for number, (pause, steps, scale, size, slack) in enumerate(arriving):
        now += pause
        queue.append((now, str(number), Spec(0, steps, scale, size), now + steps * unet.call_s(2) + margin_s + slack))
    deadlines: dict[str, float] = {}
    ended: Counter[str] = Counter()
    while queue or len(engine):
        if not len(engine):
            unet.now = max(unet.now, queue[0][0])
        batch, events = engine.schedule()
        outcome = engine.run(batch) if batch else None
        end = unet.now
        while queue and queue[0][0] <= end:  # some arrive while the call runs
            unet.now, edit_id, spec, deadline = queue.pop(0)
            with suppress(Overloaded, DeadlineExceeded):
                add(engine, edit_id, spec=spec, deadline=deadline)
                deadlines[edit_id] = deadline
        unet.now = end
        events += engine.postprocess(batch, outcome) if outcome else []
        assert failures(events) == {}
        assert all(unet.now <= deadlines[edit_id] - margin_s for edit_id in finished(events))
        ended.update(finished(events).keys())
    assert ended == Counter(deadlines.keys())
    assert max(unet.rows) <= max_rows


@pytest.mark.parametrize("sampler", [LEADING, TRAILING])
@pytest.mark.parametrize("guidance_scale", [1.0, 2.3, 7.5])
@pytest.mark.parametrize("num_inference_steps", [1, 4, 7])
def test_a_lone_edit_equals_the_pipeline_s_to_the_bit(
    pictures: Any, sampler: Any, guidance_scale: float, num_inference_steps: int
) -> None:
    unet, _, _ = pictures
    spec = Spec(0, num_inference_steps, guidance_scale, sampler=sampler)
    engine = Engine(unet, Limits())
    add(engine, "a", spec=spec)
    assert torch.equal(finished(run(engine))["a"], toy.alone(unet, spec)[-1])


def test_edits_at_different_steps_share_calls_and_join_and_leave_between_them() -> None:
    unet = FakeUNet()
    engine = engine_of(unet)
    add(engine, "a")
    engine.step()
    add(engine, "b", spec=Spec(guidance_scale=1.0))
    events = run(engine)
    assert unet.rows == [2, 3, 3, 1]
    assert [(event.id, event.step, event.num_steps) for event in progress(events)] == [
        ("a", 2, 3), ("b", 1, 3), ("a", 3, 3), ("b", 2, 3), ("b", 3, 3)
    ]  # fmt: skip
    assert [event.id for event in events if isinstance(event, Finished)] == ["a", "b"]


def test_sizes_take_turns_by_due_time_and_never_share_a_call() -> None:
    unet = FakeUNet()
    engine = engine_of(unet)
    add(engine, "a", spec=Spec(num_inference_steps=2))
    add(engine, "b", spec=Spec(num_inference_steps=1, size=SIZES[1]), deadline=50.0)
    assert finished(engine.step()).keys() == {"b"}
    assert finished(run(engine)).keys() == {"a"}
    assert unet.rows == [2, 2, 2]


def test_an_edit_takes_rows_only_once_its_inputs_are_there() -> None:
    unet = FakeUNet()
    engine = engine_of(unet, max_rows=4)
    engine.add(toy.edit("a"))
    assert engine.step() == [] and engine.schedule() == ([], [])
    assert (len(engine), engine.num_rows, engine.num_waiting) == (1, 2, 0)
    add(engine, "b", "c")
    assert (len(engine), engine.num_rows, engine.num_waiting) == (3, 6, 1)
    assert {event.id for event in engine.step()} == {"b", "c"}
    engine.provide("a", toy.inputs())
    assert {event.id for event in engine.step()} == {"a", "b"}
    assert finished(run(engine)).keys() == {"a", "b", "c"}


def test_inputs_are_taken_once_and_those_of_an_edit_that_has_left_not_at_all() -> None:
    engine = engine_of(FakeUNet())
    add(engine, "a")
    engine.provide("a", toy.inputs(Spec(seed=1)))
    engine.provide("nobody", toy.inputs())
    assert len(engine) == 1
    assert torch.equal(finished(run(engine))["a"], toy.alone(FakeUNet())[-1])


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (toy.inputs(Spec(size=SIZES[1])), r"latents: got torch.float32 \[1, 4, 12, 16\]"),
        (toy.inputs(text_width=8), r"prompt_embeds: got torch.float32 \[1, 77, 8\]"),
        (toy.inputs(negative_prompt_embeds=torch.zeros(1, 77, 8)), r"negative_prompt_embeds: .* \[1, 77, 8\]"),
    ],
)
def test_inputs_that_do_not_fit_fail_alone(inputs: Inputs, message: str, late: bool) -> None:
    engine = engine_of(FakeUNet())
    add(engine, "good")
    if late:
        engine.add(toy.edit("bad"))
    with pytest.raises(FashionRAGError, match=message):
        engine.provide("bad", inputs) if late else engine.add(toy.edit("bad"), inputs)
    assert len(engine) == 1
    assert torch.equal(finished(run(engine))["good"], toy.alone(FakeUNet())[-1])


def test_warming_up_tells_the_pace_and_the_text_s_width_and_takes_no_edit() -> None:
    unet = FakeUNet()
    unet.call_s = float
    engine = engine_of(unet, max_rows=6)
    engine.warm_up(toy.inputs())
    assert sorted(set(unet.rows)) == [1, 2, 4, 6]
    assert [engine.pace.step_time_s(Rows(num_rows)) for num_rows in (1, 2, 4, 6, 12)] == [1, 2, 4, 6, 12]
    assert len(engine) == 0
    with pytest.raises(FashionRAGError, match="prompt_embeds"):
        engine.add(toy.edit("a"), toy.inputs(text_width=8))


def test_an_edit_alone_takes_the_time_of_its_calls() -> None:
    engine = engine_of(FakeUNet())
    engine.pace.record(Rows(2), 3.0)
    engine.pace.record(Rows(8), 4.0)
    edit = toy.edit("alone")
    assert engine.alone_s(edit) == edit.num_inference_steps * 3.0


def test_compiling_is_no_part_of_the_pace() -> None:
    unet = FakeUNet()
    seen: set[int] = set()

    def call_s(num_rows: int) -> float:
        first = num_rows not in seen
        seen.add(num_rows)
        return 1000.0 if first else 1.0

    unet.call_s = call_s
    engine = engine_of(unet, max_rows=2)
    engine.warm_up(toy.inputs())
    assert engine.pace.step_time_s(Rows(1)) == engine.pace.step_time_s(Rows(2)) == 1


def test_a_unet_that_fails_to_warm_up_says_so() -> None:
    unet = FakeUNet()
    unet.error = RuntimeError("no kernel")
    with pytest.raises(RuntimeError, match="no kernel"):
        engine_of(unet).warm_up(toy.inputs())


def test_a_cancelled_edit_s_rows_are_free_in_the_next_step() -> None:
    engine = engine_of(FakeUNet(), max_rows=4)
    add(engine, "a", "b", "c")
    assert {event.id for event in engine.step()} == {"a", "b"}
    engine.cancel("a")
    assert {event.id for event in engine.step()} == {"b", "c"}
    engine.cancel("nobody")
    assert finished(run(engine)).keys() == {"b", "c"}


def test_edits_come_and_go_while_a_call_runs() -> None:
    unet = FakeUNet()
    entered, go_on = threading.Event(), threading.Event()

    def waiting(sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
        entered.set()
        assert go_on.wait(timeout=60)
        return unet(sample, t, prompt_embeds)

    engine = Engine(waiting, Limits(), clock=unet.clock)
    add(engine, "stays", "goes", "comes back")
    engine.add(toy.edit("late"))
    batch, _ = engine.schedule()
    outcomes: list[Any] = []
    thread = threading.Thread(target=lambda: outcomes.append(engine.run(batch)))
    thread.start()
    assert entered.wait(timeout=60)
    engine.cancel("goes")
    engine.cancel("comes back")
    other = Spec(seed=1)
    add(engine, "comes back", spec=other)
    engine.provide("late", toy.inputs())
    assert (len(engine), engine.num_rows) == (3, 6)
    go_on.set()
    thread.join()
    events = engine.postprocess(batch, outcomes[0])
    assert [(event.id, event.step) for event in progress(events)] == [("stays", 1)] and len(events) == 1
    results = finished(run(engine))
    assert results.keys() == {"stays", "late", "comes back"}
    torch.testing.assert_close(results["stays"], toy.alone(FakeUNet())[-1])
    torch.testing.assert_close(results["comes back"], toy.alone(FakeUNet(), other)[-1])


def test_an_edit_that_turns_nan_fails_alone() -> None:
    engine = engine_of(FakeUNet())
    add(engine, "good")
    engine.add(toy.edit("bad"), toy.inputs(prompt_embeds=torch.full((1, 77, TEXT_WIDTH), torch.nan)))
    events = run(engine)
    assert {edit_id: str(error) for edit_id, error in failures(events).items()} == {
        "bad": "step 1 of 3: the latents are not finite"
    }
    torch.testing.assert_close(finished(events)["good"], toy.alone(FakeUNet())[-1])


def test_a_failing_call_fails_its_edits_and_the_others_go_on() -> None:
    unet = FakeUNet()
    engine = engine_of(unet, max_rows=4)
    add(engine, "a", "b", "c")
    engine.step()
    unet.error = RuntimeError("out of memory")
    failed = failures(engine.step())
    assert {edit_id: str(error) for edit_id, error in failed.items()} == dict.fromkeys(
        "ab", "step 2 of 3: the UNet call failed: RuntimeError('out of memory')"
    )
    assert failed["a"].__cause__ is unet.error
    unet.error = None
    torch.testing.assert_close(finished(run(engine))["c"], toy.alone(FakeUNet())[-1])


def test_calls_that_fail_are_counted_until_one_works() -> None:
    unet = FakeUNet()
    engine = engine_of(unet, max_rows=2)
    unet.error = RuntimeError("out of memory")
    for count in (1, 2):
        add(engine, "a")
        run(engine)
        assert engine.num_failed_calls == count
    unet.error = None
    add(engine, "a")
    engine.step()
    assert engine.num_failed_calls == 0


def test_an_edit_that_cannot_meet_its_deadline_is_refused_before_it_runs_on() -> None:
    unet = FakeUNet()
    engine = engine_of(unet)
    add(engine, "in time", spec=Spec(num_inference_steps=10), deadline=10.0)
    add(engine, "late", spec=Spec(num_inference_steps=10), deadline=9.5)
    assert failures(engine.step()) == {}  # nothing is known yet of how long a step takes
    events = run(engine)
    (error,) = failures(events).values()
    assert isinstance(error, DeadlineExceeded)
    assert str(error) == "9 of 10 steps are left, which take 9 s, and there are 8.5 s for them before the deadline"
    assert unet.rows == [4] + [2] * 9
    assert finished(events).keys() == {"in time"}


def test_an_edit_that_waits_too_long_for_its_inputs_is_refused() -> None:
    unet = FakeUNet()
    engine = engine_of(unet)
    engine.add(toy.edit("a", deadline=5.0))
    unet.now = 5.5
    assert isinstance(failures(engine.step())["a"], DeadlineExceeded)
    engine.provide("a", toy.inputs())
    assert len(engine) == 0


def test_the_call_that_is_running_is_part_of_what_an_edit_waits_for() -> None:
    unet = FakeUNet()
    unet.call_s = 4.0
    engine = engine_of(unet, max_rows=2)
    engine.warm_up(toy.inputs())
    start = unet.now
    add(engine, "a", spec=Spec(num_inference_steps=1))
    batch, _ = engine.schedule()
    unet.now = start + 1  # the call ends in 3 s
    with pytest.raises(DeadlineExceeded):
        add(engine, "b", spec=Spec(num_inference_steps=1), deadline=start + 7.5)
    assert engine.pace.step_time_s(Rows(2)) == 4.0  # there is a call to correct it, so it is kept
    add(engine, "b", spec=Spec(num_inference_steps=1), deadline=start + 8)
    unet.now = start
    assert finished(engine.postprocess(batch, engine.run(batch))).keys() == {"a"}
    add(engine, "c", spec=Spec(num_inference_steps=1), deadline=start + 12)
    assert finished(run(engine)).keys() == {"b", "c"}


def test_one_slow_step_refuses_nobody() -> None:
    unet = FakeUNet()
    engine = engine_of(unet)
    add(engine, "warm up", spec=Spec(num_inference_steps=20))
    for number in range(20):
        unet.call_s = 1000.0 if number == 10 else 1.0
        engine.step()
    assert engine.pace.step_time_s(Rows(2)) == (19 + 4) / 20
    add(engine, "a", deadline=unet.now + 4)
    unet.call_s = 1.0
    assert finished(run(engine)).keys() == {"a"}


def test_a_slow_spell_does_not_refuse_everything_after_it() -> None:
    unet = FakeUNet()
    engine = engine_of(unet, max_rows=2)
    engine.warm_up(toy.inputs())
    unet.call_s = 1000.0
    # Let in while the pace is that of the warm-up.
    add(engine, "slow", deadline=unet.now + 10)
    assert isinstance(failures(run(engine))["slow"], DeadlineExceeded)
    unet.call_s = 1.0
    with pytest.raises(DeadlineExceeded):
        add(engine, "a", deadline=unet.now + 4)
    unet.now += STALE_S
    add(engine, "b", deadline=unet.now + 4)
    assert finished(run(engine)).keys() == {"b"}


def test_overload_and_what_cannot_run_are_refused_at_the_door() -> None:
    unet = FakeUNet()
    engine = engine_of(unet, max_rows=2, max_waiting=1)
    add(engine, "a", spec=Spec(num_inference_steps=5))
    unet.call_s = 2.0
    engine.step()
    add(engine, "b")
    with pytest.raises(Overloaded) as refusal:
        add(engine, "c")
    assert refusal.value.retry_after_s == 8.0
    engine.cancel("b")
    add(engine, "c", spec=Spec(num_inference_steps=1), deadline=unet.now + 2)
    with pytest.raises(Overloaded) as refusal:
        add(engine, "d", spec=Spec(num_inference_steps=1), deadline=unet.now + 2)
    assert refusal.value.retry_after_s == 2.0
    engine.cancel("c")
    with pytest.raises(InvalidRequest, match="request_id"):
        add(engine, "a")
    with pytest.raises(InvalidRequest, match="steps: got 1001"):
        add(engine, "c", spec=Spec(num_inference_steps=1001))
    assert finished(run(engine)).keys() == {"a"}


def test_limits_may_change_between_steps() -> None:
    unet = FakeUNet()
    engine = engine_of(unet, max_rows=2)
    add(engine, "a", "b")
    engine.step()
    engine.limits = Limits(max_rows=4)
    engine.step()
    assert unet.rows == [2, 4] and engine.limits.max_rows == 4


def test_previews_are_the_linear_map_of_what_each_edit_is_heading_for_where_one_is_wanted() -> None:
    matrix = torch.tensor([[0.3, 0.0, 0.0], [0.0, 0.3, 0.0], [0.0, 0.0, 0.3], [0.1, 0.1, 0.1]])
    engine = engine_of(FakeUNet(), preview=Preview(matrix, torch.tensor([0.0, 0.1, -0.1])))
    # The last step of this sampler ends at what it was heading for, so those previews are of the finished latents.
    for edit_id, seed, steps in (("a", 0, {1, 2}), ("b", 1, {2}), ("c", 2, set())):
        add(engine, edit_id, spec=Spec(seed, 2, sampler=TRAILING), preview_steps=frozenset(steps))
    events = run(engine)
    shown = {(event.id, event.step): event.preview for event in progress(events)}
    assert [key for key, preview in shown.items() if preview is not None] == [("a", 1), ("a", 2), ("b", 2)]
    for edit_id in "ab":
        latents, preview = finished(events)[edit_id][0].movedim(0, -1).numpy(), shown[edit_id, 2]
        colours = latents[..., :3] * 0.3 + latents[..., 3:] * 0.1 + np.array([0.0, 0.1, -0.1])
        assert preview is not None and preview.dtype == np.uint8
        np.testing.assert_allclose(preview, np.clip(colours * 127.5 + 127.5, 0, 255), atol=0.51)
    noisy = toy.alone(FakeUNet(), Spec(0, 2, sampler=TRAILING))[1]
    assert engine.preview is not None
    assert not np.array_equal(shown["a", 1], engine.preview(noisy)[0])


def test_a_preview_that_cannot_be_made_is_none() -> None:
    engine = engine_of(FakeUNet())
    add(engine, "a", preview_steps=frozenset({1}))
    assert [event.preview for event in progress(run(engine))] == [None] * 3


def test_latents_leave_without_those_of_the_batch() -> None:
    engine = engine_of(FakeUNet())
    add(engine, *"abcd")
    latents = finished(run(engine))["a"]
    assert len(pickle.dumps(latents)) < 2 * latents.nbytes


def test_an_idle_engine_does_nothing() -> None:
    unet = FakeUNet()
    assert engine_of(unet).step() == []
    assert unet.rows == []


def test_warming_up_tells_the_pace_of_both_ways_to_call_the_unet() -> None:
    unet = FakeUNet()
    engine = engine_of(unet, max_rows=4)
    engine.warm_up(toy.inputs())
    assert set(unet.rows) == set(unet.shallow_rows) == {1, 2, 4}
    # Only the deep calls take time on this clock.
    assert engine.pace.step_time_s(Rows(4)) == 1.0 and engine.pace.step_time_s(Rows(0, 4)) == 0.0


def test_what_an_edit_costs_is_told_by_its_plan() -> None:
    unet = FakeUNet()
    unet.call_s = lambda num_rows: float(num_rows)
    engine = engine_of(unet, max_rows=4)
    engine.warm_up(toy.inputs())
    spec = Spec(num_inference_steps=10)
    assert engine.work_s(toy.edit("plain", spec)) == 20.0
    assert engine.work_s(toy.edit("half", spec, shortcuts=Shortcuts(guidance_end=0.5))) == 15.0
    assert engine.work_s(toy.edit("cached", spec, shortcuts=Shortcuts(cache_interval=5))) == 4.0
