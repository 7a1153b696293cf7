"""Tests that replicas log no traceback of errors that concern the caller, without a cluster."""

import logging

import pytest
from ray.exceptions import RayTaskError

from fashion_rag.errors import DeadlineExceeded, InvalidRequest, Overloaded
from serve.logs import leave_out_expected_errors

UNKNOWN = InvalidRequest("garment_ids", "a", "must name garments of the catalogue")


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        (UNKNOWN, False),
        (RayTaskError("retrieve", "traceback", UNKNOWN, "replica", 1, "ip").as_instanceof_cause(), False),
        (Overloaded("full", 4), False),
        (DeadlineExceeded("late"), False),
        (KeyError("a fault of ours"), True),
    ],
)
def test_only_unexpected_errors_leave_a_traceback(
    caplog: pytest.LogCaptureFixture, error: Exception, logged: bool
) -> None:
    logger = logging.getLogger("ray.serve")
    before = logger.filters[:]
    try:
        for _ in range(2):
            leave_out_expected_errors()
        assert len(logger.filters) == len(before) + 1
        try:
            raise error
        except Exception:
            logger.exception("Request failed.")
    finally:
        logger.filters = before
    assert ("Request failed." in caplog.messages) == logged
