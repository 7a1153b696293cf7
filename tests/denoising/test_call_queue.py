import pytest

from fashion_rag.denoising.call_queue import CallQueue
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
    queue.end_call(batch, 3.0)
    assert queue.pace.step_time_s(Rows(4)) == 3.0
    assert queue.work_s([Rows(2), Rows(2)]) == 3.0


def test_a_call_that_fails_teaches_nothing() -> None:
    clock = Now()
    queue = queue_at(clock)
    queue.add(ticket("a", clock))
    batch, _ = queue.begin_call()
    queue.end_call(batch, None)
    assert queue.pace.step_time_s(Rows(2)) == 0.0


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
    queue.end_call(batch, 4.0)
    queue.add(ticket("b", clock, deadline=13.0))


def test_a_pace_that_has_everything_refused_is_forgotten() -> None:
    clock = Now()
    queue = queue_at(clock)
    queue.pace.record(Rows(2), 10.0)
    with pytest.raises(DeadlineExceeded):
        queue.add(ticket("a", clock, deadline=5.0))
    assert queue.pace.step_time_s(Rows(2)) == 0.0
    queue.add(ticket("a", clock, deadline=5.0))
    queue.pace.record(Rows(2), 10.0)
    batch, refused = queue.begin_call()
    assert batch == [] and [edit.id for edit, _ in refused] == ["a"]
    assert len(queue) == 0 and queue.pace.step_time_s(Rows(2)) == 0.0


def test_an_edit_that_has_left_is_not_held_though_its_id_is_in_use_again() -> None:
    clock = Now()
    queue = queue_at(clock)
    first, second = ticket("a", clock), ticket("a", clock)
    queue.add(first)
    queue.scheduler.remove("a")
    queue.add(second)
    assert not queue.holds(first) and queue.holds(second)
