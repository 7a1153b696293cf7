"""Holds all pages of documentation to what is there: commands exist, cheap blocks run, links lead somewhere.

Blocks whose fence says "```bash run" are run, in their order and in one folder that starts empty; "```bash run slow"
only among the slow tests. Any other block is only checked. The Python example of the first page is run, too.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from fashion_rag.cli import app
from fashion_rag.demo.world.attributes import sample_person
from fashion_rag.demo.world.catalogue import ensure_demo_world
from fashion_rag.demo.world.draw import render
from fashion_rag.manifest import DEMO_BUNDLE

ROOT = Path(__file__).parents[1]
TRACKED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True, text=True
).stdout.split()
# Without git, as in an unpacked archive, the pages are those beside the packages.
PAGE_PATHS = TRACKED or ["README.md", *(str(path.relative_to(ROOT)) for path in ROOT.glob("*/README.md"))]
PAGES = {ROOT / name: (ROOT / name).read_text() for name in PAGE_PATHS if not name.startswith("benchmarks/results/")}
TEXT = "\n".join(PAGES.values())
BLOCKS = re.findall(r"^```bash([^\n]*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
RUNNABLE = [
    pytest.param(block, id=block.split("\n")[0], marks=[pytest.mark.slow] if "slow" in info else [])
    for info, block in BLOCKS
    if "run" in info.split()
]
SPANS = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL))


def commands(program: str) -> list[list[str]]:
    """Return the arguments of each call of `program` in the pages' bash blocks and code spans."""
    lines = [line for _, block in BLOCKS for line in block.replace("\\\n", " ").splitlines()] + SPANS
    words = [shlex.split(line, comments=True) for line in lines if re.match(rf"{program}( |$)", line.strip())]
    return [call[1:] for call in words]


def unknown_words(arguments: list[str]) -> list[str]:
    """Return the options and subcommands among `arguments` that the `fashion-rag` command does not have."""
    command: Any = typer.main.get_command(app)
    unknown = []
    for word in arguments:
        if word.startswith("--"):
            options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
            unknown += [word] if word.partition("=")[0] not in options else []
        elif hasattr(command, "commands"):
            if word not in command.commands:
                return [word]
            command = command.commands[word]
    return unknown


def test_the_readme_has_examples() -> None:
    assert RUNNABLE
    assert commands("make")
    assert commands("fashion-rag")


def test_manifests_that_are_applied_exist() -> None:
    applied = re.findall(r"kubectl apply -[kf] (k8s/\S+)", TEXT)
    assert applied
    assert [path for path in applied if not (ROOT / path).exists()] == []


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {target for call in commands("make") for target in call} - targets == set()


@pytest.mark.parametrize("arguments", commands("fashion-rag"), ids=" ".join)
def test_commands_and_their_options_exist(arguments: list[str]) -> None:
    assert unknown_words(arguments) == []


def test_an_unknown_command_or_option_is_found() -> None:
    assert unknown_words(["demo", "world", "out", "--num-pairs", "8"]) == []
    assert unknown_words(["demo", "universe"]) == ["universe"]
    assert unknown_words(["demo", "world", "out", "--num-couples", "8"]) == ["--num-couples"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


@pytest.mark.parametrize("block", RUNNABLE)
def test_examples_run(block: str, folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd=folder, env=os.environ | {"PATH": path}, capture_output=True
    )
    assert run.returncode == 0, run.stderr.decode()


@pytest.mark.slow
def test_the_python_example_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGES[ROOT / "README.md"], re.MULTILINE | re.DOTALL)
    (tmp_path / "my-bundle").symlink_to(DEMO_BUNDLE)
    catalogue = ensure_demo_world(tmp_path / "world", DEMO_BUNDLE)
    (tmp_path / "my-catalogue").symlink_to(catalogue)
    drawn = render(sample_person(np.random.default_rng(1), "upper_body"), (192, 144)).image
    Image.fromarray(drawn).save(tmp_path / "person.jpg")
    run = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True)
    assert run.returncode == 0, run.stderr.decode()
    assert run.stdout.decode().startswith("upper_body 1.0")
    with Image.open(tmp_path / "edited.png") as edited:
        assert edited.size == (144, 192)


def test_prose_lines_are_short() -> None:
    for path, text in PAGES.items():
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL).splitlines()
        long = [line for line in prose if len(line) > 120 and not line.startswith(("|", "!["))]
        assert long == [], path


LINKS = sorted(
    {(path, target) for path, text in PAGES.items() for target in re.findall(r"\]\((?!https?:)([^)]+)", text)}
)


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_links_lead_to_files_and_headings(page: Path, target: str) -> None:
    name, _, heading = target.partition("#")
    assert (page.parent / name).exists()
    titles = re.findall(r"^#+ (.*)$", PAGES.get((page.parent / name).resolve(), PAGES[page]), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
    assert not heading or heading in anchors
