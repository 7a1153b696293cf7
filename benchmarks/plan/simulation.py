"""The served graph on a virtual clock: what becomes of edits that arrive, without a network, a server or a GPU.

`run.py` calls it. The engine's own CallQueue and the server's own LoadPolicy decide who shares a step, who is refused,
how long a call is expected to take and how many replicas there should be; how long a call takes is looked up.

    arrival ─► parse ─► [admission] ─► retrieve, condition ─► shared steps ─► decode ─► reply
                                  └──► encode ──────────────────┘

A replica here is one of every stage; in a cluster its networks share a GPU. Left out are previews, callers who leave,
and replicas that die. Serve's routers remember queue lengths for up to 10 s, while these always know them; a router
that looks at no queue (`choices=1`) is the other bound.

The events are callbacks on a clock of our own, not processes: a call begins at once with the edit that asks for it, and
does not wait for others that ask at the same moment. The figures depend on this order.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from statistics import mean
from typing import NamedTuple

import numpy as np

from benchmarks.plan.parts import (
    Action,
    Batches,
    Clock,
    Processor,
    SimulatedDenoiser,
    SimulatedEdit,
    Spread,
    SteadyPace,
)
from benchmarks.plan.scaling import DECIDE_S, NOTES, RECORD_S, REPORT_S, Scaler
from benchmarks.plan.traffic import Arrival
from fashion_rag.denoising.engine import WARM_UP_CALLS
from fashion_rag.denoising.pace import Pace
from fashion_rag.denoising.rows import Rows
from fashion_rag.denoising.scheduler import Limits
from fashion_rag.errors import DeadlineExceeded, Overloaded

Wait = Callable[[Action], None]  # Calls its argument when the wait is over.
Flow = Generator[Wait, None, None]

SIZE = (64, 48)  # All edits have this size.


@dataclass(frozen=True)
class System:
    """The system that is simulated.

    step_time_s: mean seconds of a UNet call by its rows, from the beginning of one to that of the next. step_spread:
    the p95 of a call's time as a multiple of its median. contention: as in `Curve`. stages_s: seconds of parse,
    retrieve, condition, encode, decode and reply, and of hops, which is all that lies between. limits: those of the
    denoiser. max_edits, deadline_s: those of the ingress. max_batch: that of the stages between. cores: those of the
    one machine that all replicas share, where each call is one thread's work; None for a cluster, where a replica has a
    GPU to itself and enough cores. choices: how many queues a router looks at.
    """

    step_time_s: dict[int, float]
    stages_s: dict[str, Spread]
    limits: Limits = field(default_factory=lambda: Limits(margin_s=0.5))
    max_edits: int = 24
    deadline_s: float = 300.0
    max_batch: int = 8
    cores: float | None = None
    choices: int = 2
    step_spread: float = 1.0
    contention: float = 1.0

    def call_s(self) -> list[float]:
        """Return the mean seconds of a UNet call of 0, 1, ... `max_rows` rows.

        They lie on a line between two known row counts, and grow in proportion beyond the largest.
        """
        known = sorted(self.step_time_s)
        rows = np.arange(self.limits.max_rows + 1)
        seconds = np.interp(rows, known, [self.step_time_s[num_rows] for num_rows in known])
        return [float(call_s) for call_s in seconds * np.maximum(1.0, rows / known[-1])]


class Served(NamedTuple):
    """An edit and its end: done after `latency_s`, or refused, or let in and late, or none of these at the end."""

    arrival: Arrival
    latency_s: float | None = None
    refused: bool = False
    late: bool = False


@dataclass
class SimulationResult:
    """The result of a simulation.

    edits: in the order of arrival. calls: the number of UNet calls by their rows. replicas: the times at which their
    number changed, and the number from then on, including those that are still starting. ended_s: when the last edit
    left, or the end of the simulation.
    """

    edits: list[Served]
    calls: Counter[int] = field(default_factory=Counter)
    replicas: list[tuple[float, int]] = field(default_factory=list)
    ended_s: float = 0.0

    @property
    def replica_hours(self) -> float:
        """Return the hours of all replicas, each from the decision to start it to that to stop it."""
        ends = [at_s for at_s, _ in self.replicas[1:]] + [self.ended_s]
        return sum((end - at_s) * num for (at_s, num), end in zip(self.replicas, ends, strict=True)) / 3600


class Stage:
    """One replica of a stage: its methods, and how many calls of them it has."""

    def __init__(self, methods: dict[str, Wait]) -> None:
        self.methods = methods
        self.num_ongoing = 0

    @contextmanager
    def call(self) -> Iterator[dict[str, Wait]]:
        """Yield the methods, and count as a call while the block runs."""
        self.num_ongoing += 1
        try:
            yield self.methods
        finally:
            self.num_ongoing -= 1


class Replica:
    """One replica of every stage, and the processors that they run on."""

    def __init__(self, system: System, clock: Clock, machine: Processor | None, calls: Counter[int], seed: str) -> None:
        self.system, self.rng = system, random.Random(seed)
        self.cpu = machine or Processor(clock, math.inf)
        gpu = machine or Processor(clock, 1)
        self.ingress = self._stage(Batches(self.cpu, 1, self.rng), "parse", "reply")
        self.retriever = self._stage(self._batches(self.cpu), "retrieve")
        self.conditioner = self._stage(self._batches(gpu), "condition")
        # Persons and latents are batched separately.
        encoding, decoding = self._stage(self._batches(gpu), "encode"), self._stage(self._batches(gpu), "decode")
        self.vae = Stage(encoding.methods | decoding.methods)
        call_s = system.call_s()
        # On a cluster the calls are steady except for those of other stages on the GPU, which are short.
        pace = _warm_pace(call_s) if machine else SteadyPace(call_s)
        spreads = [Spread.around(seconds, system.step_spread) for seconds in call_s]
        self.denoiser = SimulatedDenoiser(
            gpu, system.limits, lambda num_rows: spreads[num_rows].draw(self.rng), pace, calls
        )
        self.notes: deque[float] = deque(maxlen=NOTES)

    def _batches(self, processor: Processor) -> Batches:
        return Batches(processor, self.system.max_batch, self.rng)

    def _stage(self, batches: Batches, *methods: str) -> Stage:
        return Stage({method: partial(batches.ask, self.system.stages_s[method]) for method in methods})

    def hop(self, then: Action) -> None:
        """Wait for half of the time that lies between the stages."""
        self.cpu.run(self.system.stages_s["hops"].draw(self.rng) / 2, then)


def _warm_pace(call_s: Sequence[float]) -> Pace:
    """Return a pace as `Engine.warm_up` leaves it."""
    pace, max_rows = Pace(), len(call_s) - 1
    for num_rows in {min(1 << power, max_rows) for power in range(max_rows.bit_length() + 1)}:
        for _ in range(1, WARM_UP_CALLS):
            pace.record(Rows(num_rows), call_s[num_rows])
    return pace


class Graph:
    """The served graph: edits on their way through replicas. `simulate` makes one."""

    def __init__(self, system: System, num_replicas: int, seed: int, scaler: Scaler | None) -> None:
        self.system, self.scaler, self.seed = system, scaler, seed
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.result = SimulationResult([])
        self.machine = Processor(self.clock, system.cores, system.contention) if system.cores else None
        self.replicas: dict[int, Replica] = {}
        self.numbers = count()
        self.num_inside, self.coming = 0, False
        self.num_wanted = num_replicas
        self.reports: dict[int, float] = {}
        self.result.replicas.append((0.0, num_replicas))
        for _ in range(num_replicas):
            self._start()
        if scaler:
            self.clock.every(RECORD_S, self._note)
            self.clock.every(REPORT_S, self._report)
            self.clock.every(DECIDE_S, partial(self._scale, scaler))

    def come(self, arrivals: Iterator[Arrival]) -> bool:
        """Let the next edit come at its time, and then the one after it; return False if there is none."""
        arrival = next(arrivals, None)
        if arrival is None:
            return False
        number = len(self.result.edits)
        self.result.edits.append(Served(arrival))

        def begin() -> None:
            self.num_inside += 1
            _go(self._edit(number, arrival), self._leave)
            self.coming = self.come(arrivals)

        self.clock.after(arrival.at_s - self.clock.now, begin)
        return True

    def run(self, arrivals: Iterable[Arrival], until_s: float) -> SimulationResult:
        """Run until all edits have left, or until `until_s`; return the result."""
        self.coming = self.come(iter(arrivals))
        while (self.coming or self.num_inside) and self.clock.next(until_s):
            pass
        self.result.ended_s = self.clock.now
        return self.result

    def _leave(self) -> None:
        self.num_inside -= 1

    def _choose(self, num_ongoing: Callable[[Replica], int]) -> Replica:
        """Return the least loaded of `choices` replicas taken at random, as Serve's router does with two."""
        replicas = list(self.replicas.values())
        return min(self.rng.sample(replicas, min(len(replicas), self.system.choices)), key=num_ongoing)

    def _edit(self, number: int, arrival: Arrival) -> Flow:
        home = self._choose(lambda replica: replica.ingress.num_ongoing)
        if home.ingress.num_ongoing >= self.system.max_edits:
            self.result.edits[number] = Served(arrival, refused=True)
            return
        deadline = self.clock.now + self.system.deadline_s
        with home.ingress.call() as ingress:
            yield ingress["parse"]
            yield home.hop
            edit = SimulatedEdit(
                id=str(number),
                size=SIZE,
                rows=[Rows(arrival.num_rows)] * arrival.num_steps,
                arrived=self.clock.now,
                deadline=deadline,
            )
            denoiser = self._choose(lambda replica: replica.denoiser.num_ongoing).denoiser
            try:
                denoiser.add(edit)
            except (Overloaded, DeadlineExceeded):
                self.result.edits[number] = Served(arrival, refused=True)
                return
            yield _both(self._condition(), self._call("encode"))
            yield partial(denoiser.provide, edit)
            if not edit.failed:
                yield home.hop
                yield from self._call("decode")
                yield ingress["reply"]
        late = edit.failed or self.clock.now > deadline
        self.result.edits[number] = Served(arrival, None if late else self.clock.now - arrival.at_s, late=late)

    def _condition(self) -> Flow:
        with self._choose(lambda replica: replica.conditioner.num_ongoing).conditioner.call() as conditioner:
            with self._choose(lambda replica: replica.retriever.num_ongoing).retriever.call() as retriever:
                yield retriever["retrieve"]
            yield conditioner["condition"]

    def _call(self, method: str) -> Flow:
        with self._choose(lambda replica: replica.vae.num_ongoing).vae.call() as vae:
            yield vae[method]

    def _start(self) -> None:
        number = next(self.numbers)
        seed = f"{self.seed} {number}"
        self.replicas[number] = Replica(self.system, self.clock, self.machine, self.result.calls, seed)

    def _note(self) -> None:
        for replica in self.replicas.values():
            replica.notes.append(replica.denoiser.meter.read())

    def _report(self) -> None:
        self.reports = {number: mean(replica.notes) for number, replica in self.replicas.items() if replica.notes}

    def _scale(self, scaler: Scaler) -> None:
        reports = {number: load for number, load in self.reports.items() if number in self.replicas}
        wanted = scaler.target(self.clock.now, reports, len(self.replicas), self.num_wanted)
        if wanted == self.num_wanted:
            return
        for _ in range(wanted - self.num_wanted):
            self.clock.after(scaler.start_s, self._start_if_wanted)
        # The youngest replicas stop; they finish the edits that they have.
        for number in sorted(self.replicas)[wanted:]:
            del self.replicas[number]
        self.num_wanted = wanted
        self.result.replicas.append((self.clock.now, wanted))

    def _start_if_wanted(self) -> None:
        if len(self.replicas) < self.num_wanted:
            self._start()


def _go(flow: Flow, then: Action) -> None:
    """Follow a flow from wait to wait, and then call `then`."""
    wait = next(flow, None)
    if wait is None:
        then()
    else:
        wait(partial(_go, flow, then))


def _both(*flows: Flow) -> Wait:
    """Return a wait until all flows are over."""

    def wait(then: Action) -> None:
        left = count(len(flows) - 1, -1)
        for flow in flows:
            _go(flow, lambda: None if next(left) else then())

    return wait


def simulate(
    system: System,
    arrivals: Iterable[Arrival],
    num_replicas: int,
    seed: int,
    scaler: Scaler | None = None,
    until_s: float = math.inf,
) -> SimulationResult:
    """Return what becomes of `arrivals`, which are in order. scaler: changes the number of replicas, on a cluster."""
    return Graph(system, num_replicas, seed, scaler).run(arrivals, until_s)
