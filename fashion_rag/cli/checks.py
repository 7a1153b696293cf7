"""Checks of options that need nothing heavy imported or loaded: paths, numbers, installed packages.

Every command calls them first, so that a wrong option costs no time. Each check raises InvalidRequest, which names the
option, the value, and the rule.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from fashion_rag.errors import InvalidRequest
from fashion_rag.manifest import Manifest
from fashion_rag.request import CATEGORIES

PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MANIFEST_FILE = "manifest.json"


def check_file(option: str, path: Path | None) -> None:
    """Check that a file, if one is given, is there and may be read."""
    if path is None:
        return
    if path.is_dir() or not path.exists():  # a pipe will do
        raise InvalidRequest(option, str(path), "must be a file" if path.exists() else "must be a file that exists")
    if not os.access(path, os.R_OK):
        raise InvalidRequest(option, str(path), "must be a file that may be read")


def check_folder(option: str, path: Path | None) -> None:
    """Check that a folder, if one is given, is there."""
    if path is not None and not path.is_dir():
        raise InvalidRequest(option, str(path), "must be a folder" if path.exists() else "must be a folder that exists")


def check_out_folder(option: str, path: Path) -> None:
    """Check that a folder can be made, or, if it exists, can be written to."""
    if path.exists() and not path.is_dir():
        raise InvalidRequest(option, str(path), "must be a folder, and is a file")
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise InvalidRequest(option, str(path), f"must be a folder, and {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InvalidRequest(option, str(path), f"must be in a folder that may be written to, and {nearest} may not")


def check_out_file(option: str, path: Path | None, suffixes: Sequence[str] = ()) -> None:
    """Check that a file, if one is given, can be written. suffixes: if any, its name must end in one of these."""
    if path is None:
        return
    if path.is_dir():
        raise InvalidRequest(option, str(path), "must be a file, and is a folder")
    if suffixes and path.suffix.lower() not in suffixes:
        raise InvalidRequest(option, str(path), f"must end in one of {', '.join(suffixes)}")
    check_out_folder(option, path.parent)
    if path.exists() and not os.access(path, os.W_OK):
        raise InvalidRequest(option, str(path), "must be a file that may be written")


def check_bundle(path: Path) -> Manifest:
    """Check that `path` is the folder of a bundle, and return its manifest."""
    check_folder("bundle", path)
    if not (path / MANIFEST_FILE).is_file():
        raise InvalidRequest("bundle", str(path), f"must be the folder of a model bundle, and has no {MANIFEST_FILE}")
    return Manifest.read(path / MANIFEST_FILE)


def check_catalogue(catalogue: str | None) -> None:
    """Check that a catalogue, if a local one is given, is there. A URL is checked when the catalogue is opened."""
    if catalogue is None or "://" in catalogue:
        return
    check_folder("catalogue", Path(catalogue))
    if not (Path(catalogue) / "CURRENT").is_file():
        raise InvalidRequest("catalogue", catalogue, "must be a folder that `fashion-rag index build` has written")


def check_category(option: str, category: str) -> None:
    """Check that a category is one of the three that there are."""
    if category not in CATEGORIES:
        raise InvalidRequest(option, category, f"must be one of {', '.join(CATEGORIES)}")


def check_least(option: str, value: float | None, least: float) -> None:
    """Check that a number, if one is given, is at least `least`."""
    if value is not None and not value >= least:
        raise InvalidRequest(option, value, f"must be at least {least:g}")


def check_between(option: str, value: float, least: float, most: float) -> None:
    """Check that a number is at least `least` and at most `most`."""
    if not least <= value <= most:
        raise InvalidRequest(option, value, f"must be from {least:g} to {most:g}")


def check_installed(option: str, value: object, package: str, extra: str) -> None:
    """Check that a package of one of the optional extras is installed."""
    if find_spec(package) is None:
        raise InvalidRequest(option, value, f"needs more packages: pip install 'fashion-rag[{extra}]'")


def check_device(device: str) -> None:
    """Check that PyTorch knows the device and that this machine has it. It imports PyTorch, so call it last."""
    import torch

    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise InvalidRequest("device", device, "must be cpu, cuda, or cuda:NUMBER") from None
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise InvalidRequest("device", device, f"must be on this machine, which has {torch.cuda.device_count()} GPUs")
