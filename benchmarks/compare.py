"""Tells a change in latency from noise: compares two results of `fashion-rag bench`, of the same edits.

Edits with the same number in the plan are the same, so they are compared in pairs; an interval that bootstraps blocks
of neighbours says how far the median of their ratios is to be trusted. A machine drifts, so several results a side may
be given, taken in turn (old, new, old, new); an edit then counts with its median over them.

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
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from fashion_rag.artifacts import read_config
from serve.bench.report import intervals

SMALL = 0.03  # As a share of the latency; nobody would act on a smaller change.
MIN_PAIRS = 20


@dataclass(frozen=True)
class Change:
    """The change in a run: the median over the pairs of new latency divided by old, and its 95 % interval."""

    run: str
    num_pairs: int
    ratio: float
    interval: tuple[float, float]
    throughput_ratio: float

    @property
    def verdict(self) -> str:
        """Return "slower" or "faster" only if the whole interval is beyond SMALL, and otherwise what is known."""
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
    """Print a table, and exit with 1 if something became slower."""
    changes = compare(_read(old), _read(new))
    table = Table("run", "pairs", "latency, new by old", "95 % interval", "throughput", "")
    for change in changes:
        low, high = change.interval
        figures = (f"{change.ratio:.3f}", f"{low:.3f} to {high:.3f}", f"{change.throughput_ratio:.3f}")
        table.add_row(change.run, str(change.num_pairs), *figures, change.verdict)
    Console().print(table)
    raise typer.Exit(int(any(change.verdict == "slower" for change in changes)))


def compare(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[Change]:
    """Return the change in each run. Raises ValueError if the results are not of the same edits."""
    plans = []
    for result in (*old, *new):
        plans.append([(run["edits"]["at_s"], run["edits"]["rows"]) for run in result["runs"]])
    if any(plan != plans[0] for plan in plans):
        raise ValueError("the results are not of the same edits: give both sides the same rates, mix and seed")
    changes = []
    for number, run in enumerate(old[0]["runs"]):
        before = _latencies([result["runs"][number] for result in old])
        after = _latencies([result["runs"][number] for result in new])
        both = ~np.isnan(before) & ~np.isnan(after)
        ratios = (after[both] / before[both]).tolist() or [float("nan")]
        (interval,) = intervals(ratios, [50])
        changes.append(
            Change(
                run="trace" if run["rate"] is None else f"{run['rate']:g}/s",
                num_pairs=int(both.sum()),
                ratio=float(np.median(ratios)),
                interval=interval,
                throughput_ratio=_throughput(new, number) / _throughput(old, number),
            )
        )
    return changes


def _read(paths: str) -> list[dict[str, Any]]:
    """Return the results in files whose paths have commas between them."""
    return [read_config(Path(path)) for path in paths.split(",")]


def _throughput(results: Sequence[dict[str, Any]], number: int) -> float:
    """Return the median throughput of run `number`."""
    return float(np.median([result["runs"][number]["summary"]["throughput_per_s"] for result in results]))


def _latencies(runs: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """Return for each edit the median over the runs in which it was done; NaN if there is none."""
    latencies = np.array([run["edits"]["latency_s"] for run in runs], dtype=float)
    done = np.array([run["edits"]["kind"] for run in runs]) == "done"
    latencies[~done] = np.nan
    medians = np.full(latencies.shape[1], np.nan)
    ever_done = done.any(axis=0)
    medians[ever_done] = np.nanmedian(latencies[:, ever_done], axis=0)
    return medians


if __name__ == "__main__":
    typer.run(main)
