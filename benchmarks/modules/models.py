"""The networks that `run.py` measures, of a bundle or untrained ones of full size, and the edits that they make."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from export.modules import ModuleSpec, TensorSpec, module_specs
from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.garments import Garment
from fashion_rag.demo.model.evaluate import make_cases
from fashion_rag.demo.world.draw import render_garment
from fashion_rag.denoising.noise_schedule import NoiseSchedule
from fashion_rag.models.autoencoder import VAE, VAEDecoder, VAEEncoder
from fashion_rag.models.prompt import MAX_TOKENS
from fashion_rag.models.unet import IN_CHANNELS, LATENT_CHANNELS, POSE_CHANNELS, SplitUNet, UNet
from fashion_rag.pipeline import Conditioning, Pipeline, decode, denoise, encode_person

SEED = 0
GUIDANCE_SCALE = 7.5
ROWS = 2  # One guided edit takes two rows of the UNet.

# From stabilityai/stable-diffusion-2-inpainting: unet/config.json, except for the 27 channels, and vae/config.json.
SD2_IMAGE_SIZE = (512, 384)
SD2_UNET = {
    "sample_size": 64,
    "in_channels": IN_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
SD2_VAE = {
    "sample_size": 512,
    "latent_channels": LATENT_CHANNELS,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 32,
}
# The released schedule with v-prediction, which keeps the latents of an untrained UNet at unit size.
SD2_SAMPLER = NoiseSchedule(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="v_prediction",
    steps_offset=1,
    set_alpha_to_one=False,
)


class TimedPictures(NamedTuple):
    """Pictures, uint8 [B, H, W, 3], and the seconds of each stage."""

    pictures: NDArray[np.uint8]
    stages_s: dict[str, float]


Networks = Mapping[str, nn.Module]
MakePictures = Callable[[], TimedPictures]


@dataclass(frozen=True)
class MeasuredModel:
    """The networks that are measured, and the edits that are made with them.

    bundle: None where the specs' loaders need none. edit_rows: rows of each network in an edit of one picture.
    batches: how many edits are made at once. make_edit: returns what makes so many edits with given networks, always
    the same edits.
    """

    name: str
    specs: Mapping[str, ModuleSpec]
    bundle: Bundle | None
    num_steps: int
    edit_rows: Mapping[str, int]
    batches: tuple[int, ...]
    make_edit: Callable[[Networks, int], MakePictures]


def bundle_model(bundle: Bundle, device: torch.device, folder: Path, num_steps: int | None = None) -> MeasuredModel:
    """Return the networks of a bundle, and one edit: a paper doll in a garment, whose picture is put into `folder`.

    num_steps: by default the bundle's own.
    """
    manifest = bundle.manifest
    num_steps = num_steps or manifest.num_inference_steps
    (case,) = make_cases(1, manifest.image_size, SEED, num_steps, manifest.guidance_scale)
    picture = folder / "garment.png"
    Image.fromarray(render_garment(case.target, manifest.image_size)).save(picture)
    garment = Garment("garment", case.request.category, "", picture)

    def make_edit(networks: Networks, batch: int) -> MakePictures:
        vae, prompt_encoder = bundle.load_vae(device), bundle.load_prompt_encoder(device)
        garment_encoder = bundle.load_garment_encoder(device)
        vae.encoder, vae.decoder = networks["vae_encoder"], networks["vae_decoder"]
        prompt_encoder.text_encoder, garment_encoder.network = networks["text_encoder"], networks["garment_encoder"]
        parts = (SplitUNet(networks["unet"], networks["unet_shallow"]), vae, prompt_encoder, garment_encoder, device)
        pipeline = Pipeline(manifest, bundle.sampler, *parts)

        def edit() -> TimedPictures:
            result = pipeline(case.request, [garment])
            # Nothing is retrieved, so that stage is left out.
            stages_s = {stage: seconds for stage, seconds in result.timings_s.items() if stage != "retrieve"}
            return TimedPictures(result.image[None], stages_s)

        return edit

    # The text encoder has a row for the prompt and one for the empty prompt.
    rows = {"unet": ROWS * num_steps, "vae_encoder": 1, "vae_decoder": 1, "text_encoder": 2, "garment_encoder": 1}
    # Only edits that keep features run the outermost layers alone.
    rows["unet_shallow"] = 0
    return MeasuredModel(manifest.name, module_specs(bundle), bundle, num_steps, rows, (1,), make_edit)


def untrained_model(
    device: torch.device,
    num_steps: int,
    image_size: tuple[int, int] = SD2_IMAGE_SIZE,
    unet_config: Mapping[str, Any] = SD2_UNET,
    vae_config: Mapping[str, Any] = SD2_VAE,
    batches: tuple[int, ...] = (1, 8),
) -> MeasuredModel:
    """Return a UNet and a VAE with random weights, always the same; edits are encoding, guided steps and decoding.

    By default they are those of Stable Diffusion 2 with 27 channels. How long a network takes hardly depends on its
    weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        unet = UNet(UNet2DConditionModel(**unet_config)).eval().requires_grad_(False)
        autoencoder = AutoencoderKL(**vae_config).eval().requires_grad_(False)
    # PyTorch's own initial weights shrink activations by this factor, so that float16's errors look large.
    for layer in (*unet.modules(), *autoencoder.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.mul_(3**0.5)
    vae = VAE.of(autoencoder)
    height, width = (side // vae.downsampling for side in image_size)
    image, latents = TensorSpec((3, *image_size)), TensorSpec((LATENT_CHANNELS, height, width))
    text = TensorSpec((MAX_TOKENS, unet_config["cross_attention_dim"]))
    sample = TensorSpec((IN_CHANNELS, height, width))

    def loader(module: nn.Module) -> Callable[[Bundle | None, torch.dtype], nn.Module]:
        return lambda bundle, dtype: copy.deepcopy(module).to(dtype)

    specs = (
        ModuleSpec(
            "unet",
            {"sample": sample, "timestep": TensorSpec((), torch.int64), "prompt_embeds": text},
            {"noise_pred": latents},
            loader(unet),
            (),
        ),
        ModuleSpec(
            "vae_encoder",
            {"image": image},
            {"moments": TensorSpec((2 * LATENT_CHANNELS, height, width))},
            loader(VAEEncoder(autoencoder).eval()),
            (),
        ),
        ModuleSpec("vae_decoder", {"latents": latents}, {"image": image}, loader(VAEDecoder(autoencoder).eval()), ()),
    )

    def make_edit(networks: Networks, batch: int) -> MakePictures:
        halves = VAE.of(autoencoder)
        halves.encoder, halves.decoder = networks["vae_encoder"], networks["vae_decoder"]
        return _untrained_edit(networks["unet"], halves, image_size, text, batch, num_steps, device)

    rows = {"unet": ROWS * num_steps, "vae_encoder": 1, "vae_decoder": 1}
    return MeasuredModel("untrained", {spec.name: spec for spec in specs}, None, num_steps, rows, batches, make_edit)


def _untrained_edit(
    unet: Any,
    vae: VAE,
    image_size: tuple[int, int],
    text: TensorSpec,
    batch: int,
    num_steps: int,
    device: torch.device,
) -> MakePictures:
    generator = torch.Generator().manual_seed(SEED)

    def noise(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator).to(device)

    latent_shape = (LATENT_CHANNELS, *(side // vae.downsampling for side in image_size))
    photo, mask = noise(3, *image_size).clamp(-1, 1), torch.ones(batch, 1, *image_size, device=device)
    pose_map, vae_noise, start = noise(POSE_CHANNELS, *image_size), noise(*latent_shape), noise(*latent_shape)
    prompts = Conditioning(noise(*text.shape), noise(*text.shape))

    @torch.inference_mode()
    def edit() -> TimedPictures:
        stages_s: dict[str, float] = {}
        with _timed("encode", stages_s, device):
            person = encode_person(vae, photo, mask, pose_map, vae_noise)
        with _timed("denoise", stages_s, device):
            *_, latents = denoise(unet, SD2_SAMPLER, start, person, prompts, num_steps, GUIDANCE_SCALE)
        with _timed("decode", stages_s, device):
            pictures = decode(vae, latents)
        return TimedPictures(pictures, stages_s)

    return edit


@contextmanager
def _timed(stage: str, stages_s: dict[str, float], device: torch.device) -> Iterator[None]:
    start = time.perf_counter()
    yield
    synchronize(device)
    stages_s[stage] = time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
