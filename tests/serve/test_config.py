"""Holds ServeConfig to refusing what a graph could not run with."""

import pytest

from serve.config import ServeConfig


def test_args_may_be_strings() -> None:
    config = ServeConfig.from_args({"bundle": "b", "catalogue": "c", "num_threads": "2", "replica_cpus": "0.5"})
    assert config == ServeConfig("b", "c", num_threads=2, replica_cpus=0.5)


@pytest.mark.parametrize(
    ("args", "field"),
    [
        ({"bundle": ""}, "bundle"),
        ({"catalogue": ""}, "catalogue"),
        ({"replica_cpus": 0}, "replica_cpus"),
        ({"replica_cpus": "nan"}, "replica_cpus"),
        ({"num_threads": 0}, "num_threads"),
        ({"max_edits": 0}, "max_edits"),
        ({"retry_after_s": -1}, "retry_after_s"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"max_pixels": 0}, "max_pixels"),
        ({"num_threads": "many"}, "num_threads"),
        ({"num_gpus": 1}, "num_gpus"),
    ],
)
def test_wrong_args_are_refused_by_name(args: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        ServeConfig.from_args({"bundle": "b", "catalogue": "c"} | args)


def test_bundle_and_catalogue_are_required() -> None:
    with pytest.raises(ValueError, match="catalogue"):
        ServeConfig.from_args({"bundle": "b"})
