import math
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fashion_rag.denoising.rows import Rows, sum_rows
from fashion_rag.denoising.scheduler import Limits, Scheduler, Ticket
from fashion_rag.errors import DeadlineExceeded, InvalidRequest, Overloaded

SMALL, LARGE = (8, 6), (16, 12)


def ticket(edit_id: str, **changes: Any) -> Ticket:
    """Return an edit of `num_steps` steps of `num_rows` rows of the whole UNet, unless `rows` says of each step."""
    options: dict[str, Any] = {"size": SMALL, "arrived": 0.0, "ready": True, **changes}
    rows = [Rows(options.pop("num_rows", 2))] * options.pop("num_steps", 4)
    return Ticket(id=edit_id, **{"rows": rows} | options)


def scheduler_of(
    *tickets: Ticket, step_time_s: float | Callable[[Rows], float] = 0.0, **limits: Any
) -> Scheduler[Ticket]:
    """Return a scheduler with `tickets`, all let in; a step takes `step_time_s` from then on."""
    scheduler: Scheduler[Ticket] = Scheduler(Limits(**{"max_waiting": 1000} | limits), lambda _: 0.0)
    for each in tickets:
        scheduler.add(each, now=-math.inf)
    scheduler.step_time_s = step_time_s if callable(step_time_s) else lambda _: step_time_s
    return scheduler


def ids(tickets: list[Ticket]) -> list[str]:
    return [each.id for each in tickets]


def test_the_earliest_deadline_goes_first_then_the_earliest_arrival() -> None:
    scheduler = scheduler_of(
        ticket("none", arrived=0),
        ticket("none, later", arrived=1),
        ticket("late", arrived=2, deadline=30),
        ticket("soon", arrived=3, deadline=20),
        ticket("as soon", arrived=4, deadline=20),
    )
    assert ids(scheduler.schedule()) == ["soon", "as soon", "late", "none"]


def test_rows_that_an_edit_cannot_use_go_to_a_smaller_one() -> None:
    scheduler = scheduler_of(ticket("a"), ticket("b"), ticket("c", num_rows=1), ticket("d", num_rows=1), max_rows=3)
    assert ids(scheduler.schedule()) == ["a", "c"]


def test_a_step_has_the_size_of_the_edit_that_is_due_first() -> None:
    scheduler = scheduler_of(ticket("a"), ticket("b", size=LARGE, deadline=5), ticket("c"))
    assert ids(scheduler.schedule()) == ["b"]
    scheduler.remove("b")
    assert ids(scheduler.schedule()) == ["a", "c"]


def test_an_edit_runs_from_when_it_is_ready() -> None:
    late = ticket("late", deadline=20, size=LARGE, ready=False)
    scheduler = scheduler_of(ticket("a"), late)
    assert ids(scheduler.schedule()) == ["a"]
    late.ready = True
    assert ids(scheduler.schedule()) == ["late"]
    assert late.num_left == 3


def test_with_none_ready_there_is_no_step() -> None:
    assert scheduler_of(ticket("a", ready=False)).schedule() == []


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_urgent_newcomers_cannot_pass_an_edit_for_ever(size: tuple[int, int]) -> None:
    scheduler = scheduler_of(ticket("old", size=size, num_steps=1), max_rows=2, patience_s=10, step_time_s=1)
    steps: list[str] = []
    for now in range(20):
        with suppress(Overloaded):
            scheduler.add(ticket(f"new {now}", num_steps=1, arrived=now, deadline=now + 1), now)
        steps += ids(scheduler.schedule())
        scheduler.remove(steps[-1])
    # Due at 10, like the edit that arrives at 9, and before it in the queue; so that one cannot be promised its step.
    assert steps == [*(f"new {now}" for now in range(9)), "old", *(f"new {now}" for now in range(10, 20))]


ONE, TWO, SHALLOW = Rows(1), Rows(2), Rows(0, 2)


@st.composite
def arrivals(draw: st.DrawFn) -> list[Ticket]:
    """Return the edits in the order of arrival, about one in each step of a second; more than can be done, most of them
    urgent.
    """
    tickets, now = [], 0
    for number in range(draw(st.integers(1, 24))):
        num_steps, slack = draw(st.integers(1, 3)), draw(st.sampled_from([math.inf, 0, 1, 1, 2, 4, 8]))
        tickets.append(
            ticket(
                str(number),
                arrived=now,
                rows=draw(st.lists(st.sampled_from([ONE, TWO, SHALLOW]), min_size=num_steps, max_size=num_steps)),
                size=draw(st.sampled_from([SMALL, LARGE])),
                deadline=now + num_steps + slack,
            )
        )
        now += draw(st.sampled_from([1, 1, 1, 0, 2]))
    return tickets


@settings(max_examples=200, deadline=None)
@given(
    tickets=arrivals(),
    inputs_take=st.lists(st.integers(0, 4), min_size=24, max_size=24),
    max_rows=st.integers(2, 4),
    patience_s=st.integers(0, 4),
)
def test_whatever_arrives_every_step_is_full_and_no_edit_starves(
    tickets: list[Ticket], inputs_take: list[int], max_rows: int, patience_s: int
) -> None:
    scheduler = scheduler_of(max_rows=max_rows, patience_s=patience_s)  # knows no pace, so it takes on too much
    ready_at = {each: each.arrived + wait for each, wait in zip(tickets, inputs_take, strict=False)}
    here: set[Ticket] = set()
    passed_over: Counter[Ticket] = Counter()
    now = 0
    while here or any(each.arrived >= now for each in tickets):
        for each in tickets:
            if each.arrived == now:
                scheduler.add(each, now)
                here.add(each)
            each.ready = now >= ready_at[each]
        here -= {each for each, _ in scheduler.refuse(now)}
        batch = scheduler.schedule()
        room = max_rows - sum(each.rows[each.num_begun - 1].total for each in batch)
        runnable = {each for each in here if each.ready}
        assert room >= 0 and len(set(batch)) == len(batch) and set(batch) <= runnable
        assert len({each.size for each in batch}) == (1 if runnable else 0)
        outside = runnable - set(batch)
        assert not any(each.size == batch[0].size and each.num_rows <= room for each in outside)
        passed_over.update(each for each in outside if now > each.arrived + patience_s)
        for each in batch:
            if not each.num_left:
                scheduler.remove(each.id)
                here.remove(each)
        now += 1
    assert len(scheduler) == 0
    # Past its patience an edit waits at most for the steps of those that came before its patience was over.
    for each in tickets:
        before = [other for other in tickets if other is not each and other.arrived <= each.arrived + patience_s]
        assert passed_over[each] <= sum(other.num_steps for other in before)


def begun(batch: list[Ticket]) -> Rows:
    return sum_rows(each.rows[each.num_begun - 1] for each in batch)


@settings(max_examples=300, deadline=None)
@given(
    tickets=arrivals(),
    max_rows=st.integers(2, 5),
    patience_s=st.integers(0, 8),
    margin_s=st.sampled_from([0.0, 1.0]),
    row_s=st.sampled_from([0.0, 0.25, 1.0]),
)
def test_what_is_let_in_is_done_before_its_deadline(
    tickets: list[Ticket], max_rows: int, patience_s: int, margin_s: float, row_s: float
) -> None:
    def step_time_s(rows: Rows) -> float:
        return 0.5 + row_s * (rows.deep + rows.shallow / 2)

    scheduler = scheduler_of(max_rows=max_rows, patience_s=patience_s, margin_s=margin_s, step_time_s=step_time_s)
    now, queue = 0.0, tickets.copy()
    while queue or len(scheduler):
        batch = scheduler.schedule()
        now = now + step_time_s(begun(batch)) if batch else queue[0].arrived
        while queue and queue[0].arrived <= now:  # some arrive while the call runs
            with suppress(Overloaded, DeadlineExceeded):
                scheduler.add(queue[0], now)
            queue.pop(0)
        for each in batch:
            if not each.num_left:
                assert now <= each.deadline - margin_s
                scheduler.remove(each.id)
        assert scheduler.refuse(now) == []


def test_an_edit_that_would_make_another_late_is_refused() -> None:
    here = ticket("here", deadline=10, num_steps=5)
    scheduler = scheduler_of(here, max_rows=2, step_time_s=1)
    with pytest.raises(Overloaded, match="with this edit, 1 of 2 would miss their deadlines") as refusal:
        scheduler.add(ticket("urgent", deadline=9, num_steps=8), now=0)
    assert refusal.value.retry_after_s == 3  # "here" would be done at 13
    scheduler.add(ticket("short", deadline=9, num_steps=5), now=0)
    assert ids(scheduler.schedule()) == ["short"]


def test_an_edit_that_would_be_late_itself_is_refused() -> None:
    scheduler = scheduler_of(ticket("a", num_steps=5), max_rows=2, patience_s=0, step_time_s=1)
    with pytest.raises(Overloaded) as refusal:
        scheduler.add(ticket("b", arrived=1, deadline=8.5, num_steps=4), now=0)
    assert refusal.value.retry_after_s == 1  # half a second late, but nobody is told to come back at once
    scheduler.add(ticket("b", arrived=1, deadline=9, num_steps=4), now=0)


def test_edits_that_fit_beside_each_other_make_nobody_late() -> None:
    scheduler = scheduler_of(ticket("a", deadline=4), max_rows=4, step_time_s=1)
    scheduler.add(ticket("b", deadline=4), now=0)
    with pytest.raises(Overloaded):
        scheduler.add(ticket("c", deadline=7.5), now=0)
    with pytest.raises(Overloaded):
        scheduler.add(ticket("other size", size=LARGE, deadline=7.5), now=0)
    scheduler.add(ticket("c", deadline=8), now=0)


def test_an_edit_that_is_lost_already_keeps_nobody_out() -> None:
    scheduler = scheduler_of(ticket("lost", deadline=3), ticket("kept", deadline=8), max_rows=2, step_time_s=1)
    scheduler.add(ticket("new", deadline=12), now=0)
    with pytest.raises(Overloaded):
        scheduler.add(ticket("more", deadline=12), now=0)


def test_an_edit_that_has_used_up_its_margin_is_not_delayed_further() -> None:
    tight = ticket("tight", deadline=4.5)
    scheduler = scheduler_of(tight, max_rows=2, margin_s=1, step_time_s=1)
    with pytest.raises(Overloaded, match="with this edit, 1 of 2"):
        scheduler.add(ticket("before it", num_steps=1, deadline=3), now=0)
    scheduler.add(ticket("after it", num_steps=1, deadline=8), now=0)
    tight.deadline = 3.5  # lost, so that nothing can harm it
    scheduler.add(ticket("before it", num_steps=1, deadline=3), now=0)


@pytest.mark.parametrize(("after_s", "free_s"), [(0.0, 1.0), (0.5, 1.0), (2.5, 2.5)])
def test_as_much_is_kept_free_as_the_stages_after_denoising_take(after_s: float, free_s: float) -> None:
    scheduler = scheduler_of(max_rows=2, margin_s=1, step_time_s=1)
    with pytest.raises(DeadlineExceeded):
        scheduler.add(ticket("late", deadline=3.9 + free_s, after_s=after_s), now=0)
    scheduler.add(ticket("in time", deadline=4 + free_s, after_s=after_s), now=0)
    with pytest.raises(Overloaded):
        scheduler.add(ticket("late", deadline=7.9 + free_s, after_s=after_s), now=0)
    scheduler.add(ticket("also in time", deadline=8 + free_s, after_s=after_s), now=0)


def test_slack_is_kept_free_for_all_the_steps_that_an_edit_waits_for() -> None:
    scheduler = scheduler_of(max_rows=2, slack=0.25, step_time_s=1)
    with pytest.raises(DeadlineExceeded, match=r"4 of 4 steps are left, which take 5 s, and there are 4\.9 s"):
        scheduler.add(ticket("late", deadline=4.9), now=0)
    scheduler.add(ticket("in time", deadline=5), now=0)
    with pytest.raises(Overloaded) as refusal:
        scheduler.add(ticket("late", deadline=8.5), now=0)
    assert refusal.value.retry_after_s == 1.5
    scheduler.add(ticket("also in time", deadline=10), now=0)


def test_edits_that_are_not_ready_are_load_at_the_door() -> None:
    scheduler = scheduler_of(ticket("a", ready=False, deadline=4), max_rows=2, step_time_s=1)
    with pytest.raises(Overloaded):
        scheduler.add(ticket("b", deadline=5), now=0)
    assert scheduler.num_rows == 2


def test_a_step_that_is_running_is_not_counted_again() -> None:
    scheduler = scheduler_of(ticket("a", num_steps=2), max_rows=2, patience_s=0, step_time_s=1)
    scheduler.schedule()
    scheduler.add(ticket("b", deadline=6), now=1)  # the running step of "a" ends at 1, and its last one at 2


@pytest.mark.parametrize(("margin_s", "deadline"), [(0.0, 4), (2.5, 6.5)])
def test_an_edit_too_late_even_alone_is_told_so_at_the_door(margin_s: float, deadline: float) -> None:
    scheduler = scheduler_of(
        ticket("a", num_rows=1), max_rows=2, margin_s=margin_s, step_time_s=lambda rows: rows.total
    )
    late = ticket("b", num_rows=1, deadline=deadline - 0.5)
    with pytest.raises(
        DeadlineExceeded, match=r"^4 of 4 steps are left, which take 4 s, and there are 3.5 s for them before the"
    ):
        scheduler.add(late, now=0)
    assert len(scheduler) == 1
    Scheduler[Ticket](scheduler.limits, lambda rows: rows.total).add(ticket("b", num_rows=1, deadline=deadline), now=0)


def test_an_edit_is_refused_as_soon_as_its_steps_take_longer_than_it_has() -> None:
    tight, started, never = ticket("tight", deadline=7.9), ticket("started", deadline=7.9, num_begun=1), ticket("never")
    tight.ready = False  # it may wait for its inputs: its time runs all the same
    scheduler = scheduler_of(tight, started, never, step_time_s=1.9)
    assert scheduler.refuse(now=0) == []
    scheduler.step_time_s = lambda _: 2.0
    ((refused, error),) = scheduler.refuse(now=0)
    assert refused is tight
    assert str(error) == "4 of 4 steps are left, which take 8 s, and there are 7.9 s for them before the deadline"
    assert scheduler.schedule() == [started, never]
    scheduler.step_time_s = lambda _: 0.0
    # An edit may use up all that was kept free for it.
    scheduler.limits = Limits(margin_s=5.0, slack=1.0)
    started.after_s = 5.0
    assert scheduler.refuse(now=7.8) == []
    assert [each for each, _ in scheduler.refuse(now=8.0)] == [started]
    assert scheduler.schedule() == [never]


def test_more_edits_than_may_wait_are_refused() -> None:
    scheduler = scheduler_of(
        ticket("a", num_steps=50, num_begun=48), ticket("b"), max_rows=4, max_waiting=1, step_time_s=3
    )
    scheduler.add(ticket("waits", ready=False), now=0)
    with pytest.raises(Overloaded, match="1 edits are waiting") as refusal:
        scheduler.add(ticket("refused", deadline=13), now=0)
    assert refusal.value.retry_after_s == 6  # "a" has two steps left
    assert ids(scheduler.schedule()) == ["a", "b"]
    scheduler.remove("a")
    scheduler.add(ticket("again"), now=0)
    assert len(scheduler) == 3


def test_edits_wait_that_are_beyond_the_rows_of_one_call_in_the_order_of_arrival() -> None:
    scheduler = scheduler_of(ticket("a"), max_rows=3)
    assert (scheduler.num_rows, scheduler.num_waiting) == (2, 0)
    scheduler.add(ticket("b", ready=False), now=0)
    assert (scheduler.num_rows, scheduler.num_waiting) == (4, 1)
    scheduler.add(ticket("c", size=LARGE, num_rows=1, deadline=5), now=0)
    assert (scheduler.num_rows, scheduler.num_waiting) == (5, 2)
    scheduler.remove("a")
    assert (scheduler.num_rows, scheduler.num_waiting) == (3, 0)


def test_nobody_is_told_to_come_back_at_once() -> None:
    scheduler = scheduler_of(ticket("a"), ticket("b"), max_rows=2, max_waiting=1)
    with pytest.raises(Overloaded) as refusal:
        scheduler.add(ticket("c"), now=0)
    assert refusal.value.retry_after_s == 1


def test_an_id_in_use_is_refused() -> None:
    scheduler = scheduler_of(ticket("a"))
    with pytest.raises(InvalidRequest, match="request_id: got 'a'"):
        scheduler.add(ticket("a"), now=0)
    scheduler.remove("a")
    scheduler.add(ticket("a"), now=0)


def test_removing_what_is_not_there_changes_nothing() -> None:
    scheduler = scheduler_of(ticket("a"))
    scheduler.remove("b")
    assert ids(scheduler.schedule()) == ["a"]
    assert scheduler.get("b") is None


def test_limits_may_change_between_steps() -> None:
    scheduler = scheduler_of(ticket("a"), ticket("b"), max_rows=2)
    assert ids(scheduler.schedule()) == ["a"]
    scheduler.limits = Limits(max_rows=4)
    assert ids(scheduler.schedule()) == ["a", "b"]


@pytest.mark.parametrize(
    "limit",
    [
        {"max_rows": 1},
        {"max_waiting": 0},
        {"patience_s": -1.0},
        {"patience_s": math.nan},
        {"margin_s": -0.1},
        {"slack": -0.1},
    ],
)
def test_limits_that_cannot_work_are_refused(limit: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(limit))}: got"):
        Limits(**limit)


def test_rows_that_a_step_does_not_take_go_to_others() -> None:
    scheduler = scheduler_of(ticket("a", rows=[TWO, ONE, ONE, TWO]), ticket("b", num_steps=3, num_rows=1), max_rows=2)
    assert [ids(scheduler.schedule()) for _ in range(4)] == [["a"], ["a", "b"], ["a", "b"], ["a"]]


def test_the_door_knows_what_each_step_will_take() -> None:
    def step_time_s(rows: Rows) -> float:
        return 2.0 * rows.deep + rows.shallow

    here = ticket("here", rows=[TWO, SHALLOW, SHALLOW], deadline=8.0)
    scheduler = scheduler_of(here, max_rows=2, step_time_s=step_time_s)
    assert scheduler.refuse(now=0.0) == []
    assert [each for each, _ in scheduler.refuse(now=0.1)] == [here]
    scheduler = scheduler_of(here, max_rows=2, step_time_s=step_time_s)
    with pytest.raises(Overloaded) as refusal:
        scheduler.add(ticket("more", rows=[ONE, SHALLOW], deadline=10.5), now=0.0)
    # After 4 + 2 + 2 come 2 + 2.
    assert refusal.value.retry_after_s == 1.5
    scheduler.add(ticket("more", rows=[ONE, SHALLOW], deadline=12.0), now=0.0)
