"""A folder of exported ONNX files: which there are, what they were made of, and whether they are sound.

`to_onnx.py` writes it; whoever runs or compiles the files asks here for them first.
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
    """The ONNX file of one module and what it was made of.

    files: SHA-256 by name, also of the file of external weights where there is one. weights: as `ModuleSpec.weights`
    has it. dtype: of the weights, "float32" or "float16". inputs, outputs: names and shapes without the batch.
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
    """Return the shapes by name, without the batch, as they are kept in JSON."""
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def write_manifest(folder: Path, modules: Mapping[str, OnnxFiles]) -> None:
    """Write what `find_onnx` reads."""
    write_json(folder / MANIFEST_FILE, {"modules": {name: asdict(files) for name, files in modules.items()}})


def find_onnx(folder: Path, bundle: Bundle, spec: ModuleSpec) -> OnnxFiles:
    """Return the files in `folder` of a module of `bundle`, byte for byte as they were exported.

    Raises ArtifactError, naming what is wrong, for files that are missing, cut short, changed, or of other weights or
    sizes than the bundle's.
    """
    found = _entry(folder / MANIFEST_FILE, spec.name)
    for name, expected in found.files.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file")
        if (got := sha256(path)) != expected:
            raise ArtifactError(f"{path}: has changed since it was exported: SHA-256 is {got}, must be {expected}")
    for name, got_shapes, tensors in (
        ("inputs", found.inputs, spec.inputs),
        ("outputs", found.outputs, spec.outputs),
    ):
        if got_shapes != shapes(tensors):
            raise ArtifactError(f"{onnx_path(folder, spec)}: {name} are {got_shapes}, must be {shapes(tensors)}")
    if found.weights != spec.weights(bundle):
        raise ArtifactError(f"{onnx_path(folder, spec)}: was exported of other weights than those of {bundle.path}")
    return found


def _entry(manifest: Path, module: str) -> OnnxFiles:
    modules: Any = read_config(manifest).get("modules")
    entry = modules.get(module) if isinstance(modules, dict) else None
    wanted = {field.name for field in fields(OnnxFiles)}
    if not isinstance(entry, dict) or set(entry) != wanted:
        raise ArtifactError(f"{manifest}: modules.{module} is {entry!r}; must be an object with {sorted(wanted)}")
    return OnnxFiles(**entry)
