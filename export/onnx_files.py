"""A folder of exported ONNX files: which files it has, what they were exported from, and whether they are unchanged.

`to_onnx.py` writes it. All modules that run or compile the files get them through `find_onnx`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from export.modules import ModuleSpec, TensorSpec
from fashion_rag.artifacts import MANIFEST_FILE, read_config, sha256, write_json
from fashion_rag.bundle import Bundle
from fashion_rag.errors import ArtifactError


@dataclass(frozen=True)
class OnnxFiles:
    """The ONNX files of one module, and what they were exported from.

    files: SHA-256 by name, of the ONNX file and of the file of external weights if there is one.
    weights: as `ModuleSpec.weights` returns it. dtype: of the weights, "float32" or "float16".
    opset, torch: the version of ONNX's operators, and that of PyTorch.
    inputs, outputs: names and shapes without the batch.
    """

    files: dict[str, str]
    weights: str
    dtype: str
    opset: int
    torch: str
    inputs: dict[str, list[int]]
    outputs: dict[str, list[int]]

    @property
    def sha256(self) -> str:
        """Return one digest of all the files."""
        return hashlib.sha256("".join(self.files.values()).encode()).hexdigest()


def onnx_path(folder: Path, spec: ModuleSpec) -> Path:
    """Return the ONNX file of a module; external weights lie beside it."""
    return folder / f"{spec.name}.onnx"


def shapes(tensors: Mapping[str, TensorSpec]) -> dict[str, list[int]]:
    """Return the shapes by name, without the batch, as they are written to JSON."""
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def write_manifest(folder: Path, modules: Mapping[str, OnnxFiles]) -> None:
    """Write the manifest that `find_onnx` reads."""
    write_json(folder / MANIFEST_FILE, {"modules": {name: asdict(files) for name, files in modules.items()}})


def find_onnx(folder: Path, bundle: Bundle, spec: ModuleSpec) -> OnnxFiles:
    """Return the files in `folder` of a module of `bundle`, after checking that they are as they were exported.

    Raises ArtifactError, naming what is wrong, for files that are missing, cut short, changed, or of other weights or
    sizes than the bundle's.
    """
    exported = _entry(folder / MANIFEST_FILE, spec.name)
    for name, expected in exported.files.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file")
        if (got := sha256(path)) != expected:
            raise ArtifactError(f"{path}: has changed since it was exported: SHA-256 is {got}, must be {expected}")
    for name, got_shapes, tensors in (
        ("inputs", exported.inputs, spec.inputs),
        ("outputs", exported.outputs, spec.outputs),
    ):
        if got_shapes != shapes(tensors):
            raise ArtifactError(f"{onnx_path(folder, spec)}: {name} are {got_shapes}, must be {shapes(tensors)}")
    if exported.weights != spec.weights(bundle):
        raise ArtifactError(f"{onnx_path(folder, spec)}: was exported of other weights than those of {bundle.path}")
    return exported


def _entry(manifest: Path, module: str) -> OnnxFiles:
    """Return what the manifest says of a module. Raises ArtifactError if it does not list the module."""
    modules: Any = read_config(manifest).get("modules")
    entry = modules.get(module) if isinstance(modules, dict) else None
    wanted = {field.name for field in fields(OnnxFiles)}
    if not isinstance(entry, dict) or set(entry) != wanted:
        raise ArtifactError(f"{manifest}: modules.{module} is {entry!r}; must be an object with {sorted(wanted)}")
    return OnnxFiles(**entry)
