"""Decides how many denoisers there should be. The policy runs in Serve's controller, on what the replicas report.

    AutoscalingConfig(
        policy=AutoscalingPolicy(policy_function=LoadPolicy, policy_kwargs={"target_load": 0.7}),
        min_replicas=1,
        max_replicas=4,
    )

Neither the number of requests, which Serve's own policy counts, nor the rows in flight say how much more a replica
could do: both are small until it is nearly full, and then very large. So this policy counts the work that arrives. The
other stages scale by Serve's own policy.
"""

import math
import time
from collections.abc import Callable
from typing import Any

from ray.serve.config import AutoscalingContext

# The key under which a replica's `record_autoscaling_stats` reports its load.
LOAD = "unet_load"


class WorkMeter:
    """Adds up the work that arrives at a replica. `clock` returns the time in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since, self._work_s = clock(), 0.0

    def add(self, work_s: float) -> None:
        """Count an edit that takes `work_s` seconds of full UNet calls. Edits that are refused count as well."""
        self._work_s += work_s

    def read(self) -> float:
        """Return the load since the last reading, in seconds of work a second. Above 1, the replica cannot keep up."""
        now = self._clock()
        load = self._work_s / (now - self._since) if now > self._since else 0.0
        self._since, self._work_s = now, 0.0
        return load


class LoadPolicy:
    """Asks for so many replicas that each has a load of at most `target_load`, averaged over the look-back period.

    The rest, up to a load of 1, lets a queue shrink, and lets a replica get more than its share by chance. Delays,
    factors and bounds come from the AutoscalingConfig, and Serve applies them to what this returns. Raises ValueError
    unless `target_load` is more than 0 and at most 1.
    """

    def __init__(self, target_load: float) -> None:
        if not 0 < target_load <= 1:
            raise ValueError(f"target_load: got {target_load}; must be more than 0 and at most 1")
        self.target_load = target_load

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Return the number of replicas that there should be, and the state of this policy, which has none."""
        loads = (context.aggregated_metrics or {}).get(LOAD, {})
        num_replicas = math.ceil(sum(loads.values()) / self.target_load)
        if len(loads) < max(1, context.current_num_replicas):
            # A replica that has not reported yet, as just after its start, may be full.
            num_replicas = max(num_replicas, context.target_num_replicas)
        return num_replicas, {}
