"""Tests the number of denoisers for the loads that they report, in contexts like Serve's."""

from collections.abc import Sequence
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from serve.autoscaling import LOAD, LoadPolicy, WorkMeter

DENOISER = DeploymentID("Denoiser")


def context(
    loads: Sequence[float], running: int | None = None, target: int | None = None, **others: Any
) -> AutoscalingContext:
    """Return the context in which Serve calls the policy when the first replicas have reported `loads`.

    running: how many replicas there are, by default as many as loads.
    """
    running = len(loads) if running is None else running
    replicas = [ReplicaID(f"replica-{number}", DENOISER) for number in range(running)]
    reports = {LOAD: dict(zip(replicas, loads, strict=False))} if loads else {}
    return AutoscalingContext(
        deployment_id=DENOISER,
        deployment_name="Denoiser",
        app_name="default",
        current_num_replicas=running,
        target_num_replicas=running if target is None else target,
        running_replicas=replicas,
        # Functions, as from Serve.
        total_num_requests=lambda: 100.0,
        total_queued_requests=lambda: 0.0,
        aggregated_metrics=lambda: reports | others,
        raw_metrics=dict,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=0.0,
        config=None,
    )


@pytest.mark.parametrize(
    ("loads", "wanted"),
    [
        ([0.0], 0),
        ([0.5], 1),
        ([0.51], 2),
        ([1.0, 0.0], 2),
        ([0.2, 0.3], 1),
        # More than they can do: what they refuse counts.
        ([1.0, 1.0], 4),
        ([1.6, 0.9], 5),
    ],
)
def test_the_work_that_arrives_says_how_many_replicas(loads: list[float], wanted: int) -> None:
    assert LoadPolicy(target_load=0.5)(context(loads)) == (wanted, {})


def test_other_figures_of_the_replicas_do_not_count() -> None:
    assert LoadPolicy(target_load=0.5)(context([0.4], running_requests={"replica-0": 50.0}))[0] == 1


def test_a_meter_reads_the_work_since_its_last_reading() -> None:
    now = 100.0
    meter = WorkMeter(lambda: now)
    meter.add(3.0)
    meter.add(1.5)
    now = 106.0
    assert meter.read() == 0.75
    # At once again: no time, no work.
    assert meter.read() == 0.0
    now = 108.0
    assert meter.read() == 0.0


@pytest.mark.parametrize(
    ("loads", "running", "target", "wanted"),
    [
        # Nobody has reported: after a restart of the controller.
        ([], 3, 3, 3),
        # Nobody runs, and nobody reports: at the start, or where all have died.
        ([], 0, 2, 2),
        # One has just started.
        ([0.1], 2, 2, 2),
        # What has been reported may still ask for more.
        ([2.0], 2, 2, 4),
        # Those still to start do not keep the number up.
        ([0.1], 1, 3, 1),
    ],
)
def test_a_replica_that_has_not_reported_holds_the_number(
    loads: list[float], running: int, target: int, wanted: int
) -> None:
    assert LoadPolicy(target_load=0.5)(context(loads, running=running, target=target))[0] == wanted


def test_the_policy_is_the_same_in_the_controller() -> None:
    policy = AutoscalingPolicy(policy_function=LoadPolicy, policy_kwargs={"target_load": 0.25})
    # Serve sends the class by value, and makes the object there.
    sent = AutoscalingConfig(min_replicas=1, max_replicas=4, policy=policy).policy
    assert sent.get_policy()(**sent.policy_kwargs)(context([0.7])) == (3, {})


@pytest.mark.parametrize("target_load", [0, -1.0, 1.1, float("nan")])
def test_a_target_that_cannot_be_met_is_refused(target_load: float) -> None:
    with pytest.raises(ValueError, match="target_load"):
        LoadPolicy(target_load)
