"""`fashion-rag bench`, from what is asked for to the result on disk. The command line calls it."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

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
    """What is sent to which server, and where the result goes.

    out: JSON file; its table goes beside it. bundle: photos have its size; a server that is started serves it.
    trace: file whose edits are sent, instead of any drawn from `mix`. save_trace: file for those that are sent.
    url: of the server, without /v1; None to start one, which `catalogue`, `backend` and `compiled` are for.
    num_warm_up: edits sent before the clock starts. metrics_urls: of the server's nodes, where it is not started here.
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
    """A run of each load, one after the other.

    drawing, sending: given the number of photos, or edits, show how far it has come, by what they enter with. Raises
    InvalidRequest for what cannot be sent or does not answer, ArtifactError for what cannot be served.
    """
    loads = _plan(settings)
    edits = [edit for each in loads for edit in each.planned]
    with drawing(len({(edit.category, edit.person) for edit in edits})) as advance:
        photos = draw_photos(edits, Bundle.open(settings.bundle).manifest, advance)
    with _target(settings) as target:
        warm_up(target, edits[: settings.num_warm_up], photos)
        with sending(len(edits)) as seen:
            return measure(target, loads, photos, settings.objective_s, seen)


def write(settings: BenchSettings, runs: Sequence[Run]) -> str:
    """The table of the runs, once it, the figures and the plot are on disk."""
    write_result(
        settings.out,
        {"from": provenance(), "server": settings.url, "runs": [each.as_record() for each in runs]},
    )
    table = markdown(runs)
    settings.out.with_suffix(".md").write_text(table)
    if settings.plot:
        # Needs matplotlib, which not everyone has.
        from serve.bench.plot import plot

        write_figure(settings.plot, plot(runs))
    return table


def _plan(settings: BenchSettings) -> list[PlannedLoad]:
    if settings.trace:
        loads = [PlannedLoad(read_trace(settings.trace))]
    else:
        mix, duration_s, seed = settings.mix, settings.duration_s, settings.seed
        loads = [
            PlannedLoad(draw(mix, poisson(rate, duration_s, seed), seed), rate, duration_s) for rate in settings.rates
        ]
    if settings.save_trace:
        write_trace(settings.save_trace, loads[0].planned)
    return loads


@contextmanager
def _target(settings: BenchSettings) -> Iterator[Target]:
    """The server that is there, or one that is started, for as long as the block runs."""
    keys = _keys(settings.api_keys) if settings.api_keys else ()
    given = {"backend": settings.backend} if settings.backend else {}
    if settings.compiled:
        given["compiled"] = str(settings.compiled.resolve())
    url, bundle, catalogue = settings.url, settings.bundle, settings.catalogue
    with nullcontext(Target(url)) if url else graph(bundle, catalogue, **given) as started:
        metrics_urls = settings.metrics_urls or started.metrics_urls
        yield replace(started, metrics_urls=metrics_urls, keys=keys, timeout_s=settings.timeout_s)


def _keys(path: Path) -> list[str]:
    try:
        return read_keys(path)
    except ArtifactError as error:
        raise InvalidRequest("api_keys", str(path), f"must be a file of API keys: {error}") from error
