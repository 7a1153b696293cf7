"""An exported network that ONNX Runtime runs on the CPU, called like the PyTorch module it was exported from."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from export.modules import ModuleSpec, check_inputs, module_specs
from export.onnx_files import find_onnx, onnx_path
from fashion_rag.bundle import Bundle


class OnnxModule(nn.Module):
    """A network in an ONNX file, with float32 inputs and outputs, called by one caller at a time."""

    def __init__(self, path: Path, spec: ModuleSpec, num_threads: int) -> None:
        super().__init__()
        self.spec = spec
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        # Operators run one after the other, each on all threads.
        options.inter_op_num_threads = 1
        # It would plan, and keep, memory for each number of rows. Without it, all of them share the same blocks.
        options.enable_mem_pattern = False
        # Threads that spin while they wait would take cores from the other replicas of the machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the module's output.

        inputs: on the CPU, as the spec has them, with any number of rows. Raises FashionRAGError as `check_inputs`.
        """
        check_inputs(self.spec, inputs)
        # NumPy and PyTorch share the memory of inputs and output, so nothing is copied.
        arrays = {name: tensor.numpy() for name, tensor in zip(self.spec.inputs, inputs, strict=True)}
        (output,) = self._session.run(None, arrays)
        return torch.from_numpy(output)


def load_onnx(folder: Path, bundle: Bundle, name: str, num_threads: int) -> OnnxModule:
    """Return the module of this name of `bundle`, from a folder that `fashion-rag export onnx` has written.

    Raises ArtifactError as `find_onnx`.
    """
    spec = module_specs(bundle)[name]
    find_onnx(folder, bundle, spec)
    return OnnxModule(onnx_path(folder, spec), spec, num_threads)
