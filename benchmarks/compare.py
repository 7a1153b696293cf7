"""Tells a change in latency from noise: two results of `fashion-rag bench`, of the same edits, before and after.

Edits with the same number in the plan are the same, so they are compared in pairs; an interval that bootstraps blocks
of neighbours says how far the median of their ratios is to be trusted. A machine drifts: where several results of a
side are given, taken in turn (old, new, old, new), an edit counts with its median over them.

    fashion-rag bench --out old.json ... ; git switch change ; fashion-rag bench --out new.json ...
    python -m benchmarks.compare old.json new.json
    python -m benchmarks.compare old1.json,old2.json new1.json,new2.json
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from fashion_rag.artifacts import read_config
from serve.bench.report import intervals

# Of the latency. What is smaller is no change that anybody would act on.
SMALL = 0.03
MIN_PAIRS = 20


@dataclass(frozen=True)
class Change:
    """Of a run: new latency by old, median over the pairs and its 95 % interval; and what is made of it."""

    run: str
    num_pairs: int
    ratio: float
    interval: tuple[float, float]
    throughput_ratio: float

    @property
    def verdict(self) -> str:
        """slower or faster only where the whole interval is beyond SMALL."""
        low, high = self.interval
        if self.num_pairs < MIN_PAIRS:
            return f"too few edits: fewer than {MIN_PAIRS} were done on both sides"
        if low > 1 + SMALL:
            return "slower"
        if high < 1 - SMALL:
            return "faster"
        return "no change" if low >= 1 - SMALL and high <= 1 + SMALL else "cannot tell"


def main(
    old: Annotated[str, typer.Argument(help="Results before, with commas between them.")],
    new: Annotated[str, typer.Argument(help="Results after.")],
) -> None:
    """Prints a table; exits with 1 if something became slower."""
    before, after = ([read_config(Path(path)) for path in paths.split(",")] for paths in (old, new))
    changes = compare(before, after)
    table = Table("run", "pairs", "latency, new by old", "95 % interval", "throughput", "")
    for change in changes:
        low, high = change.interval
        figures = (f"{change.ratio:.3f}", f"{low:.3f} to {high:.3f}", f"{change.throughput_ratio:.3f}")
        table.add_row(change.run, str(change.num_pairs), *figures, change.verdict)
    Console().print(table)
    raise typer.Exit(int(any(change.verdict == "slower" for change in changes)))


def compare(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[Change]:
    """The change in each run. Raises ValueError where the results are not of the same edits."""
    plans = [[(run["edits"]["at_s"], run["edits"]["rows"]) for run in result["runs"]] for result in (*old, *new)]
    if any(plan != plans[0] for plan in plans):
        raise ValueError("the results are not of the same edits: give both sides the same rates, mix and seed")
    changes = []
    for number, run in enumerate(old[0]["runs"]):
        before, after = (_latencies([result["runs"][number] for result in side]) for side in (old, new))
        both = ~np.isnan(before) & ~np.isnan(after)
        ratios = (after[both] / before[both]).tolist() or [float("nan")]
        (interval,) = intervals(ratios, [50])
        throughputs = [
            np.median([result["runs"][number]["summary"]["throughput_per_s"] for result in side]) for side in (new, old)
        ]
        name = "trace" if run["rate"] is None else f"{run['rate']:g}/s"
        changes.append(
            Change(name, int(both.sum()), float(np.median(ratios)), interval, float(throughputs[0] / throughputs[1]))
        )
    return changes


def _latencies(runs: Sequence[dict[str, Any]]) -> np.ndarray:
    """Of each edit, the median over the runs in which it was done; NaN where there is none."""
    found = [
        [
            latency_s if kind == "done" else np.nan
            for kind, latency_s in zip(run["edits"]["kind"], run["edits"]["latency_s"], strict=True)
        ]
        for run in runs
    ]
    done = np.array(found, dtype=float)
    medians = np.full(done.shape[1], np.nan)
    some = ~np.isnan(done).all(axis=0)
    medians[some] = np.nanmedian(done[:, some], axis=0)
    return medians


if __name__ == "__main__":
    typer.run(main)
