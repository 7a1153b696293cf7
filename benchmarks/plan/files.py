"""The files that `run.py` reads: what is known of a device, and loads that were measured.

{"calibration": {"device": ..., "source": ..., "measured": true, "step_time_s": {"1": 0.02, ...},
                 "stages_s": {"parse": {"median": 0.001, "p95": 0.002}, ...}},
 "server": {"max_rows": 8, "num_replicas": 1, "cores": 2, ...},
 "runs": [{"rate": 1.0, "duration_s": 60.0, "arrivals": [[0.4, 20, 7.5], ...],
           "measured": {"p50_s": ..., "p95_s": ..., "p99_s": ..., "throughput": ..., "refused": 0}}, ...]}
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from benchmarks.plan.parts import Spread
from benchmarks.plan.simulation import System
from benchmarks.plan.traffic import Arrival
from fashion_rag.denoising.scheduler import Limits

T = TypeVar("T")

STAGES = ("parse", "retrieve", "condition", "encode", "decode", "reply", "hops")


@dataclass(frozen=True)
class Curve:
    """What is known of a device: the `calibration` of a measurement, or a file of its own.

    source: where the figures come from, in words. measured: whether they were measured on the device.
    step_time_s: mean seconds of a UNet call by its rows, from the beginning of one to that of the next while there is
    work. contention: how many times as long a call takes while another core works, because they share memory and
    caches; of use only for a machine whose cores all replicas share.
    stages_s: seconds of an edit alone in each of STAGES. parse and reply are the ingress's own work on a form and on a
    reply (`edit_requests`, `edit_reply`). hops is the latency of an edit alone less its steps, parse, decode, reply,
    and the longer of its two branches, which run side by side: encode, and retrieve with condition.

    Raises ValueError, naming the field, for stages that are missing or unknown.
    """

    device: str
    source: str
    measured: bool
    step_time_s: dict[int, float]
    stages_s: dict[str, Spread]
    contention: float = 1.0

    def __post_init__(self) -> None:
        if self.stages_s.keys() != set(STAGES):
            raise ValueError(f"stages_s: got {sorted(self.stages_s)}; must be {sorted(STAGES)}")
        if not self.step_time_s or min(self.step_time_s) < 1 or min(self.step_time_s.values()) <= 0:
            raise ValueError(f"step_time_s: got {self.step_time_s}; must be seconds above 0 by rows from 1 on")
        if not self.contention >= 1:
            raise ValueError(f"contention: got {self.contention}; must be at least 1")


@dataclass(frozen=True)
class ServerSetup:
    """The settings of a server, with its own defaults: see DenoiserSettings, IngressSettings and BatchSettings.

    num_replicas: replicas of every stage. cores, choices: see `System`; cores may be a little fewer than there are, for
    the client and Ray's own processes.
    """

    max_rows: int = 8
    max_waiting: int = 16
    patience_s: float = 60.0
    margin_s: float = 0.5
    slack: float = 0.1
    max_edits: int = 24
    deadline_s: float = 300.0
    max_batch: int = 8
    num_replicas: int = 1
    cores: float | None = None
    choices: int = 2

    def system(self, curve: Curve) -> System:
        """Return the system that is to be simulated."""
        limits = Limits(self.max_rows, self.max_waiting, self.patience_s, self.margin_s, self.slack)
        return System(
            step_time_s=curve.step_time_s,
            stages_s=curve.stages_s,
            limits=limits,
            max_edits=self.max_edits,
            deadline_s=self.deadline_s,
            max_batch=self.max_batch,
            cores=self.cores,
            choices=self.choices,
            contention=curve.contention,
        )


@dataclass(frozen=True)
class Figures:
    """The figures of a load.

    p50_s, p95_s, p99_s: seconds from intended arrival to answer. throughput: edits answered a second, within the time
    in which edits came. refused: how many were, or were late. rows_per_call: mean rows of a UNet call, where they are
    known.
    """

    p50_s: float
    p95_s: float
    p99_s: float
    throughput: float
    refused: int
    rows_per_call: float | None = None


@dataclass(frozen=True)
class MeasuredLoad:
    """A load that was measured.

    arrivals: [at_s, num_steps, guidance_scale] of every edit, in order. held_out: whether the model was made without
    any load of this rate at hand.
    """

    rate: float
    duration_s: float
    arrivals: list[Arrival]
    measured: Figures
    held_out: bool = False


@dataclass(frozen=True)
class Measurement:
    """The file that `validate` reads. It may have further fields, which are passed over."""

    calibration: Curve
    runs: list[MeasuredLoad]
    server: ServerSetup = field(default_factory=ServerSetup)


def read(kind: type[T], path: Path) -> T:
    """Return the Curve or Measurement in a JSON file. Raises pydantic.ValidationError, naming the field."""
    content: T = TypeAdapter(kind).validate_json(path.read_bytes())
    return content
