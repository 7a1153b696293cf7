"""Tests that errors reach other processes whole, and say what is wrong in one line."""

import pickle

import pytest

from fashion_rag.errors import ArtifactError, DeadlineExceeded, FashionRAGError, InvalidRequest, NotFound, Overloaded


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("steps", 0, "must be at least 1"),
        InvalidRequest("size", "1x1", "must have the photo's shape", "unsupported_value"),
        NotFound("model", "no such model", "model_not_found"),
        Overloaded("8 edits are in flight", 5),
        DeadlineExceeded("too late"),
        ArtifactError("no such file"),
    ],
)
def test_errors_survive_pickling(error: FashionRAGError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_a_refusal_names_field_value_and_rule_and_stays_short() -> None:
    assert str(InvalidRequest("steps", 0, "must be at least 1")) == "steps: got 0; must be at least 1"
    assert len(str(InvalidRequest("prompt", "x" * 10_000, "is too long"))) < 120


def test_a_number_too_long_to_print_is_named_all_the_same() -> None:
    assert str(InvalidRequest("seed", 10**5000, "must be less")).startswith(
        "seed: got a number of thousands of digits;"
    )
