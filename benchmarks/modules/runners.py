"""The runners of a network: PyTorch, torch.compile, ONNX Runtime, OpenVINO, TensorRT. `run.py` compares them.

All are called like the PyTorch module, with tensors on the workshop's device, and are checked against it in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from export.buckets import OTHER_ROWS, UNET_ROWS
from export.compiled_module import CompiledModule
from export.engines import PORTABLE, EngineKey, get_or_build
from export.flavours import find_flavour
from export.modules import ModuleSpec, blank_inputs
from export.onnx_files import find_onnx, onnx_path, write_manifest
from export.onnx_module import OnnxModule
from export.openvino_module import OpenVinoModule
from export.parity import Parity, measure
from export.runtime import ENGINES_FOLDER
from export.to_onnx import write_onnx
from export.to_tensorrt import build_engine, build_targets
from export.trt_module import TrtModule
from fashion_rag.errors import ArtifactError


class NetworkRunner(StrEnum):
    """The software that runs a network."""

    EAGER = "eager"
    COMPILE = "compile"
    ONNX = "onnx"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"


ON_CPU_ONLY = (NetworkRunner.ONNX, NetworkRunner.OPENVINO)
FROM_ONNX = (*ON_CPU_ONLY, NetworkRunner.TENSORRT)


@dataclass(frozen=True)
class Workshop:
    """The place where the networks of `specs` are made ready to run.

    bundle: is given to the specs' loaders; None where they need none. folder: for the files that are made; they are
    used again if they are there. compiled: the rows that torch.compile is tried at, by network; other networks are not
    compiled. say: is told of progress.
    """

    specs: Mapping[str, ModuleSpec]
    bundle: Any
    device: torch.device
    folder: Path
    rows: tuple[int, ...]
    compiled: Mapping[str, tuple[int, ...]]
    num_threads: int
    say: Callable[[str], None]

    @property
    def dtype(self) -> torch.dtype:
        """Return the type that networks compute in."""
        return torch.float16 if self.device.type == "cuda" else torch.float32

    def reference(self, spec: ModuleSpec) -> nn.Module:
        """Return the network in float32 PyTorch, a new one each time."""
        return spec.load(self.bundle, torch.float32).to(self.device)

    def load(self, runner: NetworkRunner, spec: ModuleSpec) -> nn.Module:
        """Return the network, run by `runner`. Raises ArtifactError if it cannot be compiled."""
        if runner is NetworkRunner.EAGER:
            module = spec.load(self.bundle, torch.float32).to(self.device, self.dtype)
            return module.to(memory_format=torch.channels_last) if self.device.type == "cuda" else module
        if runner is NetworkRunner.COMPILE:
            module = spec.load(self.bundle, torch.float32).to(self.device, self.dtype)
            return CompiledModule(module, spec, batch_sizes(spec.name, self.compiled[spec.name]), self.device)
        if runner is NetworkRunner.ONNX:
            return OnnxModule(onnx_path(self.folder, spec), spec, self.num_threads)
        if runner is NetworkRunner.OPENVINO:
            return OpenVinoModule(onnx_path(self.folder, spec), spec, self.num_threads)
        return self._tensorrt(spec)

    def rows_of(self, runner: NetworkRunner, module: str) -> tuple[int, ...]:
        """Return the rows at which a network is measured."""
        return self.compiled.get(module, ()) if runner is NetworkRunner.COMPILE else self.rows

    def export(self) -> None:
        """Write all networks as ONNX files to `folder`, unless they are there."""
        with suppress(ArtifactError):
            for spec in self.specs.values():
                find_onnx(self.folder, self.bundle, spec)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        written = {}
        for name, spec in self.specs.items():
            self.say(f"{name}: exporting to ONNX")
            written[name] = write_onnx(spec.load(self.bundle, self.dtype), spec, spec.weights(self.bundle), self.folder)
        write_manifest(self.folder, written)

    def check(self, runner: NetworkRunner, spec: ModuleSpec, reference: nn.Module, network: nn.Module) -> Parity:
        """Return how far `network` is from `reference`.

        Raises ArtifactError, naming runner, network, error and tolerance, if it is too far.
        """

        def between_cpu(module: nn.Module) -> Any:
            return lambda *inputs: module(*(tensor.to(self.device) for tensor in inputs)).cpu()

        try:
            return measure(spec, between_cpu(reference), between_cpu(network), self.dtype)
        except ArtifactError as error:
            raise ArtifactError(f"{runner}: {error}") from error

    def _tensorrt(self, spec: ModuleSpec) -> TrtModule:
        flavour = find_flavour()
        targets, rows = build_targets(flavour), batch_sizes(spec.name, self.rows)
        key = EngineKey.of(
            spec, find_onnx(self.folder, self.bundle, spec), rows, flavour, "+".join(targets) or PORTABLE
        )
        build = partial(build_engine, onnx_path(self.folder, spec), spec, rows, flavour, targets)
        path = get_or_build(self.folder / ENGINES_FOLDER, key, build)
        return TrtModule(path, key, spec, self.device, runtime_cache=path.with_suffix(".kernels"))


def why_not(runner: NetworkRunner, device: torch.device) -> str | None:
    """Return why a runner cannot run on `device` here; None if it can."""
    if runner in ON_CPU_ONLY and device.type != "cpu":
        return "runs on the CPU only"
    if runner is NetworkRunner.TENSORRT:
        if device.type != "cuda":
            return "needs a GPU"
        try:
            find_flavour()
        except ArtifactError as error:
            return str(error)
    return None


def describe(runner: NetworkRunner, workshop: Workshop) -> str:
    """Return the software of a runner, its version and the precision."""
    if runner is NetworkRunner.TENSORRT:
        flavour = find_flavour()
        software = f"{flavour.name} {flavour.version}"
    else:
        package = runner.replace("onnx", "onnxruntime") if runner in FROM_ONNX else "torch"
        software = f"{package} {version(package)}"
    return f"{software}, {str(workshop.dtype).removeprefix('torch.')}"


def batch_sizes(module: str, rows: Sequence[int]) -> tuple[int, ...]:
    """Return the fixed batch sizes that calls with `rows` rows need, since replicas split larger calls."""
    largest = (UNET_ROWS if module == "unet" else OTHER_ROWS)[-1]
    return tuple(sorted({min(num_rows, largest) for num_rows in rows}))


@torch.inference_mode()
def count_flops(spec: ModuleSpec, module: nn.Module) -> int:
    """Return the floating-point operations of a row in matrix products and convolutions; a multiply-add is two.

    The weights of `module` are lost.
    """
    with FlopCounterMode(display=False) as counter:
        module.to("meta")(*blank_inputs(spec, 1, "meta"))
    return counter.get_total_flops()
