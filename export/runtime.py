"""What is to run a bundle's networks, as an operator says it. `backend.py` decides on it where networks are opened.

Replicas open a `Runtime`. Importing this module imports no network and nothing that runs one: configurations have it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fashion_rag.artifacts import MANIFEST_FILE

if TYPE_CHECKING:
    from export.backend import Parts

ENGINES_FOLDER = "engines"  # in the folder of the ONNX files that they are built from

Backend = Literal["torch", "compile", "onnx", "tensorrt"]
Precision = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class Runtime:
    """What is to run the networks of a bundle. Strings, so that it can stand in a configuration file.

    bundle: its folder. backend: "auto" takes TensorRT where there is a GPU and `compiled` has engines, torch.compile on
    any other GPU, and ONNX Runtime on the CPU where there is none. precision: of torch and compile; what was exported
    has its own. "auto" is float16 on a GPU and float32 on a CPU.

    compiled: a folder written by `fashion-rag export`, for onnx and tensorrt. Without one, the networks are exported
    for ONNX Runtime when they are first needed, and kept in the user's cache.

    num_threads: of each network under ONNX Runtime. PyTorch's own are set for the whole process, by the caller.

    wait_s: how long `open` waits for what is not there yet, because something else is still copying or building it.
    """

    bundle: str
    backend: Backend | Literal["auto"] = "auto"
    precision: Precision | Literal["auto"] = "auto"
    compiled: str | None = None
    num_threads: int = 1
    wait_s: float = 0.0

    def missing(self) -> list[str]:
        """Return the manifests that `open` reads and that are not there (yet)."""
        if not self.compiled:
            return self.missing_bundle()
        folder = Path(self.compiled)
        manifest = (folder / ENGINES_FOLDER if self.backend == "tensorrt" else folder) / MANIFEST_FILE
        return self.missing_bundle() + ([] if manifest.is_file() else [str(manifest)])

    def missing_bundle(self) -> list[str]:
        """Return the bundle's manifest, unless it is there."""
        manifest = Path(self.bundle) / MANIFEST_FILE
        return [] if manifest.is_file() else [str(manifest)]

    def open(self, progress: Callable[[], None] | None = None) -> Parts:
        """Return the parts of the bundle, ready to be loaded. Argument and errors as `backend.open_parts`."""
        from export.backend import open_parts

        return open_parts(self, progress)
