"""What the stages share that work on batches: an error stays with its own item, and values are kept by key."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from serve import tracing
from serve.tracing import Kind

T = TypeVar("T")
R = TypeVar("R")
V = TypeVar("V")


@dataclass(frozen=True, eq=False)
class Outcome(Generic[R]):
    """What a batch made of one of its items: a value, or the item's own error.

    started_ns, ended_ns: when the batch was computed, in Unix time. num_items: how many items were in it.
    """

    value: R | Exception
    started_ns: int
    ended_ns: int
    num_items: int


async def run_batch(compute: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T]) -> list[Outcome[R]]:
    """Return what `compute` makes of the items, in a thread. A method that `ray.serve.batch` decorates calls this."""

    def run() -> list[Outcome[R]]:
        started_ns = tracing.now_ns()
        values = outcomes_of(compute, items)
        ended_ns = tracing.now_ns()
        return [Outcome(value, started_ns, ended_ns, len(items)) for value in values]

    return await asyncio.to_thread(run)


async def in_batch(name: str, method: Callable[[T], Awaitable[Outcome[R]]], item: T) -> R:
    """Return what a method that `ray.serve.batch` decorates makes of an item. Raises the item's error.

    name: that of the work, for the spans of the wait for a batch and of the batch, which each of its items has.
    """
    asked_ns = tracing.now_ns()
    outcome = await method(item)
    error = outcome.value if isinstance(outcome.value, Exception) else None
    # Who joins late, as one may a reading under way, has waited for none of it.
    started_ns = max(asked_ns, outcome.started_ns)
    tracing.record(f"wait for a batch of {name}", Kind.WAIT, asked_ns, started_ns)
    tracing.record(f"batch of {name}", Kind.NETWORK, started_ns, outcome.ended_ns, error, num_items=outcome.num_items)
    return checked(outcome.value)


def outcomes_of(compute: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T]) -> list[R | Exception]:
    """Return what `compute` makes of the items in one call. An item that fails has its own error in its place.

    Where the call fails, `compute` is called again for each item alone.
    """
    try:
        return list(compute(items))
    except Exception as error:
        if len(items) == 1:
            return [error]
    outcomes: list[R | Exception] = []
    for item in items:
        outcomes += outcomes_of(compute, [item])
    return outcomes


def checked(outcome: R | Exception) -> R:
    """Return an outcome of `outcomes_of`. Raises it if it is an error."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def set_max_batch(size: int, *methods: Any) -> None:
    """Have methods that `ray.serve.batch` decorates take at most `size` calls together."""
    for method in methods:
        method.set_max_batch_size(size)


class Cache(Generic[V]):
    """Keeps values by key, at most `max_bytes` of them. The value used longest ago goes first.

    bytes_of: returns how many bytes a value takes.
    """

    def __init__(self, max_bytes: int, bytes_of: Callable[[V], int]) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._bytes_of = bytes_of
        self._values: OrderedDict[Hashable, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> V | None:
        """Return the value of this key, or None if it is not kept."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: Hashable, value: V) -> None:
        """Keep `value`, which nobody may change any more.

        It must own its memory: a view would keep more bytes than are counted.
        """
        self._drop(self._values.pop(key, None))
        self._values[key] = value
        self.num_bytes += self._bytes_of(value)
        while self.num_bytes > self.max_bytes:
            self._drop(self._values.popitem(last=False)[1])

    def _drop(self, value: V | None) -> None:
        """Count the bytes of a value that has been taken out as free."""
        self.num_bytes -= 0 if value is None else self._bytes_of(value)
