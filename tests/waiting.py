"""Waits for what another process, or another thread, brings about."""

import time
from collections.abc import Callable

PATIENCE_S = 300.0
LOOK_EVERY_S = 0.1


def wait_for(reached: Callable[[], object], explain: Callable[[], str] = str) -> None:
    """Return once `reached` says so; `explain` says in the error what there was instead."""
    end = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < end, f"it never came to that: {explain()}"
        time.sleep(LOOK_EVERY_S)
