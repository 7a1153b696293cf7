"""How many replicas Serve would keep: the project's rule with Serve's own delays, on a clock that is handed in.

`simulation.py` asks it about the replicas that it simulates, and `run.py` about a day.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.serve._private.common import DeploymentID
from ray.serve.autoscaling_policy import _apply_delay_logic
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from serve.autoscaling import LOAD, LoadPolicy

# Serve's defaults: a replica notes its load, and sends its notes of the look-back period; the controller decides. The
# controller does so ten times a second, which makes no difference to delays of seconds.
RECORD_S, REPORT_S, LOOK_BACK_S, DECIDE_S = 6.0, 10.0, 30.0, 1.0
NOTES = round(LOOK_BACK_S / RECORD_S)

DENOISER = DeploymentID("Denoiser")


@dataclass(frozen=True)
class Scaling:
    """The rule's settings: fields of ServeConfig, with its defaults.

    start_s: seconds from the decision for a replica until it takes edits.
    """

    target_load: float = 0.7
    upscale_delay_s: float = 10.0
    downscale_delay_s: float = 300.0
    start_s: float = 60.0


class Scaler:
    """The rule for one deployment, which wants from 1 to `max_replicas` replicas."""

    def __init__(self, scaling: Scaling, max_replicas: int) -> None:
        self.policy = LoadPolicy(scaling.target_load)
        self.config = AutoscalingConfig(
            max_replicas=max_replicas,
            upscale_delay_s=scaling.upscale_delay_s,
            downscale_delay_s=scaling.downscale_delay_s,
        )
        self.start_s = scaling.start_s
        self._state: dict[str, Any] = {}

    def target(self, now: float, loads: Mapping[int, float], num_running: int, num_wanted: int) -> int:
        """Return how many replicas are wanted, where `num_wanted` were until now.

        loads: the mean of the loads that a replica has noted, by its number, without those that have not reported.
        """
        context = self._context(now, loads, num_running, num_wanted)
        wanted, _ = self.policy(context)
        delayed, self._state = _apply_delay_logic(wanted, num_wanted, self.config, self._state, now)
        return min(max(1, delayed), self.config.max_replicas)

    def _context(self, now: float, loads: Mapping[int, float], num_running: int, num_wanted: int) -> AutoscalingContext:
        reports: Any = dict(loads)  # Keys are numbers, where Serve has longer names.
        return AutoscalingContext(
            deployment_id=DENOISER,
            deployment_name=DENOISER.name,
            app_name=DENOISER.app_name,
            current_num_replicas=num_running,
            target_num_replicas=num_wanted,
            running_replicas=list(reports),
            total_num_requests=0.0,
            # A replica may have far more calls than it takes edits, so none waits at a router.
            total_queued_requests=0.0,
            aggregated_metrics={LOAD: reports},
            raw_metrics={},
            capacity_adjusted_min_replicas=1,
            capacity_adjusted_max_replicas=self.config.max_replicas,
            policy_state=self._state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=now,
            config=self.config,
        )
