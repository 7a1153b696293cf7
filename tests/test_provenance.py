"""Tests of the provenance that is written beside a result."""

import json
import subprocess
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image

from fashion_rag.provenance import provenance, write_figure


def test_it_says_where_a_figure_comes_from() -> None:
    written = json.loads(json.dumps(provenance()))
    assert torch.__version__.startswith(written["packages"]["torch"].partition("+")[0])
    assert written["cpu"] and written["num_cores"] >= 1
    assert not written["command"].startswith("/")


def test_the_commit_is_the_checkouts() -> None:
    root = Path(__file__).parents[1]
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
    assert provenance()["commit"] in ((None,) if head.returncode else (head.stdout.strip(), head.stdout.strip() + "+"))


def test_a_figure_is_written_into_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "plot.png"
    write_figure(path, Figure(figsize=(2, 1)), dpi=100)
    with Image.open(path) as picture:
        assert picture.size == (200, 100)
