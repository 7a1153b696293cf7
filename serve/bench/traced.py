"""`fashion-rag trace`: makes edits with a graph that it starts, one at a time, and collects their spans."""

import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median_low
from typing import Any

import httpx
from rich.console import Console

from fashion_rag.bundle import Bundle
from fashion_rag.errors import InvalidRequest
from fashion_rag.provenance import provenance, write_figure, write_result
from fashion_rag.request import MAX_STEPS
from serve.bench.budget import Share, by_kind, mean_shares, shares
from serve.bench.drawn import draw_photos, drawn_prompts
from serve.bench.load import PATH
from serve.bench.measure import graph
from serve.bench.mix import EditMix, Photo, Planned, draw
from serve.bench.spans import EXPORT_EVERY_MS, Collector, TracedSpan, collector
from serve.bench.waterfall import budget_table, legend, waterfall
from serve.tracing import KIND, Kind

TIMEOUT_S = 300.0
# What only callers give who have it; without it, the stages find it in photo and words.
GIVEN_FIELDS = ("category", "keypoints")


@dataclass(frozen=True)
class TraceSettings:
    """The edits that are made, and the graph that makes them.

    num_warm_up: edits that are made before. photo_alone: whether edits come without mask, key points and category.
    catalogue, backend, compiled: as for `fashion-rag serve`.
    """

    bundle: Path
    steps: int = 20
    num_edits: int = 5
    num_warm_up: int = 3
    photo_alone: bool = False
    seed: int = 0
    catalogue: str | None = None
    backend: str | None = None
    compiled: Path | None = None


@dataclass(frozen=True)
class TracedEdit:
    """An edit: its trace, its span as the client saw it, the spans within, and where its time went."""

    trace_id: str
    root: TracedSpan
    spans: Sequence[TracedSpan]
    shares: Sequence[Share]

    @property
    def ms(self) -> float:
        """Return how long the client waited for the edit."""
        return (self.root.ended_ns - self.root.started_ns) / 1e6


def run(settings: TraceSettings, done: Callable[[], None]) -> list[TracedEdit]:
    """Return the traced edits. `done` is called after each edit, the first ones to warm up included.

    Raises InvalidRequest where the server refuses the edits, and ArtifactError as `app.start`.
    """
    mix = EditMix(drawn_prompts(), steps=(settings.steps,))
    # Each edit is of another person, so that none is answered from what was read in an earlier photo.
    planned = draw(mix, [0.0] * (settings.num_warm_up + settings.num_edits), settings.seed)
    photos = draw_photos(planned, Bundle.open(settings.bundle).manifest)
    options: dict[str, Any] = {"backend": settings.backend} if settings.backend else {}
    if settings.compiled:
        options["compiled"] = str(settings.compiled.resolve())
    edits = []
    with (
        collector() as collecting,
        exported_to(collecting.url),
        graph(settings.bundle, settings.catalogue, traced=True, **options) as target,
        httpx.Client(base_url=target.url, timeout=TIMEOUT_S, trust_env=False) as client,
    ):
        for edit in planned:
            parts = _parts(edit, photos[edit.category, edit.person], settings.photo_alone)
            edits.append(_traced(client, collecting, parts))
            done()
    return edits[settings.num_warm_up :]


@contextmanager
def exported_to(url: str) -> Iterator[None]:
    """Have the processes of a graph that is started in the block send their spans to this URL, often."""
    changes = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": url,
        "OTEL_BSP_SCHEDULE_DELAY": str(EXPORT_EVERY_MS),
        "OTEL_SPAN_EVENT_COUNT_LIMIT": str(MAX_STEPS),
    }
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _parts(edit: Planned, photo: Photo, photo_alone: bool) -> dict[str, Any]:
    """Return files and fields of an edit's form."""
    files = {"image": photo.image, "mask": photo.mask}
    data = edit.form() | {"keypoints": photo.keypoints}
    if photo_alone:
        del files["mask"]
        data = {name: value for name, value in data.items() if name not in GIVEN_FIELDS}
    return {"files": files, "data": data}


def _traced(client: httpx.Client, collecting: Collector, parts: dict[str, Any]) -> TracedEdit:
    """Make an edit, and return it with its spans. Raises InvalidRequest if there is no picture."""
    trace_id, root_id = secrets.token_hex(16), secrets.token_hex(8)
    request = client.build_request("POST", PATH, headers={"traceparent": f"00-{trace_id}-{root_id}-01"}, **parts)
    started_ns = time.time_ns()
    reply = client.send(request)
    ended_ns = time.time_ns()
    if not reply.is_success:
        raise InvalidRequest("edit", f"status {reply.status_code}", f"must be answered: {reply.text}")
    root = TracedSpan(root_id, "", "client", started_ns, ended_ns, {KIND: Kind.HTTP.value})
    spans = collecting.trace(trace_id, root_id)
    return TracedEdit(trace_id, root, spans, shares(root, spans))


def typical(edits: Sequence[TracedEdit]) -> TracedEdit:
    """Return the edit that took the median time, the shorter of two."""
    middle = median_low([edit.ms for edit in edits])
    return next(edit for edit in edits if edit.ms == middle)


def mean_budget(edits: Sequence[TracedEdit]) -> list[Share]:
    """Return where the time of these edits goes on average."""
    return mean_shares([edit.shares for edit in edits])


def title(settings: TraceSettings, edits: Sequence[TracedEdit]) -> str:
    """Return what the edits are, in a line."""
    alone = " from photo and sentence alone" if settings.photo_alone else ""
    return f"Where the time of an edit of {settings.steps} steps{alone} goes, mean of {len(edits)}"


def show(console: Console, settings: TraceSettings, edits: Sequence[TracedEdit]) -> None:
    """Print the waterfall of a typical edit, and the budget of all of them."""
    edit = typical(edits)
    console.print(waterfall(edit.root, edit.spans))
    console.print(budget_table(mean_budget(edits), title(settings, edits)))
    console.print(legend())


def write_plot(path: Path, settings: TraceSettings, edits: Sequence[TracedEdit]) -> None:
    """Draw the waterfall of a typical edit as a PNG."""
    # This needs matplotlib, which not everyone has.
    from serve.bench.plot import plot_waterfall

    edit = typical(edits)
    name = f"An edit of {settings.steps} steps, {edit.ms:.0f} ms"
    write_figure(path, plot_waterfall(edit.root, edit.spans, name))


def write(path: Path, settings: TraceSettings, edits: Sequence[TracedEdit]) -> None:
    """Write the budget, in milliseconds, and the spans of each edit as JSON."""
    budget = mean_budget(edits)
    records = []
    for edit in edits:
        spans = [asdict(span) for span in (edit.root, *edit.spans)]
        records.append({"trace_id": edit.trace_id, "ms": edit.ms, "spans": spans})
    result = {
        "from": provenance(),
        "num_steps": settings.steps,
        "num_edits": len(edits),
        "photo_alone": settings.photo_alone,
        "budget_ms": by_kind(budget),
        "parts": [asdict(share) for share in budget],
        "edits": records,
    }
    write_result(path, result)
