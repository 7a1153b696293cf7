"""What the replicas leave out of their logs. Every deployment that other replicas call uses it."""

import logging

from fashion_rag.errors import DeadlineExceeded, InvalidRequest, NotFound, Overloaded
from serve.calls import unwrapped

# The caller's to know, not the operator's.
EXPECTED = (DeadlineExceeded, InvalidRequest, NotFound, Overloaded)


def leave_out_expected_errors() -> None:
    """Have this process log no traceback of an error that a caller of the API is told of.

    Ray Serve logs every error that a replica raises with its traceback, beside the one line that it writes for every
    call. That line stays.
    """
    logger = logging.getLogger("ray.serve")
    if _is_unexpected not in logger.filters:
        logger.addFilter(_is_unexpected)


def _is_unexpected(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return error is None or not isinstance(unwrapped(error), EXPECTED)
