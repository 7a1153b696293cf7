"""Tests the simulation against queueing theory, the real engine, and sums done by hand."""

import math
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.batching.open_loop import NEVER_FULL, SimulatedEngine, arrivals, serve
from benchmarks.batching.run import anyone
from benchmarks.plan.files import STAGES
from benchmarks.plan.parts import Batches, Clock, Processor, Spread
from benchmarks.plan.scaling import Scaler, Scaling
from benchmarks.plan.simulation import SimulationResult, System, simulate
from benchmarks.plan.traffic import DAY_S, NIGHT, Arrival, TrafficMix, day_rate, poisson, varying
from fashion_rag.denoising.runner import Inputs
from fashion_rag.denoising.scheduler import Limits

NOTHING = dict.fromkeys(STAGES, Spread(0.0, 0.0))
STEP_S = {1: 0.02, 2: 0.02, 4: 0.03, 8: 0.05}
STAGES_S = {name: Spread(0.01, 0.02) for name in STAGES}
SERVER = System(STEP_S, STAGES_S, Limits(8, 16, margin_s=0.5))
# A call takes one edit, nobody is refused, and only the UNet takes time.
QUEUE = System({2: 0.25}, NOTHING, Limits(2, NEVER_FULL), max_edits=NEVER_FULL, deadline_s=math.inf)


def latencies(result: SimulationResult) -> list[float]:
    return [edit.latency_s for edit in result.edits if edit.latency_s is not None]


def p95(result: SimulationResult) -> float:
    return float(np.percentile(latencies(result), 95))


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_one_row_in_a_call_of_fixed_time_is_the_queue_of_the_textbook(load: float) -> None:
    result = simulate(QUEUE, poisson(TrafficMix((4,)), load, 15_000, seed=0), 1, seed=0)
    # This is M/D/1, with a service time of 4 * 0.25 s.
    assert np.mean(latencies(result)) == pytest.approx(1 + load / (2 * (1 - load)), rel=0.05)


def test_edits_on_one_core_share_it_as_in_the_textbook() -> None:
    stages = NOTHING | {"hops": Spread(1.0, 1.0)}
    system = replace(QUEUE, step_time_s={2: 1e-6}, stages_s=stages, cores=1.0)
    result = simulate(system, poisson(TrafficMix((1,)), 0.6, 10_000, seed=0), 1, seed=0)
    # This is processor sharing, where the mean depends on the mean of the work alone.
    assert np.mean(latencies(result)) == pytest.approx(1 / (1 - 0.6), rel=0.06)


def test_steps_are_shared_as_the_real_engine_shares_them() -> None:
    limits, step_s = Limits(8, NEVER_FULL), {2: 0.02, 4: 0.03, 6: 0.04, 8: 0.05}
    coming = arrivals((1, 2, 5), 300, 18.0, seed=0)
    engine = SimulatedEngine(limits, step_s)
    times = serve(engine, engine.sleep, coming, anyone, Inputs.blank((2, 2), 4))
    system = replace(QUEUE, step_time_s=step_s, limits=limits)
    for cores in (None, 1.0):
        result = simulate(
            replace(system, cores=cores), [Arrival(arrival.at_s, arrival.num_steps, 7.5) for arrival in coming], 1, 0
        )
        assert latencies(result) == pytest.approx([edit_times.done_s for edit_times in times])
        assert max(result.calls) == 8


def test_an_edit_alone_takes_the_longer_of_the_branches_and_all_the_rest() -> None:
    # The prompt's turn on the GPU comes after the person's.
    seconds = {"parse": 1, "retrieve": 6, "condition": 4, "encode": 5, "decode": 8, "reply": 16, "hops": 32}
    system = replace(SERVER, stages_s={name: Spread(number, number) for name, number in seconds.items()})
    (edit,) = simulate(system, [Arrival(3.0, 10, 7.5)], 1, 0).edits
    assert edit.latency_s == pytest.approx(1 + (6 + 4) + 10 * 0.02 + 8 + 16 + 32)
    # On one core the branches take turns.
    (edit,) = simulate(replace(system, cores=1.0), [Arrival(3.0, 10, 7.5)], 1, 0).edits
    assert edit.latency_s == pytest.approx(1 + (6 + 4 + 5) + 10 * 0.02 + 8 + 16 + 32)


def test_calls_beyond_the_cores_slow_each_other() -> None:
    clock, ended = Clock(), list[float]()
    processor = Processor(clock, 2)
    for _ in range(3):
        processor.run(1.0, lambda: ended.append(clock.now))
    # Until 0.75 all three are half done; then four share two cores.
    clock.after(0.75, lambda: processor.run(0.25, lambda: ended.append(clock.now)))
    while clock.next(math.inf):
        pass
    # Half of the three is left. The fourth has done its quarter at 1.25; then the three need 0.25 each at 2/3.
    assert ended == pytest.approx([1.25, 1.625, 1.625, 1.625])


def test_calls_beside_each_other_take_longer_even_where_each_has_a_core() -> None:
    clock, ended = Clock(), list[float]()
    processor = Processor(clock, 2, contention=1.25)
    for work_s in (1.0, 2.0):
        processor.run(work_s, lambda: ended.append(clock.now))
    while clock.next(math.inf):
        pass
    # After 1.25 s the first is done; the other has done as much, and does its second half alone.
    assert ended == pytest.approx([1.25, 2.25])


def test_a_model_takes_together_those_that_waited() -> None:
    clock, ended = Clock(), list[float]()
    batches = Batches(Processor(clock, 1), 2, random.Random(0))
    for _ in range(4):
        batches.ask(Spread(1.0, 1.0), lambda: ended.append(clock.now))
    while clock.next(math.inf):
        pass
    assert ended == pytest.approx([1.0, 3.0, 3.0, 4.0])


def test_a_spread_has_its_median_and_its_p95() -> None:
    drawn = [Spread(1.0, 3.0).draw(rng) for rng in [random.Random(0)] for _ in range(20_000)]
    assert np.percentile(drawn, [50, 95]).tolist() == pytest.approx([1.0, 3.0], rel=0.05)
    with pytest.raises(ValueError, match=r"median, p95: got 2.0, 1.0"):
        Spread(2.0, 1.0)


def test_a_spread_around_a_mean_has_that_mean() -> None:
    drawn = [Spread.around(2.0, 1.5).draw(rng) for rng in [random.Random(0)] for _ in range(20_000)]
    assert np.mean(drawn) == pytest.approx(2.0, rel=0.02)
    assert np.percentile(drawn, 95) / np.median(drawn) == pytest.approx(1.5, rel=0.03)
    assert Spread.around(2.0, 1.0) == Spread(2.0, 2.0)


def test_calls_between_known_rows_lie_on_a_line_and_beyond_them_in_proportion() -> None:
    call_s = replace(SERVER, limits=Limits(16)).call_s()
    assert [call_s[num_rows] for num_rows in (1, 3, 8, 16)] == pytest.approx([0.02, 0.025, 0.05, 0.1])


def test_every_edit_is_done_refused_or_still_there() -> None:
    coming = poisson(TrafficMix(guided=0.7), 12.0, 600, seed=1)
    for until_s in (20.0, math.inf):
        result = simulate(replace(SERVER, deadline_s=4.0), coming, 2, 0, until_s=until_s)
        done, refused = len(latencies(result)), sum(edit.refused or edit.late for edit in result.edits)
        left = sum(edit.latency_s is None and not edit.refused and not edit.late for edit in result.edits)
        assert done + refused + left == len(result.edits)
        assert done and refused and (left > 0) == (until_s == 20.0)
    assert [edit.arrival for edit in result.edits] == coming
    assert max(latencies(result)) <= 4.0


def test_too_many_are_refused_by_the_door_and_by_the_denoiser() -> None:
    together = [Arrival(0.0, 50, 7.5)] * 30
    for system, num_refused in (
        (SERVER, 10),  # 4 run and 16 wait, and the ingress takes 24
        (replace(SERVER, max_edits=10), 20),
        (replace(SERVER, max_edits=100, limits=Limits(8, 4)), 22),
        (replace(SERVER, deadline_s=1.4), 30),  # 50 steps take 1 s alone; the margin and the stages before take 0.5 s
    ):
        refused = sum(edit.refused for edit in simulate(system, together, 1, 0).edits)
        assert refused == num_refused


def test_an_edit_that_is_late_after_denoising_is_not_done() -> None:
    slow = replace(SERVER, stages_s=STAGES_S | {"decode": Spread(2.0, 2.0)})
    for deadline_s, late in ((1.5, True), (3.0, False)):
        (edit,) = simulate(replace(slow, deadline_s=deadline_s), [Arrival(0.0, 10, 7.5)], 1, 0).edits
        assert edit.late == late == (edit.latency_s is None) and not edit.refused


def test_the_same_seed_gives_the_same_result() -> None:
    coming = poisson(TrafficMix(), 3.0, 200, seed=0)
    first, again, reseeded = (latencies(simulate(SERVER, coming, 3, seed)) for seed in (0, 0, 1))
    assert first == again != reseeded


def test_more_replicas_are_never_worse() -> None:
    coming = poisson(TrafficMix(), 6.0, 800, seed=0)
    results = [simulate(SERVER, coming, num, 0) for num in (1, 2, 3, 6, 12)]
    refused = [sum(edit.refused for edit in result.edits) for result in results]
    assert refused == sorted(refused, reverse=True) and refused[0] > 0
    waits = [p95(result) for result, num in zip(results, refused, strict=True) if not num]
    assert len(waits) >= 3 and waits == sorted(waits, reverse=True)


def test_looking_at_two_queues_is_better_than_at_none() -> None:
    coming = poisson(TrafficMix(), 20.0, 1500, seed=0)
    assert p95(simulate(SERVER, coming, 8, 0)) < 0.9 * p95(simulate(replace(SERVER, choices=1), coming, 8, 0))


def test_arrivals_have_their_rate_and_their_mix() -> None:
    coming = poisson(TrafficMix((10, 30), 0.25), 2.0, 20_000, seed=0)
    assert len(coming) / coming[-1].at_s == pytest.approx(2.0, rel=0.03)
    shares = Counter((arrival.num_steps, arrival.num_rows) for arrival in coming)
    assert shares[10, 2] / len(coming) == pytest.approx(0.125, abs=0.01) and set(shares) == {
        (steps, rows) for steps in (10, 30) for rows in (1, 2)
    }
    assert TrafficMix((10, 30), 0.25).row_steps == 25


def test_a_day_has_its_busiest_hour_in_the_evening() -> None:
    coming = list(varying(TrafficMix(), lambda at_s: day_rate(0.2, at_s), 0.2, DAY_S, seed=0))
    hours = Counter(int(arrival.at_s // 3600) for arrival in coming)
    busy, quiet = hours[19] + hours[20], hours[7] + hours[8]
    assert busy / 7200 == pytest.approx(0.2, rel=0.1) and quiet / 7200 == pytest.approx(0.2 * NIGHT, rel=0.2)


def scaler(**changes: float) -> Scaler:
    return Scaler(replace(Scaling(target_load=0.5, upscale_delay_s=10, downscale_delay_s=30, start_s=5), **changes), 4)


def test_the_count_is_that_of_the_rule_after_its_delay() -> None:
    rule = scaler()
    wanted = [rule.target(float(now), {0: 0.6, 1: 0.5}, 2, 2) for now in range(12)]
    assert wanted == [2] * 10 + [3, 2]
    # A replica that has not reported may be full; and there are bounds.
    assert scaler(downscale_delay_s=0.0).target(0.0, {0: 0.1}, 2, 2) == 2
    assert scaler(downscale_delay_s=0.0).target(0.0, {0: 0.0, 1: 0.0}, 2, 2) == 1
    assert scaler(upscale_delay_s=0.0).target(0.0, {0: 50.0}, 1, 1) == 4


# A call of 32 rows does 32 row-steps a second: of 50 guided steps, such a replica does 0.32 edits a second.
WIDE = replace(QUEUE, step_time_s={2: 1.0, 32: 1.0}, limits=Limits(32, NEVER_FULL))


def test_replicas_come_after_their_start_and_go_when_there_is_nothing_left() -> None:
    # For 200 s 1.2 of what a replica can do, and then one long edit alone that keeps the graph going.
    coming = [Arrival(2.6 * number, 50, 7.5) for number in range(77)] + [Arrival(201.0, 200, 7.5)]
    result = simulate(WIDE, coming, 1, 0, scaler())
    # The load is reported at 10 s, and decided on 10 s later.
    assert result.replicas[:2] == [(0.0, 1), (20.0, 3)]
    # The load leaves the look-back period within 40 s of its end, and the decision comes 30 s after that.
    assert [num for _, num in result.replicas[2:]][-1] == 1
    assert 230 < result.replicas[-1][0] <= 280
    ends = [at_s for at_s, _ in result.replicas[1:]] + [result.ended_s]
    hours = sum(num * (end - at_s) for (at_s, num), end in zip(result.replicas, ends, strict=True)) / 3600
    assert result.replica_hours == pytest.approx(hours)
    assert result.ended_s == pytest.approx(401.5, abs=0.6)


def test_the_number_is_steady_under_a_steady_load() -> None:
    # With 18 replicas each has the target load. In 30 s 86 edits come, 11 % more or less.
    coming = poisson(TrafficMix((50,)), 18 * 0.5 * 0.32, 4000, seed=1)
    many = Scaler(Scaling(target_load=0.5, start_s=5), 40)
    result = simulate(WIDE, coming, 20, 0, many)
    numbers = [num for at_s, num in result.replicas if at_s > 100]
    assert numbers and all(18 <= num <= 25 for num in numbers)
    assert len(numbers) <= 8


def test_a_replica_takes_edits_once_it_has_started() -> None:
    # The first edits keep one replica busy; later ones are served by another replica once it has started.
    system = replace(WIDE, step_time_s={2: 1.0, 32: 16.0})
    coming = [Arrival(0.0, 100, 7.5)] * 10 + [Arrival(at_s, 1, 7.5) for at_s in (24.0, 30.0)]
    *_, before, after = simulate(system, coming, 1, 0, scaler()).edits
    assert before.latency_s is not None and before.latency_s > 5
    assert after.latency_s == pytest.approx(1.0)


# Two cores as they were measured, with calls that vary: an edit of 20 steps takes 0.8 s alone.
BUSY = System(
    {1: 0.021, 2: 0.036, 4: 0.067, 8: 0.137},
    {
        "parse": Spread(0.003, 0.004),
        "retrieve": Spread(0.005, 0.008),
        "condition": Spread(0.007, 0.012),
        "encode": Spread(0.015, 0.026),
        "decode": Spread(0.024, 0.031),
        "reply": Spread(0.001, 0.001),
        "hops": Spread(0.06, 0.075),
    },
    Limits(8, 16, margin_s=0.5, slack=0.1),
    deadline_s=2.4,
    cores=1.9,
    step_spread=1.5,
    contention=1.2,
)


def test_at_five_times_what_it_can_do_the_graph_loses_little_and_keeps_what_it_promised() -> None:
    peak = 2 / BUSY.step_time_s[2]  # steps a second of guided edits, in rows
    coming = poisson(TrafficMix(), 5.0, 400, seed=0)
    edits = simulate(BUSY, coming, 1, 0).edits
    done = [edit.arrival for edit in edits if edit.latency_s is not None]
    steps_per_s = sum(arrival.num_steps for arrival in done) / coming[-1].at_s
    assert sum(edit.late for edit in edits) < 0.01 * len(done)
    assert steps_per_s > 0.75 * peak / 2
    # Without anything to spare, edits are let in that end late.
    tight = replace(BUSY, limits=Limits(8, 16, margin_s=0.1, slack=0.0))
    assert sum(edit.late for edit in simulate(tight, coming, 1, 0).edits) > 0.03 * len(done)
