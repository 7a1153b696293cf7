"""Tests the sheet and the drawn catalogue of `make demo`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fashion_rag.bundle import Bundle
from fashion_rag.demo.world.catalogue import NUM_PAIRS, ensure_demo_world
from fashion_rag.errors import ArtifactError
from fashion_rag.manifest import DEMO_BUNDLE
from serve import showcase


def test_every_picture_of_the_sheet_is_in_its_place() -> None:
    height, width = showcase.CELL
    colours = [(20 * column, 90 * row, 200) for row in range(2) for column in range(len(showcase.TITLES))]
    pictures = [Image.new("RGB", (30, 40), colour) for colour in colours]
    half = len(showcase.TITLES)
    rows = [showcase.SheetRow(tuple(part), "red dress", "remark") for part in (pictures[:half], pictures[half:])]
    sheet = np.asarray(showcase.draw_sheet(rows))
    for colour in colours:
        assert (sheet == colour).all(axis=2).sum() >= height * width


def test_the_demo_world_has_what_the_cases_need(tiny_bundle: Path, tmp_path: Path) -> None:
    catalogue = ensure_demo_world(tmp_path / "world", tiny_bundle)
    again = ensure_demo_world(tmp_path / "world", tiny_bundle)
    assert again == catalogue
    drawn = tmp_path / "world" / "attributes.json"
    before = drawn.stat().st_mtime_ns
    ensure_demo_world(tmp_path / "world", tiny_bundle)
    assert drawn.stat().st_mtime_ns == before
    shutil.rmtree(catalogue)
    ensure_demo_world(tmp_path / "world", tiny_bundle)
    assert drawn.stat().st_mtime_ns > before
    opened = Bundle.open(tiny_bundle).open_catalogue(catalogue)
    assert len(opened) == 3 * NUM_PAIRS
    cases = showcase.read_cases(tmp_path / "world", tiny_bundle)
    assert [case.category for case in cases] == [category for category, _ in showcase.CASES]
    assert {garment.caption for garment in opened} >= {case.prompt for case in cases}
    attributes = json.loads((tmp_path / "world" / "attributes.json").read_text())
    colours = {garment["colour"] for garment in attributes.values()}
    for case in cases:
        assert case.mask.size == case.person.size == (48, 64)
        assert np.asarray(case.mask).any()
        assert any(colour in case.prompt for colour in colours)
        assert not any(colour in case.kind for colour in colours)


def test_a_bundle_that_finds_no_masks_is_refused_at_once(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="has no human parser"):
        showcase.run(tmp_path / "out" / "demo.png", bundle=tiny_bundle)


@pytest.mark.slow
def test_the_demo_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out" / "demo.png"
    # Networks of random weights see nobody in a photo.
    showcase.run(out, bundle=DEMO_BUNDLE)
    with Image.open(out) as sheet:
        assert sheet.width > len(showcase.TITLES) * showcase.CELL[1]
    printed = capsys.readouterr().out
    assert "denoise" in printed
    assert all(str(out.with_name(name)) in printed for name in ("demo.png", "person.png"))
    with Image.open(out.with_name("person.png")) as person, Image.open(out.with_name("mask.png")) as mask:
        assert mask.size == person.size
        assert 0 < (np.asarray(mask) != 0).mean() < 1
