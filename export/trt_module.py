"""A built engine that runs on a GPU, called like the PyTorch module it was built from.

Each of the engine's batch sizes has an execution context.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from export.buckets import Bucket, BucketedModule
from export.engines import EngineKey, engine_in_use, read_engine, read_key
from export.flavours import TENSORRT_RTX, Flavour, find_flavour, make_log
from export.modules import ModuleSpec, module_specs
from export.onnx_files import find_onnx
from export.runtime import ENGINES_FOLDER
from fashion_rag.atomic_files import locked, write_whole
from fashion_rag.bundle import Bundle
from fashion_rag.errors import ArtifactError


class TrtModule(BucketedModule):
    """An engine on a GPU, called by one caller at a time."""

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
        """Load the engine, and run and capture every batch size once, so that no edit has to wait for that.

        runtime_cache: the file of the kernels that TensorRT for RTX compiles for this GPU. If it is missing or cannot
            be used, it is written, provided that the folder is writable.

        Raises ArtifactError for an engine that is damaged, or that this GPU cannot run.
        """
        flavour = find_flavour(key.flavour)
        engine = read_engine(path, key)
        if not torch.cuda.is_available():
            raise ArtifactError(f"{path}: runs on an NVIDIA GPU only, and PyTorch finds none")
        super().__init__(spec, key.rows, torch.device(device))
        self.path = path
        self._rtx = flavour.name == TENSORRT_RTX
        self._api = flavour.api
        with torch.cuda.device(self.device):
            # TensorRT's objects must be kept as long as the objects that they make.
            self._log = make_log(self._api)
            self._runtime = self._api.Runtime(self._log)
            check_gpu(flavour, engine, path)
            self._engine = self._made(self._runtime.deserialize_cuda_engine(engine), "not loaded")
            # Batch sizes run one at a time, so all of them use the same scratch memory.
            self._scratch = torch.empty(self._engine.device_memory_size_v2, dtype=torch.uint8, device=self.device)
            self._config, cache = self._runtime_config(runtime_cache)
            self._contexts = {
                rows: self._context(profile, bucket) for profile, (rows, bucket) in enumerate(self.buckets.items())
            }
            self.warm_up(cuda_graphs)
        # The folder of the engines may be read-only.
        if cache and runtime_cache and os.access(runtime_cache.parent, os.W_OK):
            with locked(runtime_cache.with_name(f"{runtime_cache.name}.lock")):
                write_whole(runtime_cache, memoryview(cache.serialize()).cast("B"))

    def enqueue(self, bucket: Bucket) -> None:
        """Let TensorRT run a batch size. Raises RuntimeError with TensorRT's messages if it does not."""
        num_rows = len(bucket.output)
        if not self._contexts[num_rows].execute_async_v3(torch.cuda.current_stream(self.device).cuda_stream):
            raise RuntimeError(f"{self.path}: {num_rows} rows: {'; '.join(self._log.errors)}")

    def _context(self, profile: int, bucket: Bucket) -> Any:
        """Return an execution context that reads and writes the tensors of a bucket."""
        num_rows = len(bucket.output)
        context = self._made(self._engine.create_execution_context(self._config), f"no context for {num_rows} rows")
        stream = torch.cuda.current_stream()
        chosen = context.set_optimization_profile_async(profile, stream.cuda_stream)
        self._made(chosen, f"no profile for {num_rows} rows")
        stream.synchronize()
        context.set_device_memory(self._scratch.data_ptr(), self._scratch.nbytes)
        for name, tensor in bucket.inputs.items():
            self._made(context.set_input_shape(name, tuple(tensor.shape)), f"input {name}: shape refused")
        (output,) = self.spec.outputs
        for name, tensor in (bucket.inputs | {output: bucket.output}).items():
            self._made(context.set_tensor_address(name, tensor.data_ptr()), f"{name}: address refused")
        return context

    def _runtime_config(self, runtime_cache: Path | None) -> tuple[Any, Any]:
        """Return the configuration of contexts, and the cache of kernels if it has to be written, else None."""
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(self._api.ExecutionContextAllocationStrategy.USER_MANAGED)
        if not self._rtx:
            return config, None
        # By default a shape first runs on general kernels while its own are compiled, and a graph would keep those.
        config.dynamic_shapes_kernel_specialization_strategy = self._api.DynamicShapesKernelSpecializationStrategy.EAGER
        cache = config.create_runtime_cache()
        current = bool(runtime_cache and runtime_cache.is_file() and cache.deserialize(runtime_cache.read_bytes()))
        config.set_runtime_cache(cache)
        return config, None if current else cache

    def _made(self, result: Any, failure: str) -> Any:
        """Return `result`, which TensorRT has made.

        When TensorRT fails, it returns None or False and logs the reason. Then ArtifactError is raised with both.
        """
        if not result:
            raise ArtifactError(f"{self.path}: {failure}: {'; '.join(self._log.errors) or 'no reason given'}")
        return result


def load_tensorrt(folder: Path, bundle: Bundle, name: str, device: torch.device | str = "cuda") -> TrtModule:
    """Return the network of this name of `bundle`, from a folder in which `fashion-rag export tensorrt` built engines.

    Raises ArtifactError, naming the reason, for an engine that is damaged, of another bundle or another TensorRT, or
    that this GPU cannot run.
    """
    path, key, spec = find_engine(folder, bundle, name)
    return TrtModule(path, key, spec, device, runtime_cache=path.with_suffix(".kernels"))


def find_engine(folder: Path, bundle: Bundle, name: str) -> tuple[Path, EngineKey, ModuleSpec]:
    """Return the file of the engine in use, the key that it must have, and the spec of its network.

    The key is made from the bundle, the exported ONNX file and the installed TensorRT; `read_engine` compares it with
    the engine's own. Raises ArtifactError for a missing engine or ONNX file.
    """
    spec = module_specs(bundle)[name]
    path = engine_in_use(folder / ENGINES_FOLDER, name)
    built = read_key(path)
    onnx = find_onnx(folder, bundle, spec)
    return path, EngineKey.of(spec, onnx, built.rows, find_flavour(built.flavour), built.architecture), spec


def check_gpu(flavour: Flavour, engine: bytes, path: Path) -> None:
    """Raise ArtifactError, with the reason, if TensorRT for RTX says that the current GPU cannot run the engine."""
    if flavour.name != TENSORRT_RTX:
        return
    log = make_log(flavour.api)
    validity, diagnostics = flavour.api.Runtime(log).get_engine_validity(engine)
    if validity == flavour.api.EngineValidity.INVALID:
        kinds = flavour.api.EngineInvalidityDiagnostics.__members__.items()
        reasons = [name for name, kind in kinds if diagnostics & int(kind)] + log.errors
        raise ArtifactError(f"{path}: this machine cannot run it: {'; '.join(reasons)}")
