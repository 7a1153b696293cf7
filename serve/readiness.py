"""Whether the stages of a graph answer, and what an operator should change. The ingress's `/readyz` asks."""

import asyncio
import math

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

READY_TIMEOUT_S = 5.0
# How much longer than its denoising an edit takes: the stages before and after it, and steps slower than at the start.
SPARE = 1.2


async def is_answering(stage: DeploymentHandle) -> bool:
    """Return whether a replica of the stage answers within READY_TIMEOUT_S."""
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            await stage.ping.remote()
    except (TimeoutError, RayError, RayServeException):
        return False
    return True


def deadline_warnings(edit_s: float, num_steps: int, deadline_s: float) -> list[str]:
    """Return a line where an edit of the bundle's default steps, which takes `edit_s` alone, has no time to finish."""
    if SPARE * edit_s <= deadline_s:
        return []
    enough_s = math.ceil(2 * edit_s / 10) * 10
    takes = f"an edit with the bundle's {num_steps} steps takes {edit_s:.0f} s here when it is alone"
    return [f"{takes}, but deadline_s allows {deadline_s:g} s: raise ingress.deadline_s and drain_s to {enough_s}"]
