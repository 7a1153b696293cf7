"""What the stages share that work on batches: an error stays with its own item, and tensors are kept by key."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")


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


class TensorCache:
    """Keeps tensors by key, at most `max_bytes` of them. The tensor used longest ago goes first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._tensors: OrderedDict[Hashable, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tensors)

    def get(self, key: Hashable) -> Tensor | None:
        """Return the tensor of this key, or None if it is not kept."""
        if key in self._tensors:
            self._tensors.move_to_end(key)
        return self._tensors.get(key)

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Keep `tensor`, which nobody may change any more.

        It must own its memory: a view would keep more bytes than are counted.
        """
        self._drop(self._tensors.pop(key, None))
        self._tensors[key] = tensor
        self.num_bytes += tensor.nbytes
        while self.num_bytes > self.max_bytes:
            self._drop(self._tensors.popitem(last=False)[1])

    def _drop(self, tensor: Tensor | None) -> None:
        """Count the bytes of a tensor that has been taken out as free."""
        self.num_bytes -= 0 if tensor is None else tensor.nbytes
