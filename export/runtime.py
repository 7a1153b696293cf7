"""The operator's choice of what runs a bundle's networks. `backend.py` applies it when the networks are opened.

Replicas open a `Runtime`. Configurations contain one, so importing this module imports no networks and nothing that
runs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fashion_rag.artifacts import MANIFEST_FILE
from fashion_rag.manifest import has_parser

if TYPE_CHECKING:
    from export.backend import Parts

ENGINES_FOLDER = "engines"  # in the folder of the ONNX files that they are built from

Backend = Literal["torch", "compile", "onnx", "openvino", "tensorrt"]
Precision = Literal["float32", "float16", "bfloat16"]
# These run exported networks on the CPU, even where there is a GPU.
CPU_BACKENDS: tuple[Backend, ...] = ("onnx", "openvino")


@dataclass(frozen=True)
class Runtime:
    """What runs the networks of a bundle. Paths are strings, so that it can be part of a configuration file.

    bundle: the bundle's folder.
    backend: "auto" is TensorRT where there is a GPU and `compiled` has engines, torch.compile on any other GPU, and
        ONNX Runtime on the CPU where there is no GPU.
    precision: for torch, compile and openvino; onnx and tensorrt compute as the networks were exported. "auto" is
        float16 on a GPU and float32 on a CPU. OpenVINO takes float32 and, on processors with AVX512-BF16 or AMX,
        bfloat16.
    compiled: a folder written by `fashion-rag export`, for onnx, openvino and tensorrt. Without one, the networks are
        exported for the first two when they are first needed, and kept in the user's cache.
    num_threads: for each network under ONNX Runtime or OpenVINO. The caller sets PyTorch's threads for the whole
        process.
    wait_s: how long `open` waits for files that another program is still copying or building.
    """

    bundle: str
    backend: Backend | Literal["auto"] = "auto"
    precision: Precision | Literal["auto"] = "auto"
    compiled: str | None = None
    num_threads: int = 1
    wait_s: float = 0.0

    def missing(self) -> list[str]:
        """Return the manifests that `open` reads and that are not there yet."""
        missing = self.missing_bundle()
        if self.compiled:
            folder = Path(self.compiled)
            if self.backend == "tensorrt":
                folder /= ENGINES_FOLDER
            missing += _missing(folder / MANIFEST_FILE)
        return missing

    def missing_bundle(self) -> list[str]:
        """Return the bundle's manifest in a list, or an empty list if it is there."""
        return _missing(Path(self.bundle) / MANIFEST_FILE)

    @property
    def has_parser(self) -> bool:
        """Return whether the bundle, which is there, has a human parser."""
        return has_parser(Path(self.bundle))

    def open(self, progress: Callable[[], None] | None = None) -> Parts:
        """Return the parts of the bundle, ready to be loaded. Argument and errors as `backend.open_parts`."""
        from export.backend import open_parts

        return open_parts(self, progress)


def _missing(manifest: Path) -> list[str]:
    return [] if manifest.is_file() else [str(manifest)]
