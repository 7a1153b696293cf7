"""A whole evaluation with a painter in place of a model: the table, the JSON and the contact sheets."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fashion_rag.errors import InvalidRequest
from fashion_rag.evaluation.editors import Edited
from fashion_rag.evaluation.edits import EditedSample, EditFolder, EvaluationSettings
from fashion_rag.evaluation.networks import Networks
from fashion_rag.evaluation.run import EvaluationPlan, evaluate
from fashion_rag.evaluation.table import TableRow, markdown
from fashion_rag.manifest import Manifest
from fashion_rag.request import EditRequest
from tests.evaluation.conftest import Painter


@pytest.fixture(scope="module")
def networks(tiny_bundle: Path) -> Networks:
    return Networks.load(tiny_bundle / "retrieval")


def judge(edited_samples: Sequence[EditedSample]) -> dict[str, list[float]]:
    """Return for each sample 1 if a dress was edited, otherwise 0."""
    return {"is a dress": [float(edited.sample.category == "dresses") for edited in edited_samples]}


def test_every_settings_has_a_row_a_category_and_one_for_all(
    tmp_path: Path, settings: EvaluationSettings, manifest: Manifest, networks: Networks
) -> None:
    runs = [settings, replace(settings, order="unpaired", num_retrieved=0, num_chunks=1)]
    plan = EvaluationPlan(runs, ["dresses", "upper_body"], limit=2, batch_size=3)
    phases: list[tuple[str, int, int]] = []
    table = evaluate(tmp_path, plan, manifest, Painter(), networks, judge, lambda *progress: phases.append(progress))
    assert (tmp_path / "table.md").read_text() == table
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [(row["order"], row["num_retrieved"], row["num_chunks"]) for row in rows] == (
        [("paired", 1, 3)] * 3 + [("unpaired", 0, 1)] * 3
    )
    assert [(row["category"], row["num_samples"]) for row in rows] == [
        ("dresses", 2),
        ("upper_body", 2),
        ("all", 4),
    ] * 2
    assert [row["values"]["is a dress"] for row in rows] == [1, 0, 0.5] * 2
    assert [row["values"]["ssim"] is None for row in rows] == [False] * 3 + [True] * 3
    assert [row["values"]["clip_i"] is None for row in rows] == [False] * 3 + [True] * 3
    assert all(row["values"]["cmmd"] > 0 for row in rows)
    assert phases[-1] == ("measuring unpaired-0-garments-1-chunks", 4, 4)
    assert ("editing paired-1-garments-3-chunks", 3, 4) in phases


def test_the_result_says_where_it_is_from_and_what_is_left_out(
    tmp_path: Path, settings: EvaluationSettings, manifest: Manifest, networks: Networks
) -> None:
    table = evaluate(tmp_path, EvaluationPlan([settings], ["dresses"]), manifest, Painter(), networks)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["from"]["packages"]["torch"]
    assert result["settings"][0]["root"] == settings.root
    assert table.rstrip().endswith(result["note"]) and "fid (--inception-weights FILE)" in table


def test_a_second_run_edits_nothing_and_says_the_same(
    tmp_path: Path, settings: EvaluationSettings, manifest: Manifest, networks: Networks
) -> None:
    plan = EvaluationPlan([settings], ["dresses"])
    first = evaluate(tmp_path, plan, manifest, Painter(), networks)
    again = Painter()
    assert evaluate(tmp_path, plan, manifest, again, networks) == first
    assert again.asked == []


def test_batches_do_not_change_the_figures(
    tmp_path: Path, settings: EvaluationSettings, manifest: Manifest, networks: Networks
) -> None:
    tables = [
        evaluate(tmp_path / str(size), EvaluationPlan([settings], batch_size=size), manifest, Painter(), networks)
        for size in (1, 5)
    ]
    assert tables[0] == tables[1]


def test_the_contact_sheet_shows_rows_from_all_over(
    tmp_path: Path,
    settings: EvaluationSettings,
    manifest: Manifest,
    networks: Networks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[str] = []

    def sheet(edited_samples: Sequence[EditedSample]) -> Image.Image:
        shown.extend(edited.sample.person_id for edited in edited_samples)
        return Image.new("RGB", (4, 4))

    monkeypatch.setattr("fashion_rag.evaluation.run.contact_sheet", sheet)
    evaluate(tmp_path, EvaluationPlan([settings], sheet_rows=3, batch_size=4), manifest, Painter(), networks)
    assert shown == ["000000", "000004", "000008"]
    assert (tmp_path / settings.name / "contact_sheet.png").is_file()


def test_nothing_is_edited_for_a_metric_that_cannot_be_had(
    tmp_path: Path, settings: EvaluationSettings, manifest: Manifest, networks: Networks
) -> None:
    painter = Painter()
    with pytest.raises(InvalidRequest, match="metrics: got 'fid'"):
        evaluate(tmp_path, EvaluationPlan([settings], metrics=["fid"]), manifest, painter, networks)
    assert painter.asked == []


def test_a_table_has_a_dash_where_there_is_no_figure() -> None:
    rows = [
        TableRow("paired", 1, 3, "dresses", 2, {"ssim": 0.5, "own": None}),
        TableRow("unpaired", 1, 3, "all", 4, {"ssim": None, "own": 0.25}),
    ]
    assert markdown(rows).splitlines() == [
        "| order | garments | chunks | category | samples | SSIM ↑ | own |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| paired | 1 | 3 | dresses | 2 | 0.500 | - |",
        "| unpaired | 1 | 3 | all | 4 | - | 0.250 |",
    ]
    assert markdown(rows, "A note.").endswith("|\n\nA note.\n")


def test_the_report_says_that_masks_were_found(
    tmp_path: Path,
    settings: EvaluationSettings,
    manifest: Manifest,
    networks: Networks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parser = replace(settings, mask_from="parser")
    painter = Painter()
    paint, blind = painter.edit, int(np.asarray(EditFolder(tmp_path / "any", parser, manifest).data[0].image).sum())

    def find(requests: Sequence[EditRequest], garments: object) -> list[Edited]:
        if int(requests[0].image.sum()) == blind:
            raise InvalidRequest("image", "a photo in which nobody was seen", "must show a person")
        everywhere = np.ones(requests[0].image.shape[:2], np.uint8)
        return paint([replace(request, mask=everywhere) for request in requests], None)

    monkeypatch.setattr(painter, "edit", find)
    plan = EvaluationPlan([parser], ["dresses"], batch_size=1)
    table = evaluate(tmp_path, plan, manifest, painter, networks)
    result = json.loads((tmp_path / "result.json").read_text())
    assert "| all | 2 |" in table and f"nothing was found: 1 in {parser.name}." in table
    (line,) = result["not_found"][parser.name]
    assert line.startswith("dresses/000000: image: got 'a photo in which nobody was seen'")
    assert result["settings"][0]["mask_from"] == "parser"
