"""How many denoisers there should be. The policy runs in Serve's controller, with what the replicas' meters read.

    AutoscalingConfig(
        policy=AutoscalingPolicy(policy_function=LoadPolicy, policy_kwargs={"target_load": 0.7}),
        min_replicas=1,
        max_replicas=4,
    )

Neither requests, by which Serve counts, nor rows in flight say how much more a replica could do: it has few until it is
nearly full, and then very many. So what counts is the work that arrives. The other stages scale by Serve's own policy.
"""

import math
import time
from collections.abc import Callable
from typing import Any

from ray.serve.config import AutoscalingContext

# The key under which a replica's `record_autoscaling_stats` reports its load.
LOAD = "unet_load"


class WorkMeter:
    """Adds up the work that arrives at a replica. `clock` counts seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since, self._work_s = clock(), 0.0

    def add(self, work_s: float) -> None:
        """Return an edit has come that will take so many seconds of full UNet calls; refused ones count, too."""
        self._work_s += work_s

    def read(self) -> float:
        """Return the load since the last reading: seconds of work for each second; over 1 is more than the replica can
        do.
        """
        now = self._clock()
        load = self._work_s / (now - self._since) if now > self._since else 0.0
        self._since, self._work_s = now, 0.0
        return load


class LoadPolicy:
    """As many replicas as give each at most `target_load` of what it can do, on average over the look-back period.

    What is left of 1 is how fast a queue shrinks, and how much a replica may get by chance beyond its share.
    Delays, factors and bounds come from the AutoscalingConfig; Serve applies them to what this returns.
    Raises ValueError unless `target_load` is more than 0 and at most 1.
    """

    def __init__(self, target_load: float) -> None:
        if not 0 < target_load <= 1:
            raise ValueError(f"target_load: got {target_load}; must be more than 0 and at most 1")
        self.target_load = target_load

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Return the number of replicas wanted, and the state to be handed back: there is none."""
        loads = (context.aggregated_metrics or {}).get(LOAD, {})
        wanted = math.ceil(sum(loads.values()) / self.target_load)
        if len(loads) < max(1, context.current_num_replicas):
            # One that has not reported yet, as just after its start, may be full.
            wanted = max(wanted, context.target_num_replicas)
        return wanted, {}
