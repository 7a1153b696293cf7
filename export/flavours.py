"""Which TensorRT there is: NVIDIA's `tensorrt`, or TensorRT for RTX, whose engines are built without a GPU.

Both have one programming interface, of which `to_tensorrt.py` takes the builder and `trt_module.py` the runtime.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from fashion_rag.errors import ArtifactError

TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt_rtx"
# In the order of preference. TensorRT for RTX is pinned by its bindings, which are what `tensorrt_rtx` re-exports.
MODULES = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx_bindings"}


@dataclass(frozen=True)
class Flavour:
    """An installed TensorRT. api: its Python module."""

    name: str
    api: Any

    @property
    def version(self) -> str:
        version: str = self.api.__version__
        return version


def find_flavour(name: str | None = None) -> Flavour:
    """Return the TensorRT of this name, else the first there is. Raises ArtifactError if it is not installed."""
    if name is not None and name not in MODULES:
        raise ArtifactError(f"flavour: got {name!r}; must be one of {', '.join(MODULES)}")
    wanted = [name] if name else list(MODULES)
    for flavour in wanted:
        try:
            return Flavour(flavour, importlib.import_module(MODULES[flavour]))
        except ImportError:
            continue
    raise ArtifactError(f"flavour {' or '.join(wanted)}: not installed; install fashion-rag[gpu]")


def make_log(api: Any) -> Any:
    """Return a TensorRT logger that keeps the messages of errors in `errors`.

    It must outlive what it is given to, which TensorRT does not see to.
    """

    class Log(api.ILogger):
        def __init__(self) -> None:
            api.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= api.ILogger.ERROR:
                self.errors.append(message)

    return Log()
