"""An exported network that OpenVINO runs on the CPU, called like the PyTorch module it was exported from.

`backend.py` loads it, from the same files as `onnx_module.py`.
"""

from __future__ import annotations

from pathlib import Path

import openvino
import torch
from torch import Tensor, nn

from export.modules import ModuleSpec, check_inputs, module_specs
from export.onnx_files import find_onnx, onnx_path
from fashion_rag.bundle import Bundle

PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}


class OpenVinoModule(nn.Module):
    """A network in an ONNX file, with float32 inputs and outputs, called by one caller at a time."""

    def __init__(self, path: Path, spec: ModuleSpec, num_threads: int, dtype: torch.dtype = torch.float32) -> None:
        """Compile the network, once for all numbers of rows.

        dtype: what products and convolutions compute in, float32 or bfloat16.
        """
        super().__init__()
        self.spec = spec
        (output,) = spec.outputs.values()
        self._output_shape = output.shape
        settings = {
            # Without this, OpenVINO takes bfloat16 on processors that have it.
            "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
            "INFERENCE_NUM_THREADS": num_threads,
            # A call runs alone, on all threads.
            "NUM_STREAMS": 1,
            # Pinned threads of several replicas would meet on the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        self._request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the module's output.

        inputs: on the CPU, as the spec has them, with any number of rows. Raises FashionRAGError as `check_inputs`.
        """
        num_rows = check_inputs(self.spec, inputs)
        arrays = {name: tensor.numpy() for name, tensor in zip(self.spec.inputs, inputs, strict=True)}
        # OpenVINO reads and writes the memory of these tensors, so nothing is copied.
        output = torch.empty(num_rows, *self._output_shape)
        self._request.set_output_tensor(openvino.Tensor(output.numpy(), shared_memory=True))
        self._request.infer(arrays, share_inputs=True, share_outputs=True)
        return output


def load_openvino(
    folder: Path, bundle: Bundle, name: str, num_threads: int, dtype: torch.dtype = torch.float32
) -> OpenVinoModule:
    """Return the module of this name of `bundle`, from a folder that `fashion-rag export onnx` has written.

    dtype: as `OpenVinoModule` takes it. Raises ArtifactError as `find_onnx`.
    """
    spec = module_specs(bundle)[name]
    find_onnx(folder, bundle, spec)
    return OpenVinoModule(onnx_path(folder, spec), spec, num_threads, dtype)
