"""Holds the number of denoisers to the rows that they report, in contexts like Serve's."""

from collections.abc import Sequence
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from serve.autoscaling import ROWS, RowsPolicy

DENOISER = DeploymentID("Denoiser")


def context(
    rows: Sequence[float], queued: float = 0.0, running: int | None = None, target: int | None = None, **others: Any
) -> AutoscalingContext:
    """What Serve tells the policy when the first replicas report `rows`. All replicas have reported unless said."""
    running = len(rows) if running is None else running
    replicas = [ReplicaID(f"replica-{number}", DENOISER) for number in range(running)]
    reports = {ROWS: dict(zip(replicas, rows, strict=False))} if rows else {}
    return AutoscalingContext(
        deployment_id=DENOISER,
        deployment_name="Denoiser",
        app_name="default",
        current_num_replicas=running,
        target_num_replicas=running if target is None else target,
        running_replicas=replicas,
        # Functions, as from Serve.
        total_num_requests=lambda: 100.0,
        total_queued_requests=lambda: queued,
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
    ("rows", "queued", "wanted"),
    [
        ([0.0], 0.0, 0),
        ([8.0], 0.0, 1),
        ([8.1], 0.0, 2),
        ([16.0, 0.0], 0.0, 2),
        ([3.0, 5.0], 0.0, 1),
        ([16.0, 16.0], 0.0, 4),
        # A queued edit has two rows.
        ([8.0], 1.0, 2),
        ([0.0], 4.0, 1),
        ([0.0], 4.1, 2),
    ],
)
def test_the_rows_in_flight_say_how_many_replicas(rows: list[float], queued: float, wanted: int) -> None:
    assert RowsPolicy(target_rows=8)(context(rows, queued)) == (wanted, {})


def test_other_figures_of_the_replicas_do_not_count() -> None:
    assert RowsPolicy(target_rows=8)(context([4.0], running_requests={"replica-0": 50.0}))[0] == 1


@pytest.mark.parametrize(
    ("rows", "running", "target", "wanted"),
    [
        # Nobody has reported: after a restart of the controller.
        ([], 3, 3, 3),
        # Nobody runs, and nobody reports: at the start, or where all have died.
        ([], 0, 2, 2),
        # One has just started.
        ([1.0], 2, 2, 2),
        # What has been reported may still ask for more.
        ([30.0], 2, 2, 4),
        # Those still to start do not keep the number up.
        ([1.0], 1, 3, 1),
    ],
)
def test_a_replica_that_has_not_reported_holds_the_number(
    rows: list[float], running: int, target: int, wanted: int
) -> None:
    assert RowsPolicy(target_rows=8)(context(rows, running=running, target=target))[0] == wanted


def test_queued_edits_count_while_nobody_has_reported() -> None:
    assert RowsPolicy(target_rows=8)(context([], queued=12.0, running=1))[0] == 3


def test_the_policy_is_the_same_in_the_controller() -> None:
    policy = AutoscalingPolicy(policy_function=RowsPolicy, policy_kwargs={"target_rows": 4})
    # Serve sends the class by value, and makes the object there.
    sent = AutoscalingConfig(min_replicas=1, max_replicas=4, policy=policy).policy
    assert sent.get_policy()(**sent.policy_kwargs)(context([12.0])) == (3, {})


@pytest.mark.parametrize("target_rows", [0, -1.0, float("nan")])
def test_a_target_that_cannot_be_met_is_refused(target_rows: float) -> None:
    with pytest.raises(ValueError, match="target_rows"):
        RowsPolicy(target_rows)
