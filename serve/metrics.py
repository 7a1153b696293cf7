"""The metrics of the replicas, for Prometheus. Each function returns a metric, which is made at its first use.

Ray exports them as `ray_fashion_rag_...` on every node, with the tags application, deployment and replica added.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from time import perf_counter

from ray.serve.metrics import Counter, Gauge, Histogram

# Bounds from a call between replicas to an edit at full size on a CPU.
SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300]
ROWS = [1.0, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64]


@cache
def stage_seconds() -> Histogram:
    """Return the histogram of how long a stage had an edit, waiting for its batch included."""
    return Histogram("fashion_rag_stage_seconds", "Time of an edit in a stage", SECONDS, ("stage",))


@cache
def edit_seconds() -> Histogram:
    """Return the histogram of the time from the arrival of an edit that succeeds to its picture."""
    return Histogram("fashion_rag_edit_seconds", "Time of a whole edit", SECONDS)


@cache
def first_preview_seconds() -> Histogram:
    """Return the histogram of the time from the arrival of an edit to its first preview."""
    return Histogram("fashion_rag_first_preview_seconds", "Time from arrival to the first preview", SECONDS)


@cache
def step_seconds() -> Histogram:
    """Return the histogram of how long a UNet call takes."""
    return Histogram("fashion_rag_step_seconds", "Time of a UNet call", SECONDS)


@cache
def queue_seconds() -> Histogram:
    """Return the histogram of the time from an edit's being ready to be denoised to the end of its first step."""
    return Histogram("fashion_rag_queue_seconds", "Time until an edit's first step is done", SECONDS)


@cache
def rows_per_step() -> Histogram:
    """Return the histogram of the rows in a UNet call."""
    return Histogram("fashion_rag_rows_per_step", "Rows in a UNet call", ROWS)


@cache
def rows_in_flight() -> Gauge:
    """Return the gauge of the rows of the edits that the denoiser has taken on, running or waiting."""
    return Gauge("fashion_rag_rows_in_flight", "UNet rows of the edits taken on")


@cache
def load() -> Gauge:
    """Return the gauge of the seconds of full UNet calls that arrive in a second; denoisers are scaled by it."""
    return Gauge("fashion_rag_load", "UNet work that arrives, as a share of what the replica can do")


@cache
def edits_waiting() -> Gauge:
    """Return the gauge of the edits for which the next UNet call has no room."""
    return Gauge("fashion_rag_edits_waiting", "Edits for which the next UNet call has no room")


@cache
def edits() -> Counter:
    """Return the counter of answered edits by HTTP status; 499 stands for a caller who left before the answer."""
    return Counter("fashion_rag_edits", "Edits answered", ("status",))


@cache
def refusals() -> Counter:
    """Return the counter of edits that a stage refused because it had no room or too little time."""
    return Counter("fashion_rag_refusals", "Edits refused for want of room or time", ("stage",))


@cache
def cancellations() -> Counter:
    """Return the counter of edits whose callers left before they were finished."""
    return Counter("fashion_rag_cancellations", "Edits left by their callers", ("stage",))


@cache
def retries() -> Counter:
    """Return the counter of calls of a stage that were made again because a replica died."""
    return Counter("fashion_rag_retries", "Calls made again because a replica died", ("stage",))


@cache
def repeats() -> Counter:
    """Return the counter of edits whose latents were kept from the same edit before."""
    return Counter("fashion_rag_repeats", "Edits answered from kept results")


@cache
def cache_lookups() -> Counter:
    """Return the counter of garments whose pseudo-words were looked up, by outcome.

    outcome: `stored` in the catalogue, or else a `hit` or a `miss` in the cache.
    """
    return Counter("fashion_rag_cache_lookups", "Garments looked up in the cache", ("outcome",))


@cache
def photo_lookups() -> Counter:
    """Return the counter of photos of which the parser looked up what it had read in them, by outcome.

    outcome: a `hit` or a `miss` in the cache, or `joined` where the photo was being read for another request.
    """
    return Counter("fashion_rag_photo_lookups", "Photos looked up among those that were read", ("outcome",))


@cache
def masks() -> Counter:
    """Return the counter of answered requests for a mask, by HTTP status as in `edits`."""
    return Counter("fashion_rag_masks", "Requests for masks answered", ("status",))


def count_lookups(**outcomes: int) -> None:
    """Count garments in `cache_lookups` by their outcomes."""
    for outcome, number in outcomes.items():
        # Ray's counters refuse to be increased by 0.
        if number:
            cache_lookups().inc(number, tags={"outcome": outcome})


@contextmanager
def timed(stage: str) -> Iterator[dict[str, float]]:
    """Observe in `stage_seconds` how long the block takes. The dict has the seconds under `stage` after the block."""
    timings_s: dict[str, float] = {}
    started = perf_counter()
    try:
        yield timings_s
    finally:
        timings_s[stage] = perf_counter() - started
        stage_seconds().observe(timings_s[stage], tags={"stage": stage})
