"""The six networks of a bundle that are compiled, and what goes into and comes out of each.

The one description that the exports to ONNX and TensorRT and the modules that run their files share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fashion_rag.artifacts import read_config
from fashion_rag.bundle import Bundle
from fashion_rag.errors import FashionRAGError
from fashion_rag.models.pretrained import CONFIG_FILE
from fashion_rag.models.prompt import MAX_TOKENS
from fashion_rag.models.unet import IN_CHANNELS, LATENT_CHANNELS, ShallowUNet, WholeUNet, feature_channels


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. shape: without the batch, which comes first and is dynamic."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class ModuleSpec:
    """One network with its border: float32 tensors, int64 timesteps, whatever the precision inside.

    inputs, outputs: in the order of the call. load: the PyTorch module of a bundle with weights of a dtype, on the CPU.
    parts: the folders of the bundle whose weights it has.
    """

    name: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    load: Callable[[Bundle, torch.dtype], nn.Module]
    parts: tuple[str, ...]

    def weights(self, bundle: Bundle) -> str:
        """Return what tells the weights from others: a digest of those in `bundle`, nothing for a module of none."""
        return bundle.fingerprint(*self.parts) if self.parts else ""


def module_specs(bundle: Bundle) -> dict[str, ModuleSpec]:
    """Return the networks of `bundle` by name, at the bundle's own sizes."""
    image = TensorSpec((3, *bundle.manifest.image_size))
    latents = TensorSpec((LATENT_CHANNELS, *bundle.latent_size))
    text = TensorSpec((MAX_TOKENS, bundle.text_width))
    vision = read_config(bundle.path / "vision_encoder" / CONFIG_FILE)
    crop = vision.get("vision_config", vision)["image_size"]
    denoised = {
        "sample": TensorSpec((IN_CHANNELS, *bundle.latent_size)),
        "timestep": TensorSpec((), torch.int64),
        "prompt_embeds": text,
    }
    features = feature_channels(read_config(bundle.path / "unet" / CONFIG_FILE))
    specs = (
        ModuleSpec(
            "unet",
            denoised,
            # The noise, 4 channels, and then the features.
            {"noise_pred_and_features": TensorSpec((LATENT_CHANNELS + features, *bundle.latent_size))},
            lambda bundle, dtype: WholeUNet(bundle.load_unet(dtype=dtype)),
            ("unet",),
        ),
        ModuleSpec(
            "unet_shallow",
            denoised | {"features": TensorSpec((features, *bundle.latent_size))},
            {"noise_pred": latents},
            lambda bundle, dtype: ShallowUNet(bundle.load_unet(dtype=dtype)),
            ("unet",),
        ),
        ModuleSpec(
            "vae_encoder",
            {"image": image},
            # Mean and log variance.
            {"moments": TensorSpec((2 * LATENT_CHANNELS, *bundle.latent_size))},
            lambda bundle, dtype: bundle.load_vae(dtype=dtype).encoder,
            ("vae",),
        ),
        ModuleSpec(
            "vae_decoder",
            {"latents": latents},
            {"image": image},
            lambda bundle, dtype: bundle.load_vae(dtype=dtype).decoder,
            ("vae",),
        ),
        ModuleSpec(
            "text_encoder",
            {"token_embeds": text},
            {"prompt_embeds": text},
            lambda bundle, dtype: bundle.load_prompt_encoder(dtype=dtype).text_encoder,
            ("text_encoder",),
        ),
        ModuleSpec(
            "garment_encoder",
            {"pixels": TensorSpec((3, crop, crop))},
            {"pseudo_words": TensorSpec((bundle.manifest.num_pseudo_words, bundle.text_width))},
            lambda bundle, dtype: bundle.load_garment_encoder(dtype=dtype).network,
            ("vision_encoder", "inversion_adapter"),
        ),
    )
    return {spec.name: spec for spec in specs}


def blank_inputs(spec: ModuleSpec, num_rows: int, device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
    """Return the zeros in the shapes of the module's inputs."""
    return tuple(
        torch.zeros(num_rows, *tensor.shape, dtype=tensor.dtype, device=device) for tensor in spec.inputs.values()
    )


def check_inputs(spec: ModuleSpec, inputs: Sequence[Tensor]) -> int:
    """Return the number of rows of `inputs`.

    Raises FashionRAGError, naming the input, for what the module does not take.
    """
    if len(inputs) != len(spec.inputs):
        raise FashionRAGError(f"{spec.name}: got {len(inputs)} inputs; must be {', '.join(spec.inputs)}")
    num_rows = inputs[0].shape[0] if inputs[0].ndim else 0
    for (name, wanted), tensor in zip(spec.inputs.items(), inputs, strict=True):
        shape = (num_rows, *wanted.shape)
        if tuple(tensor.shape) != shape or tensor.dtype != wanted.dtype or num_rows < 1:
            got, must = (f"{kind} {list(size)}" for kind, size in ((tensor.dtype, tensor.shape), (wanted.dtype, shape)))
            raise FashionRAGError(f"{spec.name}: {name}: got {got}; must be {must}, of 1 or more rows")
    return num_rows
