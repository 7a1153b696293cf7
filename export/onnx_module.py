"""Runs an exported network on the CPU with ONNX Runtime, called like the PyTorch module it was exported from."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from export.modules import ModuleSpec, check_inputs, module_specs
from export.onnx_files import find_onnx, onnx_path
from fashion_rag.bundle import Bundle


class OnnxModule(nn.Module):
    """A network in an ONNX file, float32 at its border; one caller at a time."""

    def __init__(self, path: Path, spec: ModuleSpec, num_threads: int) -> None:
        super().__init__()
        self.spec = spec
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        # Operators run one after the other, each on all the threads.
        options.inter_op_num_threads = 1
        # Threads that spin while they wait take the cores from the other replicas of the machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the module's output for inputs on the CPU as its `spec` has them, of any number of rows.

        Raises FashionRAGError, naming the input, for one of another shape or dtype.
        """
        check_inputs(self.spec, inputs)
        # Both ways the memory is shared.
        arrays = {name: tensor.numpy() for name, tensor in zip(self.spec.inputs, inputs, strict=True)}
        (output,) = self._session.run(None, arrays)
        return torch.from_numpy(output)


def load_onnx(folder: Path, bundle: Bundle, name: str, num_threads: int) -> OnnxModule:
    """Return the module of this name of `bundle`, out of a folder written by `fashion-rag export onnx`.

    Raises ArtifactError, naming the reason, for files that are damaged or of another bundle.
    """
    spec = module_specs(bundle)[name]
    find_onnx(folder, bundle, spec)
    return OnnxModule(onnx_path(folder, spec), spec, num_threads)
