"""A whole evaluation: edits, their metrics, the table and the contact sheets. Called by `fashion-rag evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fashion_rag.errors import InvalidRequest
from fashion_rag.evaluation.editors import Editor
from fashion_rag.evaluation.edits import Edits, Outcome, Settings
from fashion_rag.evaluation.metrics import Rows, available, mean, measure, summary
from fashion_rag.evaluation.networks import Networks
from fashion_rag.evaluation.pictures import contact_sheet
from fashion_rag.evaluation.table import Row, markdown
from fashion_rag.manifest import Manifest
from fashion_rag.provenance import provenance, write_result
from fashion_rag.request import CATEGORIES

TABLE_FILE, RESULT_FILE, SHEET_FILE = "table.md", "result.json", "contact_sheet.png"
ALL = "all"

# A metric that knows how the pictures were drawn: by name, a figure for each outcome, NaN for none.
Judge = Callable[[Sequence[Outcome]], Mapping[str, Sequence[float]]]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Plan:
    """What to evaluate, and how much of it. limit: pairs of each category. sheet_rows: of each contact sheet."""

    settings: Sequence[Settings]
    categories: Sequence[str] = CATEGORIES
    limit: int | None = None
    metrics: Sequence[str] | None = None
    batch_size: int = 16
    sheet_rows: int = 12


def evaluate(
    out: Path,
    plan: Plan,
    manifest: Manifest,
    editor: Editor,
    networks: Networks,
    judge: Judge | None = None,
    progress: Progress = lambda phase, done, total: None,
) -> str:
    """Return the table in Markdown, also in `out`, with the same as JSON and, of each settings, the edits and a contact
    sheet.

    What is in `out` already is not edited again. progress: takes phase, samples done and samples in all. Raises
    InvalidRequest, before anything is edited, for metrics that cannot be had or an `out` of other settings, and
    ArtifactError for a data set that cannot be read.
    """
    has_inception, has_lpips = networks.inception is not None, networks.lpips is not None
    metrics, note = available(plan.metrics, has_inception=has_inception, has_lpips=has_lpips)
    runs = [Edits(out / one.name, one, manifest, plan.categories, plan.limit) for one in plan.settings]
    rows: list[Row] = []
    for edits in runs:
        name = edits.settings.name
        edits.make(editor, plan.batch_size, partial(progress, f"editing {name}"))
        rows += _measured(edits, editor, networks, metrics, judge, plan, partial(progress, f"measuring {name}"))
    table = markdown(rows, note)
    (out / TABLE_FILE).write_text(table)
    content = {
        "from": provenance(),
        "settings": [asdict(one) for one in plan.settings],
        "note": note,
        "rows": [asdict(row) for row in rows],
    }
    write_result(out / RESULT_FILE, content)
    return table


def _measured(
    edits: Edits,
    editor: Editor,
    networks: Networks,
    metrics: Sequence[str],
    judge: Judge | None,
    plan: Plan,
    progress: Callable[[int, int], None],
) -> list[Row]:
    """Return a row a category and one for all; the contact sheet is written on the way."""
    made = edits.made()
    if not made:
        raise InvalidRequest("categories", ", ".join(plan.categories), "must have a sample whose garment can be seen")
    paired = edits.settings.order == "paired"
    on_sheet = set(np.linspace(0, len(made) - 1, min(plan.sheet_rows, len(made)), dtype=int).tolist())
    shown: list[Outcome] = []
    parts: list[Rows] = []
    judged: list[Rows] = []
    for start in range(0, len(made), plan.batch_size):
        numbers = range(start, min(start + plan.batch_size, len(made)))
        outcomes = [edits.outcome(made[number], editor) for number in numbers]
        shown += [outcome for number, outcome in zip(numbers, outcomes, strict=True) if number in on_sheet]
        parts.append(measure(networks, metrics, outcomes, paired))
        if judge is not None:
            judged.append({name: np.asarray(values, np.float64) for name, values in judge(outcomes).items()})
        progress(numbers.stop, len(made))
    contact_sheet(shown).save(edits.folder / SHEET_FILE)
    categories = [edits.data.pairs[number].category for number in made]
    return _rows(edits.settings, categories, _joined(parts), _joined(judged), metrics)


def _rows(
    settings: Settings, categories: Sequence[str], rows: Rows, verdicts: Rows, metrics: Sequence[str]
) -> list[Row]:
    of = np.array(categories)
    groups = {each: of == each for each in sorted(set(categories))} | {ALL: np.full(len(of), True)}
    return [
        Row(
            settings.order,
            settings.num_retrieved,
            settings.num_chunks,
            category,
            int(members.sum()),
            summary({name: values[members] for name, values in rows.items()}, metrics)
            | {name: mean(values[members]) for name, values in verdicts.items()},
        )
        for category, members in groups.items()
    ]


def _joined(parts: Sequence[Rows]) -> Rows:
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}
