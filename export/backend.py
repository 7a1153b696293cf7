"""The one place that decides what runs a bundle's networks: PyTorch, torch.compile, ONNX Runtime, OpenVINO or TensorRT.

Replicas open a `Runtime` (`runtime.py`) and load the parts that they need. The parts are called in the same way,
whatever runs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from export.buckets import rows_of
from export.compiled_module import CompiledModule
from export.modules import blank_inputs, module_specs
from export.onnx_module import load_onnx
from export.runtime import CPU_BACKENDS, ENGINES_FOLDER, Backend, Precision, Runtime
from export.to_onnx import cached_onnx
from export.trt_module import load_tensorrt
from fashion_rag.artifacts import MANIFEST_FILE, wait_for
from fashion_rag.bundle import Bundle
from fashion_rag.completer import Completer, lazy_chooser
from fashion_rag.errors import ArtifactError
from fashion_rag.models.adapter import GarmentEncoder
from fashion_rag.models.autoencoder import VAE
from fashion_rag.models.prompt import PromptEncoder
from fashion_rag.models.unet import ShallowUNet, SplitUNet, UNet, WholeUNet
from fashion_rag.person.parser import HumanParser
from fashion_rag.person.pose_estimator import PoseEstimator
from fashion_rag.pipeline import Pipeline

# The instructions that multiply in bfloat16, by PyTorch's names.
BFLOAT16_CAPABILITIES = ("amx_bf16", "avx512_bf16")


def open_parts(runtime: Runtime, progress: Callable[[], None] | None = None) -> Parts:
    """Return the parts of the bundle, ready to be loaded.

    progress: called after each network that is exported. Raises ArtifactError, with the reason, if the bundle or the
    backend cannot be used on this machine.
    """
    wait_for(runtime.missing, runtime.wait_s)
    bundle = Bundle.open(Path(runtime.bundle))
    folder = Path(runtime.compiled) if runtime.compiled else None
    gpu = torch.cuda.is_available()
    backend = runtime.backend
    if backend == "auto":
        has_engines = folder is not None and (folder / ENGINES_FOLDER / MANIFEST_FILE).is_file()
        backend = "onnx"
        if gpu:
            backend = "tensorrt" if has_engines else "compile"
    if backend == "tensorrt" and not (gpu and folder):
        missing = "compiled: a folder with engines" if gpu else "a GPU"
        raise ArtifactError(f"backend: got tensorrt, which needs {missing}")
    device = torch.device("cuda" if gpu and backend not in CPU_BACKENDS else "cpu")
    precision = runtime.precision
    if precision == "auto":
        precision = "float16" if device.type == "cuda" else "float32"
    if backend == "openvino":
        _check_openvino(precision)
    if backend in CPU_BACKENDS and folder is None:
        folder = cached_onnx(bundle, progress)
    return Parts(
        bundle=bundle,
        backend=backend,
        device=device,
        dtype=getattr(torch, precision),
        folder=folder,
        num_threads=runtime.num_threads,
    )


def _check_openvino(precision: Precision) -> None:
    """Raise ArtifactError if OpenVINO cannot compute in `precision` on this processor."""
    if precision == "float16":
        raise ArtifactError("precision: got float16; must be auto, float32 or bfloat16 for openvino")
    # Without these instructions, OpenVINO would imitate bfloat16 or compute in float32.
    if precision == "bfloat16" and not has_bfloat16():
        raise ArtifactError("precision: got bfloat16, which for openvino needs a processor with AVX512-BF16 or AMX")


def has_bfloat16() -> bool:
    """Return whether this processor has instructions that multiply in bfloat16."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in BFLOAT16_CAPABILITIES)


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of an opened bundle, which are loaded and warmed up by its methods.

    device: where the networks compute, and where the tensors of the UNet are; those of the other parts are on the CPU.
    folder: the exported networks, for the backends that run them.

    The methods raise ArtifactError for files that are missing, damaged or of another bundle.
    """

    bundle: Bundle
    backend: Backend
    device: torch.device
    dtype: torch.dtype
    folder: Path | None
    num_threads: int

    def load_pipeline(self, catalogue: str | Path | None = None) -> Pipeline:
        """Return all parts as a pipeline for one edit at a time. Between the networks, tensors are on the CPU."""
        opened = self.bundle.open_catalogue(catalogue) if catalogue else None
        return Pipeline(
            manifest=self.bundle.manifest,
            sampler=self.bundle.sampler,
            unet=self._unet(self._between_cpu),
            vae=self.load_vae(),
            prompt_encoder=self.load_prompt_encoder(),
            garment_encoder=self.load_garment_encoder(),
            device=torch.device("cpu"),
            catalogue=opened,
            completer=Completer(
                parser=self.load_parser() if self.bundle.has_parser else None,
                pose_estimator=self.load_pose_estimator() if self.bundle.has_pose_estimator else None,
                load_chooser=lazy_chooser(self.bundle, opened),
            ),
        )

    def load_unet(self) -> SplitUNet:
        """Return the UNet."""
        return self._unet(lambda network: network)

    def _unet(self, placed: Callable[[nn.Module], nn.Module]) -> SplitUNet:
        """Return the UNet of two networks, each as `placed` returns it."""

        @cache
        def weights() -> UNet:
            """Return the UNet, which is loaded once, because its two networks share the weights of the outer layers."""
            return self.bundle.load_unet(self.device, self.dtype)

        whole = self._network("unet", lambda: WholeUNet(weights()))
        outermost = self._network("unet_shallow", lambda: ShallowUNet(weights()))
        return SplitUNet(placed(whole), placed(outermost))

    def load_vae(self) -> VAE:
        """Return the VAE with both halves."""
        vae = self.bundle.load_vae(networks=False)
        vae.encoder = self._between_cpu(self._load("vae_encoder"))
        vae.decoder = self._between_cpu(self._load("vae_decoder"))
        return vae

    def load_prompt_encoder(self) -> PromptEncoder:
        """Return the text encoder with its tokenizer and its table of tokens."""
        prompt_encoder = self.bundle.load_prompt_encoder(networks=False)
        prompt_encoder.text_encoder = self._between_cpu(self._load("text_encoder"))
        return prompt_encoder

    def load_garment_encoder(self) -> GarmentEncoder:
        """Return the vision encoder and the inversion adapter."""
        garment_encoder = self.bundle.load_garment_encoder(networks=False)
        garment_encoder.network = self._between_cpu(self._load("garment_encoder"))
        return garment_encoder

    def load_parser(self) -> HumanParser:
        """Return the human parser, which the bundle must have."""
        parser = self.bundle.load_parser(networks=False)
        parser.network = self._between_cpu(self._load("parser"))
        return parser

    def load_pose_estimator(self) -> PoseEstimator:
        """Return the pose estimator, which the bundle must have."""
        pose_estimator = self.bundle.load_pose_estimator(networks=False)
        pose_estimator.network = self._between_cpu(self._load("pose"))
        return pose_estimator

    def _load(self, name: str) -> nn.Module:
        """Return the network of this name, with weights that it shares with no other network."""
        spec = module_specs(self.bundle)[name]
        return self._network(name, lambda: spec.load(self.bundle, self.dtype).to(self.device))

    def _between_cpu(self, network: nn.Module) -> nn.Module:
        """Return the network for callers whose tensors are on the CPU."""
        return network if self.device.type == "cpu" else _BetweenCPU(network, self.device)

    def _network(self, name: str, load: Callable[[], nn.Module]) -> nn.Module:
        """Return the network of this name as the backend runs it, warmed up.

        load: returns it as a PyTorch module on the device and in the precision of these parts. It is called only for
        the backends torch and compile.
        """
        spec = module_specs(self.bundle)[name]
        network: nn.Module
        if self.backend == "torch":
            network = load()
        elif self.backend == "compile":
            network = CompiledModule(load(), spec, rows_of(spec), self.device)
        elif self.backend == "onnx":
            assert self.folder is not None
            network = load_onnx(self.folder, self.bundle, name, self.num_threads)
        elif self.backend == "openvino":
            assert self.folder is not None
            # Imported here, because it takes 18 MiB of every process.
            from export.openvino_module import load_openvino

            network = load_openvino(self.folder, self.bundle, name, self.num_threads, self.dtype)
        else:
            assert self.folder is not None
            network = load_tensorrt(self.folder, self.bundle, name, self.device)
        with torch.inference_mode():
            network(*blank_inputs(spec, 1, self.device))
        return network


class _BetweenCPU(nn.Module):
    """A network on a GPU whose tensors come from the CPU and go back to it."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.network = network
        self.device = device

    def forward(self, *inputs: Tensor) -> Tensor:
        output: Tensor = self.network(*(tensor.to(self.device) for tensor in inputs))
        return output.cpu()
