"""What the batching stages share: neighbours in a batch do not suffer for each other, and garments are remembered."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")


def each(compute: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T]) -> list[R | Exception]:
    """Return what `compute` makes of each item in one call; an item that fails has its own error in its place.

    Where the call fails, every item gets a call to itself.
    """
    try:
        return list(compute(items))
    except Exception as error:
        if len(items) == 1:
            return [error]
        return [outcome for item in items for outcome in each(compute, [item])]


def checked(outcome: R | Exception) -> R:
    """Return the outcome, if it is none of the errors that `each` hands back: those it raises."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def set_max_batch(size: int, *methods: Any) -> None:
    """Have methods under `ray.serve.batch` take at most `size` calls together."""
    for method in methods:
        method.set_max_batch_size(size)


class TensorCache:
    """Tensors by key, at most `max_bytes` of them; the one used longest ago goes first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._tensors: OrderedDict[Hashable, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tensors)

    def get(self, key: Hashable) -> Tensor | None:
        """Return the tensor of this key, if it is still here."""
        if key in self._tensors:
            self._tensors.move_to_end(key)
        return self._tensors.get(key)

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Keep `tensor`, which nobody may change any more. It must own its memory, or more than counted is kept."""
        self._drop(self._tensors.pop(key, None))
        self._tensors[key] = tensor
        self.num_bytes += tensor.nbytes
        while self.num_bytes > self.max_bytes:
            self._drop(self._tensors.popitem(last=False)[1])

    def _drop(self, tensor: Tensor | None) -> None:
        self.num_bytes -= 0 if tensor is None else tensor.nbytes
