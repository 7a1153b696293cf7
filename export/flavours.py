"""The TensorRT that is installed: NVIDIA's `tensorrt`, or TensorRT for RTX, which builds engines without a GPU.

Both have the same programming interface. `to_tensorrt.py` uses its builder, and `trt_module.py` its runtime.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from fashion_rag.errors import ArtifactError

TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt_rtx"
# In the order of preference. `tensorrt_rtx` only re-exports its bindings, which is the package that is pinned.
MODULES = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx_bindings"}


@dataclass(frozen=True)
class Flavour:
    """An installed TensorRT.

    name: TENSORRT or TENSORRT_RTX. api: its Python module.
    """

    name: str
    api: Any

    @property
    def version(self) -> str:
        """Return the version of this TensorRT."""
        version: str = self.api.__version__
        return version


def find_flavour(name: str | None = None) -> Flavour:
    """Return the TensorRT of this name, or without a name the first that is installed.

    Raises ArtifactError if it is not installed.
    """
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

    The caller must keep it as long as the objects that it is given to, because TensorRT does not.
    """

    class Log(api.ILogger):
        def __init__(self) -> None:
            api.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= api.ILogger.ERROR:
                self.errors.append(message)

    return Log()
