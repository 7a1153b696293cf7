"""A network that torch.compile has compiled, called like the PyTorch module. For GPUs without TensorRT engines."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from export.buckets import Bucket, BucketedModule
from export.modules import ModuleSpec

MAX_COMPILED = 64


class CompiledModule(BucketedModule):
    """A PyTorch module that is compiled once for each batch size."""

    def __init__(
        self,
        module: nn.Module,
        spec: ModuleSpec,
        rows: tuple[int, ...],
        device: torch.device,
        compile_backend: str | Callable[..., object] = "inductor",
        cuda_graphs: bool = True,
    ) -> None:
        """Compile and run every batch size once, which takes minutes for a real network.

        module: on `device`, in the precision that it computes in. rows: the batch sizes. compile_backend: the backend
        of torch.compile.
        """
        super().__init__(spec, rows, device)
        if device.type == "cuda":
            module = module.to(memory_format=torch.channels_last)
        self._call = torch.compile(module, dynamic=False, backend=compile_backend)
        # PyTorch limits how often the same code is compiled, and all modules of a class share their code.
        with torch._dynamo.config.patch(recompile_limit=MAX_COMPILED):
            self.warm_up(cuda_graphs)

    def enqueue(self, bucket: Bucket) -> None:
        """Run the compiled module, which knows this batch size from the warm-up."""
        # Always in the same mode, because what is compiled in one mode is not used in another.
        with torch.inference_mode(False), torch.no_grad():
            bucket.output.copy_(self._call(*bucket.inputs.values()))
