"""Runs a built engine, called like the PyTorch module it was built from. For GPU replicas.

A call goes to the smallest of the engine's batch sizes that holds it. Each of these has an execution context with its
own input and output tensors, and one CUDA graph of its whole run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.engines import (
    ENGINES_FOLDER,
    EngineKey,
    engine_in_use,
    locked,
    read_engine,
    read_key,
    write_whole,
)
from export.flavours import TENSORRT_RTX, Flavour, find_flavour, make_log
from export.modules import ModuleSpec, check_inputs, module_specs
from export.onnx_files import find_onnx
from fashion_rag.bundle import Bundle
from fashion_rag.errors import ArtifactError


@dataclass
class _Bucket:
    """One batch size. graph: None where calls are not captured."""

    context: Any
    inputs: dict[str, Tensor]
    output: Tensor
    graph: torch.cuda.CUDAGraph | None = None


class TrtModule(nn.Module):
    """An engine on a GPU; one caller at a time."""

    def __init__(
        self,
        path: Path,
        key: EngineKey,
        spec: ModuleSpec,
        device: torch.device | str = "cuda",
        *,
        runtime_cache: Path | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        """Load, run and capture every batch size once, so that no edit waits for that.

        runtime_cache: file in which TensorRT for RTX keeps the kernels that it compiles for this GPU; written if it can
        be and is not there or of no use. Raises ArtifactError for an engine that is not sound, or not for this GPU.
        """
        super().__init__()
        self.path, self.key, self.spec = path, key, spec
        self.device = torch.device(device)
        flavour = find_flavour(key.flavour)
        self._rtx = flavour.name == TENSORRT_RTX
        self._api = flavour.api
        engine = read_engine(path, key)
        if not torch.cuda.is_available():
            raise ArtifactError(f"{path}: runs on an NVIDIA GPU only, and PyTorch finds none")
        with torch.cuda.device(self.device):
            # TensorRT's objects must outlive what they make.
            self._log = make_log(self._api)
            self._runtime = self._api.Runtime(self._log)
            check_gpu(flavour, engine, path)
            self._engine = self._made(self._runtime.deserialize_cuda_engine(engine), "not loaded")
            self._stream = torch.cuda.Stream()
            # Batch sizes run one at a time, so they share their scratch memory.
            self._scratch = torch.empty(self._engine.device_memory_size_v2, dtype=torch.uint8, device=self.device)
            self._config, cache = self._runtime_config(runtime_cache)
            self.buckets = {rows: self._bucket(index, rows) for index, rows in enumerate(key.rows)}
            for bucket in self.buckets.values():
                self._warm_up(bucket, cuda_graphs)
        # Engines may lie where they can only be read.
        if cache and runtime_cache and os.access(runtime_cache.parent, os.W_OK):
            with locked(runtime_cache.with_name(f"{runtime_cache.name}.lock")):
                write_whole(runtime_cache, memoryview(cache.serialize()).cast("B"))

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Tensor:
        """The module's output, float32 on this device, for inputs as its `spec` has them, of any number of rows."""
        parts = split_rows(check_inputs(self.spec, inputs), self.key.rows)
        outputs = [self._run(self.buckets[size], [tensor[rows] for tensor in inputs]) for rows, size in parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _run(self, bucket: _Bucket, inputs: list[Tensor]) -> Tensor:
        num_rows = len(inputs[0])
        caller = torch.cuda.current_stream(self.device)
        # Made on the caller's stream, which waits for ours: no tensor's memory is used again too early.
        output = torch.empty_like(bucket.output[:num_rows])
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            for buffer, tensor in zip(bucket.inputs.values(), inputs, strict=True):
                buffer[:num_rows].copy_(tensor)
                buffer[num_rows:].zero_()
            if bucket.graph:
                bucket.graph.replay()
            else:
                self._enqueue(bucket)
            output.copy_(bucket.output[:num_rows])
        caller.wait_stream(self._stream)
        return output

    def _enqueue(self, bucket: _Bucket) -> None:
        if not bucket.context.execute_async_v3(self._stream.cuda_stream):
            raise RuntimeError(f"{self.path}: {len(bucket.output)} rows: {'; '.join(self._log.errors)}")

    def _warm_up(self, bucket: _Bucket, cuda_graphs: bool) -> None:
        self._stream.wait_stream(torch.cuda.current_stream())
        # What TensorRT does at a first run only must not be captured.
        self._enqueue(bucket)
        self._stream.synchronize()
        if cuda_graphs:
            bucket.graph = torch.cuda.CUDAGraph()
            # Other threads of a replica may go on using the GPU.
            with torch.cuda.graph(bucket.graph, stream=self._stream, capture_error_mode="thread_local"):
                self._enqueue(bucket)

    def _bucket(self, profile: int, num_rows: int) -> _Bucket:
        context = self._made(self._engine.create_execution_context(self._config), f"no context for {num_rows} rows")
        stream = self._stream.cuda_stream
        self._made(context.set_optimization_profile_async(profile, stream), f"no profile for {num_rows} rows")
        self._stream.synchronize()
        context.set_device_memory(self._scratch.data_ptr(), self._scratch.nbytes)
        inputs, outputs = (
            {
                name: torch.zeros(num_rows, *tensor.shape, dtype=tensor.dtype, device=self.device)
                for name, tensor in tensors.items()
            }
            for tensors in (self.spec.inputs, self.spec.outputs)
        )
        for name, tensor in inputs.items():
            self._made(context.set_input_shape(name, tuple(tensor.shape)), f"input {name}: shape refused")
        for name, tensor in (inputs | outputs).items():
            self._made(context.set_tensor_address(name, tensor.data_ptr()), f"{name}: address refused")
        (output,) = outputs.values()
        return _Bucket(context, inputs, output)

    def _runtime_config(self, runtime_cache: Path | None) -> tuple[Any, Any]:
        """How contexts are made, and the cache of compiled kernels where it has to be written."""
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(self._api.ExecutionContextAllocationStrategy.USER_MANAGED)
        if not self._rtx:
            return config, None
        # By default kernels for a shape are compiled while others stand in for them, which a graph would keep.
        config.dynamic_shapes_kernel_specialization_strategy = self._api.DynamicShapesKernelSpecializationStrategy.EAGER
        cache = config.create_runtime_cache()
        current = bool(runtime_cache and runtime_cache.is_file() and cache.deserialize(runtime_cache.read_bytes()))
        config.set_runtime_cache(cache)
        return config, None if current else cache

    def _made(self, result: Any, otherwise: str) -> Any:
        """`result`; TensorRT answers None or False, and logs why, for what it cannot do."""
        if not result:
            raise ArtifactError(f"{self.path}: {otherwise}: {'; '.join(self._log.errors) or 'no reason given'}")
        return result


def load_tensorrt(folder: Path, bundle: Bundle, name: str, device: torch.device | str = "cuda") -> TrtModule:
    """The network of this name of `bundle`, out of a folder that `fashion-rag export tensorrt` has built engines in.

    Raises ArtifactError, naming the reason, for an engine that is damaged, of another bundle or another TensorRT, or
    not for this GPU.
    """
    path, key, spec = find_engine(folder, bundle, name)
    return TrtModule(path, key, spec, device, runtime_cache=path.with_suffix(".kernels"))


def find_engine(folder: Path, bundle: Bundle, name: str) -> tuple[Path, EngineKey, ModuleSpec]:
    """File and description of the engine in use, and the key that it must have to be of `bundle` and of today."""
    spec = module_specs(bundle)[name]
    path = engine_in_use(folder / ENGINES_FOLDER, name)
    built = read_key(path)
    onnx = find_onnx(folder, bundle, spec)
    return path, EngineKey.of(spec, onnx, built.rows, find_flavour(built.flavour), built.architecture), spec


def check_gpu(flavour: Flavour, engine: bytes, path: Path) -> None:
    """Raise ArtifactError, with the reason, where TensorRT for RTX tells that the current GPU cannot run the engine."""
    if flavour.name != TENSORRT_RTX:
        return
    log = make_log(flavour.api)
    validity, diagnostics = flavour.api.Runtime(log).get_engine_validity(engine)
    if validity == flavour.api.EngineValidity.INVALID:
        kinds = flavour.api.EngineInvalidityDiagnostics.__members__.items()
        reasons = [name for name, kind in kinds if diagnostics & int(kind)] + log.errors
        raise ArtifactError(f"{path}: this machine cannot run it: {'; '.join(reasons)}")


def split_rows(num_rows: int, sizes: tuple[int, ...]) -> list[tuple[slice, int]]:
    """The calls that `num_rows` rows make: which rows, and the smallest of the rising `sizes` that holds them.

    More rows than the largest size holds make several calls.
    """
    calls = [slice(start, min(start + sizes[-1], num_rows)) for start in range(0, num_rows, sizes[-1])]
    return [(rows, next(size for size in sizes if size >= rows.stop - rows.start)) for rows in calls]
