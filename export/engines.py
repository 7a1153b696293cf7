"""Built engines on disk: found by their key, checked before they are run, built by one process at a time.

`to_tensorrt.py` builds the engines and `trt_module.py` runs them. An engine has two files, named after its key:

    unet-float16-rows1.2.4-tensorrt_rtx-1.7.1.116-portable-5d0c9a1e44b7f203.engine
    ....engine.json    the key, and the engine's size and SHA-256

The second file is written last. An engine is not run if this file is missing, or if the two differ. In the same folder
`manifest.json` says which engines are in use.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from export.flavours import Flavour
from export.modules import ModuleSpec
from export.onnx_files import OnnxFiles
from fashion_rag.artifacts import MANIFEST_FILE, read_config
from fashion_rag.atomic_files import locked, write_whole
from fashion_rag.errors import ArtifactError

PORTABLE = "portable"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineKey:
    """What an engine was built from and for. Only engines of the same key can replace each other.

    module, precision, onnx_sha256: the network, "float32" or "float16", and the ONNX file that it was built from.
    rows: the batch sizes that it runs, rising. inputs, outputs: names and shapes without the batch.
    flavour, version: those of TensorRT (`flavours.py`).
    architecture: the compute capabilities that it runs on, such as "9.0", or "portable" for those that TensorRT for RTX
        builds for when none is named.
    """

    module: str
    precision: str
    onnx_sha256: str
    rows: tuple[int, ...]
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    flavour: str
    version: str
    architecture: str

    @classmethod
    def of(
        cls, spec: ModuleSpec, onnx: OnnxFiles, rows: Sequence[int], flavour: Flavour, architecture: str
    ) -> EngineKey:
        """Return the key of an engine that is built from `onnx` by this TensorRT."""
        return cls(
            module=spec.name,
            precision=onnx.dtype,
            onnx_sha256=onnx.sha256,
            rows=tuple(rows),
            inputs={name: tensor.shape for name, tensor in spec.inputs.items()},
            outputs={name: tensor.shape for name, tensor in spec.outputs.items()},
            flavour=flavour.name,
            version=flavour.version,
            architecture=architecture,
        )

    @property
    def file_name(self) -> str:
        """Return the name of the engine's file: the parts that people look for, then a digest of the whole key."""
        rows = "rows" + ".".join(map(str, self.rows))
        digest = hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()[:16]
        parts = (self.module, self.precision, rows, self.flavour, self.version, self.architecture, digest)
        return "-".join(parts) + ".engine"

    def as_json(self) -> dict[str, Any]:
        """Return the key with the values that it has when it is read from JSON."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values


def get_or_build(folder: Path, key: EngineKey, build: Callable[[], bytes | memoryview]) -> Path:
    """Return the file in `folder` with the engine of `key`. It is built now if it is missing or damaged.

    If several processes ask at once, one builds and the others wait. If `build` raises, its error is passed on and no
    engine is left.
    """
    path = folder / key.file_name
    # Read without the lock first, so that the folder need not be writable if the engine is there.
    with suppress(ArtifactError):
        read_engine(path, key)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):
        try:
            read_engine(path, key)
        except ArtifactError as fault:
            if path.exists():
                logger.warning("%s; building it again", fault)
            _write(path, key, build())
    return path


def read_engine(path: Path, key: EngineKey) -> bytes:
    """Return the engine in `path`, exactly as it was built for `key`.

    Raises ArtifactError, naming what is wrong, for an engine that is missing, cut short, changed or of another key.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: no such engine")
    manifest = read_config(_manifest(path))
    faults = [
        f"{name} is {manifest.get(name)!r}, must be {value!r}"
        for name, value in key.as_json().items()
        if manifest.get(name) != value
    ]
    if faults:
        raise ArtifactError(f"{path}: is another engine: {'; '.join(faults)}")
    engine = path.read_bytes()
    if len(engine) != manifest.get("size_bytes"):
        raise ArtifactError(f"{path}: {len(engine)} bytes, must be {manifest.get('size_bytes')}")
    if hashlib.sha256(engine).hexdigest() != manifest.get("sha256"):
        raise ArtifactError(f"{path}: its content has changed since it was built: SHA-256 differs")
    return engine


def read_key(path: Path) -> EngineKey:
    """Return the key that lies beside the engine in `path`. Raises ArtifactError if there is none."""
    manifest = read_config(_manifest(path))
    missing = [field.name for field in fields(EngineKey) if field.name not in manifest]
    if missing:
        raise ArtifactError(f"{_manifest(path)}: has no {', '.join(missing)}")
    values = {field.name: manifest[field.name] for field in fields(EngineKey)}
    return EngineKey(**values | {"rows": tuple(values["rows"])})


def use_engines(folder: Path, engines: Mapping[str, Path]) -> None:
    """Make these files in `folder`, by the names of their modules, the engines that `engine_in_use` returns."""
    content = {"engines": {module: path.name for module, path in engines.items()}}
    path = folder / MANIFEST_FILE
    with locked(path.with_suffix(".lock")):
        write_whole(path, json.dumps(content, indent=1).encode())


def engine_in_use(folder: Path, module: str) -> Path:
    """Return the file in `folder` with the engine of a module. Raises ArtifactError if there is none."""
    engines = read_config(folder / MANIFEST_FILE).get("engines")
    name = engines.get(module) if isinstance(engines, dict) else None
    if not isinstance(name, str):
        raise ArtifactError(f"{folder / MANIFEST_FILE}: engines.{module} is {name!r}; must be the name of a file")
    return folder / name


def _write(path: Path, key: EngineKey, engine: bytes | memoryview) -> None:
    """Write an engine, and then the file that makes it valid."""
    manifest = key.as_json() | {"size_bytes": len(engine), "sha256": hashlib.sha256(engine).hexdigest()}
    write_whole(path, engine)
    write_whole(_manifest(path), json.dumps(manifest, indent=1).encode())


def _manifest(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
