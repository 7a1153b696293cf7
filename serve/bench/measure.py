"""Makes runs of loads: starts a graph if there is no server yet, warms it up, sends edits, and reads its metrics.

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
    """Edits that are to be sent, their rate, and for how many seconds they arrive; both None for edits of a trace."""

    planned: Sequence[Planned]
    rate: float | None = None
    window_s: float | None = None


@dataclass(frozen=True)
class Target:
    """A server that gets a load.

    url: without /v1. metrics_urls: of its nodes, where they are known. keys: API keys, used in turn. timeout_s: seconds
    after which the client gives an edit up.
    """

    url: str
    metrics_urls: Sequence[str] = ()
    keys: Sequence[str] = ()
    timeout_s: float = 300.0

    def send(
        self, planned: Sequence[Planned], photos: Photos, report: load.Report | None = None
    ) -> list[load.EditOutcome]:
        """Send the edits and return how they ended; see `load.run`."""
        return load.run(self.url, planned, photos, keys=self.keys, timeout_s=self.timeout_s, report=report)


@contextmanager
def graph(bundle: Path, catalogue: str | None, traced: bool = False, **settings: Any) -> Iterator[Target]:
    """Start a graph on this machine, yield it, and stop it after the block.

    traced: as for `app.start`. The other arguments are those of `app.run`.
    """
    catalogue = catalogue or str(ensure_demo_world(app.DEMO_WORLD, bundle))
    port = free_port()
    app.start(app.local_config(bundle, catalogue, **settings), "127.0.0.1", port, traced=traced)
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
    """Return a run of each load, one after the other. Raises InvalidRequest if the metrics cannot be read at first."""
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
            # The client's own figures are valid even if the server is gone now.
            after = None
        server = None
        if before is not None and after is not None:
            server = scrape.server_figures(before, after, _num_rows(outcomes))
        runs.append(Run(rate, outcomes, summarise(outcomes, objective_s, window_s), server))
        before = after
    return runs


def _num_rows(outcomes: Sequence[load.EditOutcome]) -> int | None:
    """Return the rows of the UNet calls made for these edits; None if some edits may have been given up half-way."""
    if any(outcome.kind == "failed" or outcome.reply.status == 504 for outcome in outcomes):
        return None
    return sum(outcome.planned.num_rows for outcome in outcomes if outcome.kind == "done")


def _settled(target: Target) -> scrape.Series | None:
    """Return the metrics once they hold all that has happened so far; None if no URLs are known."""
    if not target.metrics_urls:
        return None
    time.sleep(scrape.SETTLE_S)
    return scrape.scrape(target.metrics_urls)
