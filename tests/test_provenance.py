"""What stands beside a result."""

import json
import subprocess
from pathlib import Path

import torch

from fashion_rag.provenance import provenance


def test_it_says_where_a_figure_comes_from() -> None:
    said = json.loads(json.dumps(provenance()))
    assert torch.__version__.startswith(said["packages"]["torch"].partition("+")[0])
    assert said["cpu"] and said["num_cores"] >= 1
    assert not said["command"].startswith("/")


def test_the_commit_is_the_checkouts() -> None:
    root = Path(__file__).parents[1]
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
    assert provenance()["commit"] in ((None,) if head.returncode else (head.stdout.strip(), head.stdout.strip() + "+"))
