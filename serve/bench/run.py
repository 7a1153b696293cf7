"""`fashion-rag bench`, from its settings to the result on disk. The command line calls it."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fashion_rag.bundle import Bundle
from fashion_rag.errors import ArtifactError, InvalidRequest
from fashion_rag.provenance import provenance, write_figure, write_result
from serve.bench import load
from serve.bench.drawn import draw_photos
from serve.bench.measure import PlannedLoad, Target, graph, measure, warm_up
from serve.bench.mix import EditMix, draw, poisson, read_trace, write_trace
from serve.bench.report import Run, markdown
from serve.http.auth import read_keys


@dataclass(frozen=True)
class BenchSettings:
    """The edits that are sent, the server that gets them, and the files that the result goes to.

    out: JSON file; its table goes beside it. bundle: photos have its size; a server that is started serves it.
    trace: file whose edits are sent, instead of any drawn from `mix`. save_trace: file for the edits that are sent.
    url: that of the server, without /v1; None to start one, which `catalogue`, `backend` and `compiled` are for.
    num_warm_up: edits sent before the clock starts. metrics_urls: those of the nodes of a server that is not started
    here.
    """

    out: Path
    bundle: Path
    mix: EditMix
    rates: Sequence[float]
    duration_s: float
    seed: int
    num_warm_up: int
    objective_s: float
    timeout_s: float
    url: str | None = None
    catalogue: str | None = None
    backend: str | None = None
    compiled: Path | None = None
    trace: Path | None = None
    save_trace: Path | None = None
    api_keys: Path | None = None
    metrics_urls: Sequence[str] = ()
    plot: Path | None = None

    def __post_init__(self) -> None:
        if self.plot and importlib.util.find_spec("matplotlib") is None:
            raise InvalidRequest("plot", str(self.plot), "needs matplotlib: pip install matplotlib")
        if self.url and (self.catalogue or self.compiled or self.backend):
            raise InvalidRequest("url", self.url, "must go without catalogue, backend, compiled: nothing is started")
        if self.save_trace and not self.trace and len(self.rates) > 1:
            raise InvalidRequest("rate", self.rates, "must be a single one where a trace is saved")


def run(
    settings: BenchSettings,
    drawing: Callable[[int], AbstractContextManager[Callable[[], None]]],
    sending: Callable[[int], AbstractContextManager[load.Report]],
) -> list[Run]:
    """Return a run of each load, one after the other.

    drawing, sending: show progress while they are entered; they are given the number of photos, or of edits, and give
    what is to be called after each. Raises InvalidRequest for edits that cannot be sent and for a server that does not
    answer, ArtifactError for a bundle or catalogue that cannot be served.
    """
    loads = _plan(settings)
    edits = [edit for load_of_rate in loads for edit in load_of_rate.planned]
    with drawing(len({(edit.category, edit.person) for edit in edits})) as advance:
        photos = draw_photos(edits, Bundle.open(settings.bundle).manifest, advance)
    with _target(settings) as target:
        warm_up(target, edits[: settings.num_warm_up], photos)
        with sending(len(edits)) as report:
            return measure(target, loads, photos, settings.objective_s, report)


def write(settings: BenchSettings, runs: Sequence[Run]) -> str:
    """Write the figures, the table and the plot of the runs; return the table."""
    records = [run.as_record() for run in runs]
    write_result(settings.out, {"from": provenance(), "server": settings.url, "runs": records})
    table = markdown(runs)
    settings.out.with_suffix(".md").write_text(table)
    if settings.plot:
        # This needs matplotlib, which not everyone has.
        from serve.bench.plot import plot

        write_figure(settings.plot, plot(runs))
    return table


def _plan(settings: BenchSettings) -> list[PlannedLoad]:
    if settings.trace:
        loads = [PlannedLoad(read_trace(settings.trace))]
    else:
        mix, duration_s, seed = settings.mix, settings.duration_s, settings.seed
        loads = []
        for rate in settings.rates:
            loads.append(PlannedLoad(draw(mix, poisson(rate, duration_s, seed), seed), rate, duration_s))
    if settings.save_trace:
        write_trace(settings.save_trace, loads[0].planned)
    return loads


@contextmanager
def _target(settings: BenchSettings) -> Iterator[Target]:
    """Yield the server that is given, or one that is started and runs as long as the block."""
    keys = _keys(settings.api_keys) if settings.api_keys else ()
    options: dict[str, Any] = {"backend": settings.backend} if settings.backend else {}
    if settings.compiled:
        options["compiled"] = str(settings.compiled.resolve())
    server: AbstractContextManager[Target]
    if settings.url:
        server = nullcontext(Target(settings.url))
    else:
        server = graph(settings.bundle, settings.catalogue, **options)
    with server as target:
        metrics_urls = settings.metrics_urls or target.metrics_urls
        yield replace(target, metrics_urls=metrics_urls, keys=keys, timeout_s=settings.timeout_s)


def _keys(path: Path) -> list[str]:
    try:
        return read_keys(path)
    except ArtifactError as error:
        raise InvalidRequest("api_keys", str(path), f"must be a file of API keys: {error}") from error
