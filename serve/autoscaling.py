"""How many denoisers there should be. Runs in Serve's controller, with the counts that the replicas report.

    AutoscalingConfig(
        policy=AutoscalingPolicy(policy_function=RowsPolicy, policy_kwargs={"target_rows": 8}),
        min_replicas=1,
        max_replicas=4,
    )

A guided edit is two rows of the UNet's batch and an unguided one is one, so requests, by which Serve counts, say little
about how full a batch is. The other stages scale by Serve's own policy.
"""

import math
from typing import Any

from ray.serve.config import AutoscalingContext

# The key under which a replica's `record_autoscaling_stats` reports its rows, running and waiting.
ROWS = "unet_rows"
# An edit that waits for a replica has not told yet; most are guided.
ROWS_PER_QUEUED_EDIT = 2


class RowsPolicy:
    """As many replicas as give each at most `target_rows` of the rows in flight, on average over the look-back period.

    Delays, factors and bounds come from the AutoscalingConfig; Serve applies them to what this returns.
    Raises ValueError unless `target_rows` is more than 0.
    """

    def __init__(self, target_rows: float) -> None:
        if not target_rows > 0:
            raise ValueError(f"target_rows: got {target_rows}; must be more than 0")
        self.target_rows = target_rows

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas wanted, and the state to be handed back: there is none."""
        rows = (context.aggregated_metrics or {}).get(ROWS, {})
        num_rows = sum(rows.values()) + ROWS_PER_QUEUED_EDIT * context.total_queued_requests
        wanted = math.ceil(num_rows / self.target_rows)
        if len(rows) < max(1, context.current_num_replicas):
            # One that has not reported yet, as just after its start, may be full.
            wanted = max(wanted, context.target_num_replicas)
        return wanted, {}
