"""A whole evaluation: edits, their metrics, the table and the contact sheets. `fashion-rag evaluate` calls it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fashion_rag.errors import InvalidRequest
from fashion_rag.evaluation.editors import Editor
from fashion_rag.evaluation.edits import EditedSample, EditFolder, EvaluationSettings
from fashion_rag.evaluation.metrics import SampleValues, available, mean, measure, summary
from fashion_rag.evaluation.networks import Networks
from fashion_rag.evaluation.pictures import contact_sheet
from fashion_rag.evaluation.table import TableRow, markdown
from fashion_rag.manifest import Manifest
from fashion_rag.provenance import provenance, write_result
from fashion_rag.request import CATEGORIES

TABLE_FILE, RESULT_FILE, SHEET_FILE = "table.md", "result.json", "contact_sheet.png"
# The row of the table for all categories together.
ALL_CATEGORIES = "all"

# A judge knows how the pictures were drawn. It returns by name a figure for each sample, NaN where there is none.
Judge = Callable[[Sequence[EditedSample]], Mapping[str, Sequence[float]]]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class EvaluationPlan:
    """What to evaluate, and how much of it.

    settings: an evaluation each. limit: edit only the first so many pairs of each category. metrics: None for all that
    can be had. batch_size: how many samples are edited and measured together. sheet_rows: rows of each contact sheet.
    """

    settings: Sequence[EvaluationSettings]
    categories: Sequence[str] = CATEGORIES
    limit: int | None = None
    metrics: Sequence[str] | None = None
    batch_size: int = 16
    sheet_rows: int = 12


def evaluate(
    out: Path,
    plan: EvaluationPlan,
    manifest: Manifest,
    editor: Editor,
    networks: Networks,
    judge: Judge | None = None,
    progress: Progress = lambda phase, done, total: None,
) -> str:
    """Return the table in Markdown.

    The table is also written to `out`, together with the same figures as JSON. A folder in `out` for each of the plan's
    settings holds the edits and a contact sheet. Edits that `out` already holds are not made again.

    progress: takes the phase, how many samples are done, and how many there are.
    Raises InvalidRequest, before anything is edited, for metrics that cannot be had and for an `out` of other settings.
    Raises ArtifactError for a data set that cannot be read.
    """
    has_inception, has_lpips = networks.inception is not None, networks.lpips is not None
    metrics, note = available(plan.metrics, has_inception=has_inception, has_lpips=has_lpips)
    folders = [
        EditFolder(out / settings.name, settings, manifest, plan.categories, plan.limit) for settings in plan.settings
    ]
    rows: list[TableRow] = []
    not_found: dict[str, list[str]] = {}
    for edits in folders:
        name = edits.settings.name
        not_found[name] = edits.make(editor, plan.batch_size, partial(progress, f"editing {name}"))
        rows += _measured(edits, editor, networks, metrics, judge, plan, partial(progress, f"measuring {name}"))
    note = " ".join(filter(None, [note, _about_masks(not_found, plan.settings)]))
    table = markdown(rows, note)
    (out / TABLE_FILE).write_text(table)
    content = {
        "from": provenance(),
        "settings": [asdict(settings) for settings in plan.settings],
        "note": note,
        "not_found": not_found,
        "rows": [asdict(row) for row in rows],
    }
    write_result(out / RESULT_FILE, content)
    return table


def _about_masks(not_found: Mapping[str, Sequence[str]], settings: Sequence[EvaluationSettings]) -> str:
    """Return a sentence on found masks, empty where all masks are given."""
    names = [entry.name for entry in settings if entry.mask_from == "parser"]
    if not names:
        return ""
    counts = ", ".join(f"{len(not_found[name])} in {name}" for name in names)
    return f"Masks and key points were found in the photos; without an edit, because nothing was found: {counts}."


def _measured(
    edits: EditFolder,
    editor: Editor,
    networks: Networks,
    metrics: Sequence[str],
    judge: Judge | None,
    plan: EvaluationPlan,
    progress: Callable[[int, int], None],
) -> list[TableRow]:
    """Return a row for each category and one for all, and write the contact sheet."""
    made = edits.made()
    if not made:
        raise InvalidRequest("categories", ", ".join(plan.categories), "must have a sample whose garment can be seen")
    paired = edits.settings.order == "paired"
    on_sheet = set(np.linspace(0, len(made) - 1, min(plan.sheet_rows, len(made)), dtype=int).tolist())
    sheet_samples: list[EditedSample] = []
    measured: list[SampleValues] = []
    judged: list[SampleValues] = []
    for start in range(0, len(made), plan.batch_size):
        numbers = range(start, min(start + plan.batch_size, len(made)))
        edited_samples = [edits.edited_sample(made[number], editor) for number in numbers]
        sheet_samples += [edited for number, edited in zip(numbers, edited_samples, strict=True) if number in on_sheet]
        measured.append(measure(networks, metrics, edited_samples, paired))
        if judge is not None:
            judged.append({name: np.asarray(values, np.float64) for name, values in judge(edited_samples).items()})
        progress(numbers.stop, len(made))
    contact_sheet(sheet_samples).save(edits.folder / SHEET_FILE)
    categories = [edits.data.pairs[number].category for number in made]
    return _rows(edits.settings, categories, measured=_joined(measured), judged=_joined(judged), metrics=metrics)


def _rows(
    settings: EvaluationSettings,
    categories: Sequence[str],
    measured: SampleValues,
    judged: SampleValues,
    metrics: Sequence[str],
) -> list[TableRow]:
    """Return a row for each category, in alphabetical order, and one for all samples.

    categories: the category of each sample.
    """
    category_of_sample = np.array(categories)
    groups = {category: category_of_sample == category for category in sorted(set(categories))}
    groups[ALL_CATEGORIES] = np.full(len(categories), True)
    rows = []
    for category, members in groups.items():
        figures = summary({name: values[members] for name, values in measured.items()}, metrics)
        verdicts = {name: mean(values[members]) for name, values in judged.items()}
        rows.append(
            TableRow(
                order=settings.order,
                num_retrieved=settings.num_retrieved,
                num_chunks=settings.num_chunks,
                category=category,
                num_samples=int(members.sum()),
                values=figures | verdicts,
            )
        )
    return rows


def _joined(batches: Sequence[SampleValues]) -> SampleValues:
    """Return the values of all batches, one after the other."""
    joined = {}
    for name in batches[0] if batches else ():
        joined[name] = np.concatenate([batch[name] for batch in batches])
    return joined
