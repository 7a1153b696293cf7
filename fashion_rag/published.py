"""Published models: where they are fetched from, how older files are read, and what their cards say of their licence.

The imports into a bundle call it, and the evaluation's metrics.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from huggingface_hub import metadata_load, snapshot_download
from torch import Tensor

from fashion_rag.errors import ArtifactError

CARD_FILE = "README.md"


def folder_of(source: str, files: Sequence[str]) -> Path:
    """Return the folder `source`, or else the folder that `files` of the hub's `source` have been fetched into.

    Raises ArtifactError if there is neither.
    """
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(snapshot_download(source, allow_patterns=list(files)))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{source}: no such folder, nor could it be fetched from the hub: {error}") from error


def read_pth(path: Path) -> dict[str, Tensor]:
    """Return the state dict that a `.pth` or `.bin` file holds. Raises ArtifactError, naming the path.

    No code that a file may contain is run.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise ArtifactError(f"{path}: not a readable file of weights: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ArtifactError(f"{path}: not a plain state dict of tensors")
    return state


def read_card(folder: Path) -> str:
    """Return the model card in `folder`; an empty text if there is none."""
    card = folder / CARD_FILE
    return card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""


def stated_licence(folder: Path) -> str | None:
    """Return the licence that the model card in `folder` states; None if there is no such card or statement."""
    card = folder / CARD_FILE
    if not card.is_file():
        return None
    try:
        stated = metadata_load(card) or {}
    except (UnicodeDecodeError, ValueError, yaml.YAMLError):
        return None
    # The name of a licence that the hub does not know is in an entry of its own.
    licence = stated.get("license_name") or stated.get("license")
    return str(licence) if licence else None
