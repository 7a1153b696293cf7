"""The one place that decides what runs a bundle's networks: PyTorch, or ONNX Runtime on the CPU.

Replicas load here the part that they need; what they get is called the same way whatever runs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from export.onnx_module import load_onnx
from fashion_rag.bundle import Bundle
from fashion_rag.denoising.runner import UNetCall
from fashion_rag.errors import ArtifactError
from fashion_rag.models.adapter import GarmentEncoder
from fashion_rag.models.autoencoder import VAE
from fashion_rag.models.prompt import PromptEncoder

Backend = Literal["torch", "onnx"]


@dataclass(frozen=True)
class Parts:
    """Loads the parts of a bundle; `compiled` gives a network by its name, or is None where PyTorch runs them.

    The methods raise ArtifactError for what is missing, damaged or of another bundle.
    """

    bundle: Bundle
    compiled: Callable[[str], nn.Module] | None = None

    def load_unet(self) -> UNetCall:
        """What predicts the noise."""
        return self.compiled("unet") if self.compiled else self.bundle.load_unet()

    def load_vae(self) -> VAE:
        """The VAE, both halves."""
        vae = self.bundle.load_vae()
        if self.compiled:
            vae.encoder, vae.decoder = self.compiled("vae_encoder"), self.compiled("vae_decoder")
        return vae

    def load_prompt_encoder(self) -> PromptEncoder:
        """The text encoder with its tokenizer."""
        prompt_encoder = self.bundle.load_prompt_encoder()
        if self.compiled:
            prompt_encoder.text_encoder = self.compiled("text_encoder")
        return prompt_encoder

    def load_garment_encoder(self) -> GarmentEncoder:
        """The vision tower and the inversion adapter."""
        garment_encoder = self.bundle.load_garment_encoder()
        if self.compiled:
            garment_encoder.network = self.compiled("garment_encoder")
        return garment_encoder


def choose(bundle: Bundle, backend: Backend, folder: Path | None = None, num_threads: int = 1) -> Parts:
    """The parts of `bundle` as `backend` runs them; `folder` has what was exported for it.

    num_threads: of each compiled network. PyTorch's own threads are set for the whole process, by the caller.
    """
    if backend == "torch":
        return Parts(bundle)
    if folder is None:
        raise ArtifactError(f"{backend}: needs the folder of the exported networks")
    return Parts(bundle, lambda name: load_onnx(folder, bundle, name, num_threads))
