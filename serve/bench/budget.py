"""Where the time of a traced edit goes. Every nanosecond of it counts for one span, and thereby for one kind of work.

At each time, the innermost spans that are open say what is being done. Stages run side by side, so there may be several
of them, and then the first in the order of KINDS counts: while a network computes for an edit, it matters little that
another of its calls waits.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from serve.bench.spans import TracedSpan
from serve.tracing import KIND, STEP, Kind

# Time in which only Serve's spans of a stage are open, so that no span says what was being done.
UNACCOUNTED = "unaccounted"
UNET_CALL = "UNet call"
KINDS = (Kind.NETWORK, Kind.IMAGE, Kind.HANDOVER, Kind.WAIT, Kind.HTTP, UNACCOUNTED)
MEANINGS = {
    Kind.NETWORK: "batches of networks, the search among garments included, and UNet calls with the edit",
    Kind.IMAGE: "pictures decoded, completed, pasted and encoded",
    Kind.HANDOVER: "calls from replica to replica, on the way or in shared memory",
    Kind.WAIT: "waits for a batch, for the first step, and between steps",
    Kind.HTTP: "the client's connection, the proxy, the ingress: forms, replies, JSON",
    UNACCOUNTED: "code of the stages that no span describes",
}
# Of Serve's own spans, by the beginning of their names.
SERVE_KINDS = {
    "proxy_": Kind.HTTP,
    "route_to_replica Ingress": Kind.HTTP,
    "replica_handle_request Ingress": Kind.HTTP,
    "route_to_replica": Kind.HANDOVER,
}


@dataclass(frozen=True)
class Share:
    """The milliseconds that an edit spent in spans of this name and kind, apart from the spans within them."""

    kind: str
    name: str
    ms: float


def kind_of(span: TracedSpan) -> str:
    """Return the kind of a span: its own, or else that of one of Serve's spans."""
    own = span.attributes.get(KIND)
    if own is not None:
        return str(own)
    return next((kind for start, kind in SERVE_KINDS.items() if span.name.startswith(start)), UNACCOUNTED)


def unet_calls(span: TracedSpan) -> list[TracedSpan]:
    """Return a span within `span` for each UNet call that is an event of it."""
    found: list[TracedSpan] = []
    for event in span.events:
        if event.name == STEP:
            started_ns = event.at_ns - int(event.attributes["seconds"] * 1e9)
            attributes = {KIND: Kind.NETWORK.value}
            found.append(TracedSpan(f"{span.id}/{len(found)}", span.id, UNET_CALL, started_ns, event.at_ns, attributes))
    return found


def shares(root: TracedSpan, spans: Sequence[TracedSpan]) -> list[Share]:
    """Return where the time of `root` goes, the largest share of each kind first. The shares add up to all of it.

    spans: those within `root`, which may be left out of them.
    """
    everything = list({span.id: span for span in [*spans, root]}.values())
    for span in spans:
        everything += unet_calls(span)
    parents = {span.id: span.parent_id for span in everything}
    times_ns = {root.started_ns, root.ended_ns}
    for span in everything:
        for time_ns in (span.started_ns, span.ended_ns):
            times_ns.add(min(max(time_ns, root.started_ns), root.ended_ns))
    counted_ns: defaultdict[tuple[str, str], int] = defaultdict(int)
    for start_ns, end_ns in itertools.pairwise(sorted(times_ns)):
        active = [span for span in everything if span.started_ns <= start_ns and span.ended_ns >= end_ns]
        # A call may outlive the span of Serve that it lies within, so all ancestors count, open or not.
        outer = {ancestor for span in active for ancestor in _ancestors(span.id, parents)}
        innermost = [(kind_of(span), span.name) for span in active if span.id not in outer]
        counted_ns[min(innermost, key=lambda pair: KINDS.index(pair[0]))] += end_ns - start_ns
    found = [Share(kind, name, ns / 1e6) for (kind, name), ns in counted_ns.items()]
    return sorted(found, key=lambda share: (KINDS.index(share.kind), -share.ms))


def _ancestors(span_id: str, parents: Mapping[str, str]) -> list[str]:
    found = []
    while span_id := parents.get(span_id, ""):
        found.append(span_id)
    return found


def mean_shares(edits: Sequence[Sequence[Share]]) -> list[Share]:
    """Return the mean share of each span's name over several edits; a name that an edit lacks has no share in it."""
    sums: defaultdict[tuple[str, str], float] = defaultdict(float)
    for edit in edits:
        for share in edit:
            sums[share.kind, share.name] += share.ms
    found = [Share(kind, name, ms / len(edits)) for (kind, name), ms in sums.items()]
    return sorted(found, key=lambda share: (KINDS.index(share.kind), -share.ms))


def by_kind(found: Iterable[Share]) -> dict[str, float]:
    """Return the milliseconds of each kind, in the order of KINDS."""
    sums: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    for share in found:
        sums[share.kind] += share.ms
    return sums
