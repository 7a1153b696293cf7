"""Tests of the comparison of ways to use two cores, on a tiny bundle."""

import os
from pathlib import Path

import pytest

from benchmarks.denoiser_cores import ONE, TWO, measure, table
from export.runtime import Runtime


@pytest.mark.slow
def test_both_ways_run_as_many_rows(tiny_bundle: Path, onnx_folder: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    runtime = Runtime(str(tiny_bundle), "onnx", compiled=str(onnx_folder))
    records = measure(runtime, (2, 4), num_rounds=1, turn_s=0.05, settle_s=0.5)
    assert [record["rows"] for record in records] == [2, 4]
    for record in records:
        assert all(record[name][figure] > 0 for name in (TWO, ONE) for figure in ("rows_per_s", "step_s"))
        # A denoiser alone has all the rows in each step, so that its pace follows from the time of a step.
        assert record[ONE]["rows_per_s"] * record[ONE]["step_s"] == pytest.approx(record["rows"])
        assert record["times_more_rows"] == record[TWO]["rows_per_s"] / record[ONE]["rows_per_s"]
    assert table("onnx", records).row_count == 2
