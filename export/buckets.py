"""Networks that are called at a few fixed batch sizes, as TensorRT and torch.compile need it.

Each batch size has input and output tensors of its own and, on a GPU, a CUDA graph of its whole run. A call takes the
smallest size that holds its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from export.modules import ModuleSpec, blank_tensors, check_inputs

# Calls of other sizes are padded to the next of these sizes. Calls that are larger than all of them are split.
UNET_ROWS = (1, 2, 4, 8, 16, 32)
OTHER_ROWS = (1, 2, 4, 8)


def rows_of(spec: ModuleSpec) -> tuple[int, ...]:
    """Return the batch sizes that a network is compiled for."""
    return UNET_ROWS if spec.name.startswith("unet") else OTHER_ROWS


@dataclass(eq=False)
class Bucket:
    """The tensors of one batch size.

    inputs: by name, in the order of the network's spec. graph: a CUDA graph of the run; None if it is not captured.
    """

    inputs: dict[str, Tensor]
    output: Tensor
    graph: torch.cuda.CUDAGraph | None = None

    @classmethod
    def of(cls, spec: ModuleSpec, num_rows: int, device: torch.device) -> Bucket:
        """Return a bucket of `num_rows` rows; its tensors are zero."""
        inputs = dict(zip(spec.inputs, blank_tensors(spec.inputs, num_rows, device), strict=True))
        (output,) = blank_tensors(spec.outputs, num_rows, device)
        return cls(inputs, output)


class BucketedModule(nn.Module):
    """A network that runs at fixed batch sizes and is called with any number of rows, by one caller at a time."""

    def __init__(self, spec: ModuleSpec, rows: tuple[int, ...], device: torch.device) -> None:
        super().__init__()
        self.spec = spec
        self.device = device
        self.buckets = {num_rows: Bucket.of(spec, num_rows, device) for num_rows in rows}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def enqueue(self, bucket: Bucket) -> None:
        """Compute `bucket.output` from `bucket.inputs`; on a GPU, put that on the current stream without waiting."""
        raise NotImplementedError

    def warm_up(self, cuda_graphs: bool) -> None:
        """Run every batch size once, and on a GPU capture it, so that no edit has to wait for that."""
        for bucket in self.buckets.values():
            if self._stream is None:
                self.enqueue(bucket)
                continue
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            # Run before it is captured, because a first run does more than later ones.
            with torch.cuda.stream(self._stream):
                self.enqueue(bucket)
            self._stream.synchronize()
            if cuda_graphs:
                bucket.graph = torch.cuda.CUDAGraph()
                # In this mode, other threads of the replica may use the GPU meanwhile.
                with torch.cuda.graph(bucket.graph, stream=self._stream, capture_error_mode="thread_local"):
                    self.enqueue(bucket)

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the network's output, float32 on this device.

        inputs: as the spec has them, with any number of rows. Raises FashionRAGError as `check_inputs`.
        """
        parts = split_rows(check_inputs(self.spec, inputs), tuple(self.buckets))
        run = self._run if self._stream is None else partial(self._run_on, self._stream)
        outputs = [run(self.buckets[size], [tensor[rows] for tensor in inputs]) for rows, size in parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _run_on(self, stream: torch.cuda.Stream, bucket: Bucket, inputs: list[Tensor]) -> Tensor:
        """Return what `_run` returns, computed on `stream` between the work on the caller's stream."""
        caller = torch.cuda.current_stream(self.device)
        stream.wait_stream(caller)
        with torch.cuda.stream(stream):
            output = self._run(bucket, inputs)
        caller.wait_stream(stream)
        # The output is used on another stream, so its memory must not be reused before that stream is done with it.
        output.record_stream(caller)
        return output

    def _run(self, bucket: Bucket, inputs: list[Tensor]) -> Tensor:
        """Return the output for inputs of at most as many rows as the bucket has; the rows beyond them are zero."""
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
    """Return the calls for `num_rows` rows: the rows of each call, and the smallest size that holds them.

    sizes: rising. There are several calls if the largest size does not hold all rows.
    """
    calls = []
    for start in range(0, num_rows, sizes[-1]):
        stop = min(start + sizes[-1], num_rows)
        calls.append((slice(start, stop), next(size for size in sizes if size >= stop - start)))
    return calls
