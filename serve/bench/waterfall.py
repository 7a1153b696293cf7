"""Traced edits as tables: the spans of one as a waterfall, and the budget of all of them."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from serve.bench.budget import KINDS, MEANINGS, UNACCOUNTED, Share, by_kind, kind_of, unet_calls
from serve.bench.spans import TracedSpan
from serve.tracing import STEP, Kind

COLOURS: dict[str, str] = {
    Kind.NETWORK: "green",
    Kind.IMAGE: "magenta",
    Kind.HANDOVER: "yellow",
    Kind.WAIT: "red",
    Kind.HTTP: "blue",
    UNACCOUNTED: "bright_black",
}
BAR_WIDTH = 40


@dataclass(frozen=True)
class Row:
    """A span in a waterfall: `depth` counts the spans that it lies within."""

    span: TracedSpan
    depth: int

    @property
    def label(self) -> str:
        """Return the span's name, its UNet calls, and its error."""
        num_steps = sum(event.name == STEP for event in self.span.events)
        steps = f" ({num_steps} steps)" if num_steps else ""
        return f"{self.span.name}{steps}{': ' * bool(self.span.error)}{self.span.error}"


def rows(root: TracedSpan, spans: Sequence[TracedSpan]) -> Iterator[Row]:
    """Yield `root` and the spans within it in the order of a waterfall, the inner ones after the outer."""
    within = defaultdict(list)
    for span in spans:
        within[span.parent_id].append(span)

    def walk(span: TracedSpan, depth: int) -> Iterator[Row]:
        yield Row(span, depth)
        for inner in sorted(within[span.id], key=lambda inner: inner.started_ns):
            yield from walk(inner, depth + 1)

    yield from walk(root, 0)


def waterfall(root: TracedSpan, spans: Sequence[TracedSpan]) -> Table:
    """Return a table of the spans of an edit, each with a bar for its time within that of `root`."""
    table = Table(box=None, pad_edge=False)
    table.add_column("span", no_wrap=True, overflow="ellipsis")
    table.add_column("", no_wrap=True, min_width=BAR_WIDTH)
    table.add_column("start, ms", justify="right")
    table.add_column("ms", justify="right")
    table.add_column("kind")
    for row in rows(root, spans):
        span, kind = row.span, kind_of(row.span)
        start_ms, length_ms = (span.started_ns - root.started_ns) / 1e6, (span.ended_ns - span.started_ns) / 1e6
        bar = _bar(root, span)
        table.add_row(Text("  " * row.depth + row.label), bar, f"{start_ms:.1f}", f"{length_ms:.1f}", kind)
    return table


def _bar(root: TracedSpan, span: TracedSpan) -> Text:
    """Return the line of a span: blank outside of its time, at least one block long, and with its UNet calls."""
    first, last = _cells(root, span)
    bar = Text(" " * first + "█" * (last - first), COLOURS[kind_of(span)])
    for call in unet_calls(span):
        bar.stylize(COLOURS[kind_of(call)], *_cells(root, call))
    return bar


def _cells(root: TracedSpan, span: TracedSpan) -> tuple[int, int]:
    """Return the first cell of a span in a line of BAR_WIDTH cells, and the first after it."""
    per_cell = max(root.ended_ns - root.started_ns, 1) / BAR_WIDTH
    first = min(max(int((span.started_ns - root.started_ns) / per_cell), 0), BAR_WIDTH - 1)
    return first, min(max(round((span.ended_ns - root.started_ns) / per_cell), first + 1), BAR_WIDTH)


def budget_table(found: Sequence[Share], title: str) -> Table:
    """Return a table of the time in each kind, and of what each kind consists of."""
    total = sum(share.ms for share in found)
    table = Table("", title=title, caption="stages that run side by side count once, for the first kind in this order")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    table.add_column("in these spans, ms")
    sums = by_kind(found)
    for kind in KINDS:
        parts = [f"{share.name} {share.ms:.1f}" for share in found if share.kind == kind and share.ms >= 0.05]
        share_of_all = sums[kind] / total if total else 0.0
        table.add_row(Text(kind, COLOURS[kind]), f"{sums[kind]:.1f}", f"{share_of_all:.1%}", ", ".join(parts))
    table.add_row("all", f"{total:.1f}", "100.0%", "", style="bold")
    return table


def legend() -> str:
    """Return what each kind means, a line each."""
    return "\n".join(f"{kind}: {meaning}" for kind, meaning in MEANINGS.items())
