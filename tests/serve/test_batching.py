"""Tests that an error stays with its own item of a batch, and that the cache stays in its bounds."""

from collections.abc import Sequence
from operator import attrgetter

import pytest
import torch

from serve.batching import Cache, checked, outcomes_of


def halves(numbers: Sequence[int]) -> list[int]:
    calls.append(list(numbers))
    if any(number % 2 for number in numbers):
        raise ValueError(f"odd: {[number for number in numbers if number % 2]}")
    return [number // 2 for number in numbers]


calls: list[list[int]] = []


@pytest.fixture(autouse=True)
def no_calls_yet() -> None:
    calls.clear()


def test_a_batch_is_one_call() -> None:
    assert outcomes_of(halves, [2, 4, 6]) == [1, 2, 3]
    assert calls == [[2, 4, 6]]


def test_one_that_fails_fails_alone() -> None:
    first, second, third = outcomes_of(halves, [2, 5, 6])
    assert (checked(first), checked(third)) == (1, 3)
    with pytest.raises(ValueError, match=r"odd: \[5\]"):
        checked(second)


def test_one_alone_is_not_tried_again() -> None:
    assert isinstance(outcomes_of(halves, [3])[0], ValueError)
    assert calls == [[3]]


def cache_of_words(max_bytes: int) -> Cache[torch.Tensor]:
    return Cache(max_bytes, attrgetter("nbytes"))


def words(number: float) -> torch.Tensor:
    return torch.full((4,), number, dtype=torch.float32)  # 16 bytes


def test_the_cache_keeps_what_was_used_last() -> None:
    cache = cache_of_words(48)
    for number in range(3):
        cache.put(number, words(number))
    assert cache.get(0) is not None
    cache.put(3, words(3))
    assert [cache.get(number) is not None for number in range(4)] == [True, False, True, True]
    assert torch.equal(cache.get(3), words(3))
    assert (len(cache), cache.num_bytes) == (3, 48)


def test_the_same_key_is_kept_once() -> None:
    cache = cache_of_words(48)
    for number in range(5):
        cache.put("key", words(number))
    assert torch.equal(cache.get("key"), words(4))
    assert cache.num_bytes == 16


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    cache = cache_of_words(15)
    cache.put("key", words(1))
    assert (cache.get("key"), len(cache), cache.num_bytes) == (None, 0, 0)


def test_a_smaller_bound_holds_from_the_next_value_on() -> None:
    cache = cache_of_words(48)
    for number in range(3):
        cache.put(number, words(number))
    cache.max_bytes = 16
    cache.put(3, words(3))
    assert (len(cache), cache.num_bytes) == (1, 16)
