import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fashion_rag.denoising.scheduler import Limits, Scheduler, Ticket
from fashion_rag.errors import InvalidRequest, Overloaded

SMALL, LARGE = (8, 6), (16, 12)


def ticket(edit_id: str, **changes: Any) -> Ticket:
    options: dict[str, Any] = {"size": SMALL, "num_rows": 2, "num_steps": 4, "arrived": 0.0}
    return Ticket(id=edit_id, **options | changes)


def scheduler_of(*tickets: Ticket, **limits: Any) -> Scheduler[Ticket]:
    scheduler: Scheduler[Ticket] = Scheduler(Limits(**{"max_waiting": 1000} | limits))
    for each in tickets:
        scheduler.add(each, step_time_s=0.0)
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


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_urgent_newcomers_cannot_pass_an_edit_for_ever(size: tuple[int, int]) -> None:
    scheduler = scheduler_of(ticket("old", size=size, num_steps=1), max_rows=2, patience_s=10)
    steps: list[str] = []
    for now in range(20):
        scheduler.add(ticket(f"new {now}", num_steps=1, arrived=now, deadline=now + 1), step_time_s=1)
        scheduler.refuse(now, step_time_s=1)
        steps += ids(scheduler.schedule())
        scheduler.remove(steps[-1])
    assert steps.index("old") == 9  # due at 10, like the edit that arrives at 9, and before it in the queue


@st.composite
def arrivals(draw: st.DrawFn) -> list[Ticket]:
    """Edits in the order of arrival, about one in each step of a second; more than can be done, most of them urgent."""
    tickets, now = [], 0
    for number in range(draw(st.integers(1, 24))):
        num_steps, slack = draw(st.integers(1, 3)), draw(st.sampled_from([math.inf, 0, 1, 1, 2, 4, 8]))
        tickets.append(
            ticket(
                str(number),
                arrived=now,
                num_steps=num_steps,
                num_rows=draw(st.integers(1, 2)),
                size=draw(st.sampled_from([SMALL, LARGE])),
                deadline=now + num_steps + slack,
            )
        )
        now += draw(st.sampled_from([1, 1, 1, 0, 2]))
    return tickets


@settings(max_examples=200, deadline=None)
@given(tickets=arrivals(), max_rows=st.integers(2, 4), patience_s=st.integers(0, 4))
def test_whatever_arrives_every_step_is_full_and_no_edit_starves(
    tickets: list[Ticket], max_rows: int, patience_s: int
) -> None:
    scheduler = scheduler_of(max_rows=max_rows, patience_s=patience_s)
    here: set[Ticket] = set()
    passed_over: Counter[Ticket] = Counter()
    now = 0
    while here or any(each.arrived >= now for each in tickets):
        for each in tickets:
            if each.arrived == now:
                scheduler.add(each, step_time_s=1)
                here.add(each)
        here -= set(scheduler.refuse(now, step_time_s=1))
        batch = scheduler.schedule()
        room = max_rows - sum(each.num_rows for each in batch)
        assert room >= 0 and len(set(batch)) == len(batch) and set(batch) <= here
        assert len({each.size for each in batch}) == (1 if here else 0)
        outside = here - set(batch)
        assert not any(each.size == batch[0].size and each.num_rows <= room for each in outside)
        passed_over.update(each for each in outside if now > each.arrived + patience_s)
        for each in batch:
            each.num_done += 1
            if not each.num_left:
                scheduler.remove(each.id)
                here.remove(each)
        now += 1
    assert len(scheduler) == 0
    # Past its patience an edit waits at most for the steps of those that came before its patience was over.
    for each in tickets:
        before = [other for other in tickets if other is not each and other.arrived <= each.arrived + patience_s]
        assert passed_over[each] <= sum(other.num_steps for other in before)


def test_an_edit_is_refused_as_soon_as_its_steps_take_longer_than_it_has() -> None:
    tight, started, never = ticket("tight", deadline=7.9), ticket("started", deadline=7.9, num_done=1), ticket("never")
    scheduler = scheduler_of(tight, started, never)
    assert scheduler.refuse(now=0, step_time_s=1.9) == []
    assert scheduler.refuse(now=0, step_time_s=2.0) == [tight]
    assert scheduler.schedule() == [started, never]
    assert scheduler.refuse(now=7.8, step_time_s=0.0) == []
    assert scheduler.refuse(now=8, step_time_s=0.0) == [started]
    assert scheduler.schedule() == [never]


def test_more_edits_than_may_wait_are_refused() -> None:
    scheduler = scheduler_of(ticket("a", num_steps=50, num_done=48), ticket("b"), max_rows=4, max_waiting=1)
    scheduler.add(ticket("waits"), step_time_s=3)
    with pytest.raises(Overloaded, match="1 edits are waiting") as refusal:
        scheduler.add(ticket("refused", deadline=1), step_time_s=3)
    assert refusal.value.retry_after_s == 6  # "a" has two steps left
    assert ids(scheduler.schedule()) == ["a", "b"]
    scheduler.remove("a")
    scheduler.add(ticket("again"), step_time_s=3)
    assert len(scheduler) == 3


def test_nobody_is_told_to_come_back_at_once() -> None:
    scheduler = scheduler_of(ticket("a"), max_rows=2, max_waiting=1)
    scheduler.add(ticket("b"), step_time_s=0)
    with pytest.raises(Overloaded) as refusal:
        scheduler.add(ticket("c"), step_time_s=0)
    assert refusal.value.retry_after_s == 1


def test_an_id_in_use_is_refused() -> None:
    scheduler = scheduler_of(ticket("a"))
    with pytest.raises(InvalidRequest, match="request_id: got 'a'"):
        scheduler.add(ticket("a"), step_time_s=0)
    scheduler.remove("a")
    scheduler.add(ticket("a"), step_time_s=0)


def test_removing_what_is_not_there_changes_nothing() -> None:
    scheduler = scheduler_of(ticket("a"))
    scheduler.remove("b")
    assert ids(scheduler.schedule()) == ["a"]


def test_limits_may_change_between_steps() -> None:
    scheduler = scheduler_of(ticket("a"), ticket("b"), max_rows=2)
    assert ids(scheduler.schedule()) == ["a"]
    scheduler.limits = Limits(max_rows=4)
    assert ids(scheduler.schedule()) == ["a", "b"]


@pytest.mark.parametrize("limit", [{"max_rows": 1}, {"max_waiting": 0}, {"patience_s": -1.0}, {"patience_s": math.nan}])
def test_limits_that_cannot_work_are_refused(limit: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(limit))}: got"):
        Limits(**limit)
