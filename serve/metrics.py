"""What the replicas count and time, for Prometheus. Each function returns its metric, made at its first use.

Ray exports them as `ray_fashion_rag_...` on every node, with the tags application, deployment and replica added.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from time import perf_counter

from ray.serve.metrics import Counter, Gauge, Histogram

# From a hop between replicas to an edit at full size on a CPU.
SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300]
ROWS = [1.0, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64]


@cache
def stage_seconds() -> Histogram:
    """Return how long a stage had an edit, waiting for its batch included."""
    return Histogram("fashion_rag_stage_seconds", "Time of an edit in a stage", SECONDS, ("stage",))


@cache
def edit_seconds() -> Histogram:
    """From the arrival of an edit that succeeded to its picture."""
    return Histogram("fashion_rag_edit_seconds", "Time of a whole edit", SECONDS)


@cache
def first_preview_seconds() -> Histogram:
    return Histogram("fashion_rag_first_preview_seconds", "Time from arrival to the first preview", SECONDS)


@cache
def step_seconds() -> Histogram:
    return Histogram("fashion_rag_step_seconds", "Time of a UNet call", SECONDS)


@cache
def queue_seconds() -> Histogram:
    """From the moment the denoiser has all that it needs of an edit to the end of its first step."""
    return Histogram("fashion_rag_queue_seconds", "Time until an edit's first step is done", SECONDS)


@cache
def rows_per_step() -> Histogram:
    return Histogram("fashion_rag_rows_per_step", "Rows in a UNet call", ROWS)


@cache
def rows_in_flight() -> Gauge:
    """Return rows of the edits that the denoiser has taken on, running or waiting."""
    return Gauge("fashion_rag_rows_in_flight", "UNet rows of the edits taken on")


@cache
def load() -> Gauge:
    """Return seconds of full UNet calls that the edits of a second ask for; denoisers are scaled by this."""
    return Gauge("fashion_rag_load", "UNet work that arrives, as a share of what the replica can do")


@cache
def edits_waiting() -> Gauge:
    return Gauge("fashion_rag_edits_waiting", "Edits for which the next UNet call has no room")


@cache
def edits() -> Counter:
    """Return the edits that have been answered, by HTTP status; 499 is a caller who left before."""
    return Counter("fashion_rag_edits", "Edits answered", ("status",))


@cache
def refusals() -> Counter:
    return Counter("fashion_rag_refusals", "Edits refused for want of room or time", ("stage",))


@cache
def cancellations() -> Counter:
    return Counter("fashion_rag_cancellations", "Edits left by their callers", ("stage",))


@cache
def retries() -> Counter:
    return Counter("fashion_rag_retries", "Calls made again because a replica died", ("stage",))


@cache
def repeats() -> Counter:
    """Return the edits that had been made before, so that their latents were still there."""
    return Counter("fashion_rag_repeats", "Edits answered from kept results")


@cache
def cache_lookups() -> Counter:
    """Return the garments whose pseudo-words were wanted; outcome: stored in the catalogue, or else hit or miss in the
    cache.
    """
    return Counter("fashion_rag_cache_lookups", "Garments looked up in the cache", ("outcome",))


def count_lookups(**outcomes: int) -> None:
    """Count garments by the outcome of looking for their pseudo-words."""
    for outcome, number in outcomes.items():
        # Ray's counters refuse to count nothing.
        if number:
            cache_lookups().inc(number, tags={"outcome": outcome})


@contextmanager
def timed(stage: str) -> Iterator[dict[str, float]]:
    """Observes how long the block takes in `stage_seconds`; afterwards the dict has it, in seconds, under `stage`."""
    timings_s: dict[str, float] = {}
    started = perf_counter()
    try:
        yield timings_s
    finally:
        timings_s[stage] = perf_counter() - started
        stage_seconds().observe(timings_s[stage], tags={"stage": stage})
