"""Calls of a network at a few fixed batch sizes: what TensorRT and torch.compile have in common.

Each batch size has input and output tensors of its own and, on a GPU, one CUDA graph of its whole run. A call goes to
the smallest size that holds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from export.modules import ModuleSpec, check_inputs

# Calls of other sizes are padded to the next of these, and larger ones split.
UNET_ROWS = (1, 2, 4, 8, 16, 32)
OTHER_ROWS = (1, 2, 4, 8)


def rows_of(spec: ModuleSpec) -> tuple[int, ...]:
    """Return the batch sizes that a network is compiled for."""
    return UNET_ROWS if spec.name in ("unet", "unet_shallow") else OTHER_ROWS


@dataclass
class Bucket:
    """One batch size. inputs: by name, as the network's spec has them. graph: None where calls are not captured."""

    inputs: dict[str, Tensor]
    output: Tensor
    graph: torch.cuda.CUDAGraph | None = None

    @classmethod
    def of(cls, spec: ModuleSpec, num_rows: int, device: torch.device) -> Bucket:
        """Return the zeros for `num_rows` rows."""
        inputs, outputs = (
            {
                name: torch.zeros(num_rows, *tensor.shape, dtype=tensor.dtype, device=device)
                for name, tensor in tensors.items()
            }
            for tensors in (spec.inputs, spec.outputs)
        )
        (output,) = outputs.values()
        return cls(inputs, output)


class BucketedModule(nn.Module):
    """A network that `enqueue` runs at fixed batch sizes, called with any number of rows; one caller at a time."""

    def __init__(self, spec: ModuleSpec, rows: tuple[int, ...], device: torch.device) -> None:
        super().__init__()
        self.spec = spec
        self.device = device
        self.buckets = {num_rows: Bucket.of(spec, num_rows, device) for num_rows in rows}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def enqueue(self, bucket: Bucket) -> None:
        """Fill `bucket.output` from `bucket.inputs`; on a GPU, on the current stream, and not waited for."""
        raise NotImplementedError

    def warm_up(self, cuda_graphs: bool) -> None:
        """Run, and on a GPU capture, every batch size once, so that no edit waits for that."""
        for bucket in self.buckets.values():
            if self._stream is None:
                self.enqueue(bucket)
                continue
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            # What is done at a first run only must not be captured.
            with torch.cuda.stream(self._stream):
                self.enqueue(bucket)
            self._stream.synchronize()
            if cuda_graphs:
                bucket.graph = torch.cuda.CUDAGraph()
                # Other threads of a replica may go on using the GPU.
                with torch.cuda.graph(bucket.graph, stream=self._stream, capture_error_mode="thread_local"):
                    self.enqueue(bucket)

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the network's output, float32 on this device, for inputs as its `spec` has them, of any number of
        rows.
        """
        parts = split_rows(check_inputs(self.spec, inputs), tuple(self.buckets))
        run = self._run if self._stream is None else partial(self._run_on, self._stream)
        outputs = [run(self.buckets[size], [tensor[rows] for tensor in inputs]) for rows, size in parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _run_on(self, stream: torch.cuda.Stream, bucket: Bucket, inputs: list[Tensor]) -> Tensor:
        caller = torch.cuda.current_stream(self.device)
        stream.wait_stream(caller)
        with torch.cuda.stream(stream):
            output = self._run(bucket, inputs)
        caller.wait_stream(stream)
        # Made on one stream and used on another: its memory must not be given away before the caller is done.
        output.record_stream(caller)
        return output

    def _run(self, bucket: Bucket, inputs: list[Tensor]) -> Tensor:
        num_rows = len(inputs[0])
        for buffer, tensor in zip(bucket.inputs.values(), inputs, strict=True):
            buffer[:num_rows].copy_(tensor)
            buffer[num_rows:].zero_()
        if bucket.graph:
            bucket.graph.replay()
        else:
            self.enqueue(bucket)
        return bucket.output[:num_rows].clone()


def split_rows(num_rows: int, sizes: tuple[int, ...]) -> list[tuple[slice, int]]:
    """Return the calls that `num_rows` rows make: which rows, and the smallest of the rising `sizes` that holds them.

    More rows than the largest size holds make several calls.
    """
    calls = [slice(start, min(start + sizes[-1], num_rows)) for start in range(0, num_rows, sizes[-1])]
    return [(rows, next(size for size in sizes if size >= rows.stop - rows.start)) for rows in calls]
