"""Where a figure comes from: written beside every result, so that it can be repeated. Commands with --json call it."""

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

PACKAGES = ("torch", "diffusers", "transformers", "open_clip_torch", "ray", "onnxruntime", "faiss-cpu", "numpy")


class Figure(Protocol):
    """A matplotlib figure, which only those who draw one need matplotlib for."""

    def savefig(self, fname: Path, *, dpi: int) -> None: ...


def write_result(path: Path, result: Mapping[str, object]) -> None:
    """Write a result as JSON, into a folder that need not exist yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")


def write_figure(path: Path, figure: Figure, dpi: int = 150) -> None:
    """Write a figure as a picture, into a folder that need not exist yet; the suffix says in which format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)


def provenance() -> dict[str, object]:
    """Return the date, command, commit, hardware and versions of the running process, as plain values for JSON.

    commit: of the checkout that holds this package, with "+" where files differ from it; None outside a checkout.
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
    """Return how the running process was started, without the folders of this machine."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return Path(sys.argv[0]).name
    return f"python -m {spec.name.removesuffix('.__main__')}"


def _commit() -> str | None:
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
