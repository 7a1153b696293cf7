"""Keeps expected errors out of the logs. Every deployment that other replicas call uses it when it starts."""

import logging

from fashion_rag.errors import DeadlineExceeded, InvalidRequest, NotFound, Overloaded
from serve.calls import unwrapped

# Errors that concern the caller, not the operator.
EXPECTED = (DeadlineExceeded, InvalidRequest, NotFound, Overloaded)


def leave_out_expected_errors() -> None:
    """Have this process log no traceback of an EXPECTED error.

    Ray Serve logs the traceback of every error that a replica raises, beside the line that it logs for every call. The
    line stays.
    """
    logger = logging.getLogger("ray.serve")
    if _is_unexpected not in logger.filters:
        logger.addFilter(_is_unexpected)


def _is_unexpected(record: logging.LogRecord) -> bool:
    """Return whether a log record is to be kept: it has no error, or an unexpected one."""
    error = record.exc_info[1] if record.exc_info else None
    return error is None or not isinstance(unwrapped(error), EXPECTED)
