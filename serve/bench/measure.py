"""From loads to runs: starts a graph where there is no server yet, warms it up, sends, and reads its metrics.

`run` calls it.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import ray

from fashion_rag.demo.world.catalogue import ensure_demo_world
from fashion_rag.errors import InvalidRequest
from serve import app
from serve.bench import load, scrape
from serve.bench.mix import Photos, Planned
from serve.bench.report import Run, summarise
from serve.ports import free_port


class PlannedLoad(NamedTuple):
    """Edits to be sent, the rate at which they arrive and for how long; None for both where they come from a trace."""

    planned: Sequence[Planned]
    rate: float | None = None
    window_s: float | None = None


@dataclass(frozen=True)
class Target:
    """A server: its URL without /v1, where its nodes have their metrics, if that is known, and how it is asked.

    keys: API keys, used in turn. timeout_s: after which the client gives an edit up.
    """

    url: str
    metrics_urls: Sequence[str] = ()
    keys: Sequence[str] = ()
    timeout_s: float = 300.0

    def send(
        self, planned: Sequence[Planned], photos: Photos, report: load.Report | None = None
    ) -> list[load.EditOutcome]:
        """How the edits ended, see `load.run`."""
        return load.run(self.url, planned, photos, keys=self.keys, timeout_s=self.timeout_s, report=report)


@contextmanager
def graph(bundle: Path, catalogue: str | None, **settings: Any) -> Iterator[Target]:
    """A graph on this machine that serves as long as the block runs; arguments as of `app.run`."""
    catalogue = catalogue or str(ensure_demo_world(app.DEMO_WORLD, bundle))
    port = free_port()
    app.start(app.local_config(bundle, catalogue, **settings), "127.0.0.1", port)
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        metrics_urls = [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in nodes]
        yield Target(f"http://127.0.0.1:{port}", metrics_urls)
    finally:
        app.stop()


def warm_up(target: Target, planned: Sequence[Planned], photos: Photos) -> None:
    """Send edits all at once and forget them. Raises InvalidRequest if they all fail."""
    outcomes = target.send([replace(edit, at_s=0.0) for edit in planned], photos)
    if outcomes and all(outcome.kind == "failed" for outcome in outcomes):
        raise InvalidRequest("url", target.url, f"must answer edits; the first ended in: {outcomes[0].reply.failure}")


def measure(
    target: Target, loads: Sequence[PlannedLoad], photos: Photos, objective_s: float, report: load.Report | None = None
) -> list[Run]:
    """A run of each load, one after the other. Raises InvalidRequest where there are no metrics to read at first."""
    try:
        before = _settled(target)
    except httpx.HTTPError as error:
        raise InvalidRequest("metrics_url", target.metrics_urls, f"must have metrics: {error!r}") from error
    runs = []
    for planned, rate, window_s in loads:
        outcomes = target.send(planned, photos, report)
        try:
            after = _settled(target)
        except httpx.HTTPError:
            # What the client has seen is worth no less if the server is gone now.
            after = None
        server = None if before is None or after is None else scrape.server_figures(before, after, _num_rows(outcomes))
        runs.append(Run(rate, outcomes, summarise(outcomes, objective_s, window_s), server))
        before = after
    return runs


def _num_rows(outcomes: Sequence[load.EditOutcome]) -> int | None:
    """Rows of the UNet calls that were made for these edits; None where some may have been given up half-way."""
    if any(outcome.kind == "failed" or outcome.reply.status == 504 for outcome in outcomes):
        return None
    return sum(outcome.planned.num_rows for outcome in outcomes if outcome.kind == "done")


def _settled(target: Target) -> scrape.Series | None:
    """The metrics once they hold all that has happened so far; None where there are none to read."""
    if not target.metrics_urls:
        return None
    time.sleep(scrape.SETTLE_S)
    return scrape.scrape(target.metrics_urls)
