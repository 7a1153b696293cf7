"""What surrounds the work of a route: how its outcome is counted, and which errors mean that nothing was found."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ray.serve.metrics import Counter

from fashion_rag.errors import InvalidRequest, NotFound
from serve import metrics, tracing
from serve.http.errors import explained


@contextmanager
def counted(answered: Counter) -> Iterator[None]:
    """Count in `answered`, by HTTP status, how the block ends, and give the status to the span of the request."""
    status = 200
    try:
        yield
    except BaseException as error:
        status = explained(error)[1]
        raise
    finally:
        answered.inc(tags={"status": str(status)})
        tracing.answered(status)


@contextmanager
def edit_counted(arrived: float) -> Iterator[None]:
    """Count how the edit in the block ends, and observe how long one takes that succeeds.

    arrived: when the request came, in Unix time.
    """
    with counted(metrics.edits()):
        yield
    metrics.edit_seconds().observe(time.time() - arrived)


@contextmanager
def not_found_unless_known(garment_id: str) -> Iterator[None]:
    """Raise NotFound where the block raises InvalidRequest for an id that the catalogue does not have."""
    try:
        yield
    except InvalidRequest as error:
        raise NotFound("garment_id", f"no garment in the catalogue has the id {garment_id!r}") from error
