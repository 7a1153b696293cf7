"""The claim: the number of denoisers follows the load, up and down, and no edit is lost on the way.

Four Ray nodes run on this machine, a head and three workers with a GPU each that only Ray counts, with the Serve config
of k8s/overlays/gpu, the demo model and shorter delays (tests/cluster/rehearsal.py says what differs from KubeRay).
Callers pause between their edits, so that fewer edits come than two cores can do; the target is so low that they take
three denoisers all the same. This needs root, for network namespaces.

    python -m benchmarks.scaling --out benchmarks/results/scaling.json
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, Any

import matplotlib.pyplot as plt
import typer
from rich.console import Console

from fashion_rag.pipeline import Pipeline
from fashion_rag.provenance import provenance, write_figure, write_result
from tests.cluster import rehearsal
from tests.cluster.load import Load
from tests.cluster.nodes import Cluster, cluster
from tests.serve.client import expected

NUM_WORKERS = 3
NUM_MORE = 19  # callers who join the first
FIRST_PAUSE_S, MORE_PAUSE_S = 4.0, 12.0
TARGET_LOAD = 0.25
LOW_S, HIGH_S, AFTER_S = 20.0, 75.0, 90.0
STEPS = (4, 20, 9)
EVERY_S = 1.0


@dataclass(frozen=True)
class Sample:
    """The state at one time: callers, denoisers that run and that Serve wants, and edits answered so far."""

    at_s: float
    callers: int
    running: int
    wanted: int
    done: int


def main(out: Annotated[Path, typer.Option(help="JSON file to write; the plot goes beside it.")]) -> None:
    """Measure how denoisers follow the load, print it and write it."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        trace, load = measure(rehearsal.make_folders(Path(folder)))
    console.print(f"{load.num_done} edits, {len(load.failed)} failed, sent again {dict(load.again)}")
    console.print("denoisers:", " ".join(str(sample.running) for sample in trace))
    result = {
        "from": provenance(),
        "settings": {
            "workers": NUM_WORKERS,
            "more_callers": NUM_MORE,
            "pauses_s": [FIRST_PAUSE_S, MORE_PAUSE_S],
            "target_load": TARGET_LOAD,
            "delays": rehearsal.DELAYS,
        },
        "edits": load.num_done,
        "failed": load.failed,
        "sent_again": dict(load.again),
        "largest_difference": load.largest_difference,
        "trace": [asdict(sample) for sample in trace],
    }
    write_result(out, result)
    write_figure(out.with_suffix(".png"), draw(trace), dpi=120)


def measure(folders: dict[str, str]) -> tuple[list[Sample], Load]:
    """Return the samples, one a second, and the load."""
    graph, (group,) = rehearsal.read("gpu")
    pipeline = Pipeline.load(Path(folders["bundle"]), folders["catalogue"])
    edits = [{"seed": seed, "steps": steps} for seed, steps in enumerate(STEPS)]
    wanted = [expected(pipeline, **edit) for edit in edits]
    with cluster(rehearsal.ENVIRONMENT) as started:
        workers = [rehearsal.add_node(started, f"worker {number}", group) for number in range(NUM_WORKERS)]
        rehearsal.deploy(started, rehearsal.scaled_down(graph, folders, min_replicas=1, target_load=TARGET_LOAD))
        urls = [rehearsal.url(worker) for worker in workers]
        load = Load(urls, edits, wanted, rehearsal.HEADERS)
        with sampled(started, load) as trace, load.running(1, FIRST_PAUSE_S):
            time.sleep(LOW_S)
            with load.running(NUM_MORE, MORE_PAUSE_S):
                time.sleep(HIGH_S)
            time.sleep(AFTER_S)
        return trace, load


@contextmanager
def sampled(started: Cluster, load: Load) -> Iterator[list[Sample]]:
    """Yield a list that grows by a sample a second while the block runs."""
    trace: list[Sample] = []
    over, start = Event(), time.monotonic()

    def sample() -> None:
        while not over.wait(EVERY_S):
            denoiser = rehearsal.application(started)["deployments"]["Denoiser"]
            running = sum(replica["state"] == "RUNNING" for replica in denoiser["replicas"])
            at_s = round(time.monotonic() - start, 1)
            trace.append(Sample(at_s, load.num_callers, running, denoiser["target_num_replicas"], load.num_done))

    sampler = Thread(target=sample)
    sampler.start()
    try:
        yield trace
    finally:
        over.set()
        sampler.join()


def draw(trace: Sequence[Sample]) -> Any:
    """Draw callers and denoisers over time."""
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(8, 4.5), layout="constrained")
    at_s = [sample.at_s for sample in trace]
    above.step(at_s, [sample.callers for sample in trace], where="post", color="tab:grey")
    above.set_ylabel("callers")
    below.step(at_s, [sample.wanted for sample in trace], where="post", color="tab:orange", label="wanted")
    below.step(at_s, [sample.running for sample in trace], where="post", color="tab:blue", label="running")
    below.set_ylabel("denoisers")
    below.set_xlabel("seconds")
    below.set_ylim(bottom=0)
    below.legend()
    return figure


if __name__ == "__main__":
    typer.run(main)
