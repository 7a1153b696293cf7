"""The provenance of a figure, which is written beside every result, so that the result can be repeated.

Commands with --json call it, and so do the benchmarks.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import torch

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "open_clip_torch",
    "ray",
    "onnxruntime",
    "openvino",
    "faiss-cpu",
    "numpy",
)


class Figure(Protocol):
    """A matplotlib figure. As a protocol, it can be named without installing matplotlib."""

    def savefig(self, fname: Path, *, dpi: int) -> None:
        """Write the figure to the file `fname`."""


def write_result(path: Path, result: Mapping[str, object]) -> None:
    """Write a result as JSON; the folder is made if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")


def write_figure(path: Path, figure: Figure, dpi: int = 150) -> None:
    """Write a figure as a picture in the format of the suffix; the folder is made if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)


def provenance() -> dict[str, object]:
    """Return the date, command, commit, hardware and versions of the running process, as plain values for JSON.

    commit: that of the checkout which holds this package, with "+" if files differ from it; None outside a checkout.
    """
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": " ".join([_program(), *sys.argv[1:]]),
        "commit": _commit(),
        "cpu": _cpu(),
        "num_cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def _program() -> str:
    """Return how the running process was started, without paths of this machine."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return Path(sys.argv[0]).name
    return f"python -m {spec.name.removesuffix('.__main__')}"


def _commit() -> str | None:
    """Return the commit as `provenance` gives it."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        commit = git("rev-parse", "--short", "HEAD")
        is_changed = bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+" if is_changed else commit


def _cpu() -> str:
    """Return the name of the processor's model."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
