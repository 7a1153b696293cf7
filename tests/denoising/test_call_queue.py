import pytest

from fashion_rag.denoising.call_queue import STALE_S, CallQueue
from fashion_rag.denoising.rows import Rows
from fashion_rag.denoising.scheduler import Limits, Ticket
from fashion_rag.errors import DeadlineExceeded


class Now:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def ticket(edit_id: str, clock: Now, deadline: float = 1000.0, num_steps: int = 2) -> Ticket:
    return Ticket(id=edit_id, size=(2, 2), rows=[Rows(2)] * num_steps, arrived=clock(), deadline=deadline, ready=True)


def queue_at(clock: Now) -> CallQueue[Ticket]:
    return CallQueue(Limits(4), clock)


def test_a_call_takes_the_edits_that_are_ready_and_teaches_the_pace() -> None:
    clock = Now()
    queue = queue_at(clock)
    edits = [ticket("a", clock), ticket("b", clock)]
    for edit in edits:
        queue.add(edit)
    batch, refused = queue.begin_call()
    assert (batch, refused) == (edits, [])
    # What is done after the call, before the next can begin, counts as well.
    clock.now = 3.0
    queue.end_call(batch)
    assert queue.pace.step_time_s(Rows(4)) == 3.0
    assert queue.work_s([Rows(2), Rows(2)]) == 3.0


def test_a_call_that_fails_teaches_nothing() -> None:
    clock = Now()
    queue = queue_at(clock)
    queue.add(ticket("a", clock))
    batch, _ = queue.begin_call()
    clock.now = 3.0
    queue.end_call(batch, failed=True)
    assert queue.pace.step_time_s(Rows(2)) == 0.0


def test_the_time_in_which_there_is_nothing_to_do_is_no_part_of_a_call() -> None:
    clock = Now()
    queue = queue_at(clock)
    for began in (0.0, 100.0):
        clock.now = began
        queue.add(edit := ticket("a", clock))
        batch, _ = queue.begin_call()
        clock.now = began + 3.0
        queue.scheduler.remove(edit.id)
        queue.end_call(batch)
        assert queue.begin_call() == ([], [])
    assert queue.pace.step_time_s(Rows(2)) == 3.0


def test_an_edit_waits_for_the_running_call() -> None:
    clock = Now()
    queue = queue_at(clock)
    queue.pace.record(Rows(2), 4.0)
    queue.pace.record(Rows(4), 4.0)
    queue.add(ticket("a", clock))
    batch, _ = queue.begin_call()
    # Two steps of 4 s follow the running call of 4 s.
    with pytest.raises(DeadlineExceeded):
        queue.add(ticket("b", clock, deadline=11.0))
    clock.now = 4.0
    queue.end_call(batch)
    queue.add(ticket("b", clock, deadline=13.0))


def queue_after_slow_call(clock: Now) -> CallQueue[Ticket]:
    """Return an empty queue that knows a call of 1 s and, after it, a call of 19 s that has just ended."""
    queue = queue_at(clock)
    for call_s in (1.0, 19.0):
        queue.add(edit := ticket("slow", clock))
        batch, _ = queue.begin_call()
        clock.now += call_s
        queue.end_call(batch)
        queue.scheduler.remove(edit.id)
    return queue


def test_a_pace_that_refuses_is_believed_for_a_while_and_then_the_best_of_it_counts() -> None:
    clock = Now()
    queue = queue_after_slow_call(clock)
    clock.now += STALE_S - 0.1
    with pytest.raises(DeadlineExceeded):
        queue.add(ticket("a", clock, deadline=clock.now + 5.0))
    assert queue.pace.step_time_s(Rows(2)) == 10.0
    clock.now += 0.1
    queue.add(ticket("b", clock, deadline=clock.now + 2.0))
    assert queue.pace.step_time_s(Rows(2)) == 1.0


def test_what_was_never_possible_is_refused_however_old_the_pace_is() -> None:
    clock = Now()
    queue = queue_after_slow_call(clock)
    clock.now += STALE_S
    for _ in range(2):
        with pytest.raises(DeadlineExceeded, match=r"2 of 2 steps are left, which take 2 s, and there are 1\.5 s"):
            queue.add(ticket("a", clock, deadline=clock.now + 1.5))


def test_an_edit_that_is_refused_teaches_nothing_while_others_are_here() -> None:
    clock = Now()
    queue = queue_after_slow_call(clock)
    queue.add(ticket("here", clock))
    clock.now += STALE_S
    before = queue.pace.step_time_s(Rows(2))
    with pytest.raises(DeadlineExceeded):
        queue.add(ticket("a", clock, deadline=clock.now + 2.0))
    assert queue.pace.step_time_s(Rows(2)) == before


def test_an_edit_that_has_left_is_not_held_though_its_id_is_in_use_again() -> None:
    clock = Now()
    queue = queue_at(clock)
    first, second = ticket("a", clock), ticket("a", clock)
    queue.add(first)
    queue.scheduler.remove("a")
    queue.add(second)
    assert not queue.holds(first) and queue.holds(second)
