"""A model bundle on disk: every part of the method in one folder, loaded strictly or not at all.

The pipeline and each replica open one and load only the parts they need. `bundle_import.py` makes one of the released
checkpoints and the demo's training makes its own, both with `write_bundle`. The folder:

    manifest.json                   sizes and defaults (`manifest.py`)
    text_encoder/ vision_encoder/   config.json, model.safetensors
    inversion_adapter/              config.json, model.safetensors
    unet/ vae/                      config.json, diffusion_pytorch_model.safetensors
    tokenizer/                      vocab.json, merges.txt, tokenizer_config.json
    image_processor/                preprocessor_config.json
    scheduler/                      scheduler_config.json
    retrieval/                      open_clip_config.json, open_clip_model.safetensors, its tokenizer if not OpenCLIP's
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from fashion_rag.artifacts import MANIFEST_FILE, copy_files, joint_sha256, read_config, sha256, write_json
from fashion_rag.atomic_files import written_aside
from fashion_rag.catalogue import retrieval_encoder as retrieval
from fashion_rag.catalogue.build import Built, build
from fashion_rag.catalogue.catalogue import Catalogue
from fashion_rag.catalogue.garment_encoding import Encoders
from fashion_rag.catalogue.garments import INVERSION, RETRIEVAL, Garment
from fashion_rag.catalogue.retrieval_encoder import RetrievalEncoder
from fashion_rag.catalogue.storage import Root
from fashion_rag.catalogue.versions import live
from fashion_rag.denoising.noise_schedule import NoiseSchedule
from fashion_rag.errors import ArtifactError
from fashion_rag.manifest import DEMO_BUNDLE, Manifest
from fashion_rag.models.adapter import GarmentEncoder, InversionAdapter
from fashion_rag.models.autoencoder import VAE, fit_preview
from fashion_rag.models.pretrained import (
    CLIP_FILE,
    CONFIG_FILE,
    DIFFUSERS_FILE,
    fill,
    read_text_encoder,
    read_tokenizer,
    read_unet,
    read_vae,
    read_vision_encoder,
)
from fashion_rag.models.prompt import MAX_TOKENS, PLACEHOLDER_ID, PromptEncoder
from fashion_rag.models.unet import IN_CHANNELS, LATENT_CHANNELS, UNet
from fashion_rag.weights import StateFile, Wanted, all_keys, hollow, no_keys, read_state, write_state

PROCESSOR_FILE = "preprocessor_config.json"
SCHEDULER_FILE = "scheduler_config.json"
WEIGHTS = {
    "text_encoder": CLIP_FILE,
    "vision_encoder": CLIP_FILE,
    "inversion_adapter": CLIP_FILE,
    "unet": DIFFUSERS_FILE,
    "vae": DIFFUSERS_FILE,
    "retrieval": retrieval.WEIGHTS_FILE,
}

# The text encoder's weights by which `PromptEncoder` looks tokens up itself.
TOKEN_TABLE = "embeddings.token_embedding.weight"

Device = str | torch.device


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: all its parts are there and their configurations fit each other.

    The `load_` methods read weights; each returns its part in evaluation mode, without gradients, and raises
    ArtifactError, naming file, keys and shapes, for weights that are not exactly those its configuration asks for.

    With `networks=False`, a part comes without the weights of its networks, on the CPU: for a caller who puts compiled
    ones in their places. The weights are checked all the same.
    """

    path: Path
    manifest: Manifest
    sampler: NoiseSchedule

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Return the bundle in the folder `path`. Raises ArtifactError for a part missing, or parts that do not fit."""
        manifest = Manifest.read(path / MANIFEST_FILE)
        sampler = NoiseSchedule.from_diffusers(read_config(path / "scheduler" / SCHEDULER_FILE))
        for part, name in WEIGHTS.items():
            if not (path / part / name).is_file():
                raise ArtifactError(f"{path / part / name}: no such file")
        _check_text(path, manifest)
        _check_vision(path)
        _check_latents(path, manifest)
        return cls(path, manifest, sampler)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Return the height and width of an edit's latents."""
        downsampling = _downsampling(read_config(self.path / "vae" / CONFIG_FILE))
        height, width = self.manifest.image_size
        return height // downsampling, width // downsampling

    @property
    def text_width(self) -> int:
        """Return the width D of prompt embeddings [B, 77, D]."""
        width: int = read_config(self.path / "text_encoder" / CONFIG_FILE)["hidden_size"]
        return width

    def load_unet(self, device: Device = "cpu", dtype: torch.dtype = torch.float32) -> UNet:
        """Return the 27-channel UNet."""
        return UNet(read_unet(self.path / "unet", dtype)).eval().to(device, dtype)

    def load_vae(self, device: Device = "cpu", dtype: torch.dtype = torch.float32, *, networks: bool = True) -> VAE:
        """Return the VAE; both halves are networks."""
        vae = VAE(read_vae(self.path / "vae", dtype, all_keys if networks else no_keys)).eval()
        return vae.to(device, dtype) if networks else vae

    def load_prompt_encoder(
        self, device: Device = "cpu", dtype: torch.dtype = torch.float32, *, networks: bool = True
    ) -> PromptEncoder:
        """Return the text encoder, a network, with its tokenizer and its token table."""
        tokenizer = read_tokenizer(self.path / "tokenizer")
        wanted: Wanted = all_keys if networks else lambda key: key == TOKEN_TABLE
        encoder = PromptEncoder(tokenizer, read_text_encoder(self.path / "text_encoder", dtype, wanted)).eval()
        return encoder.to(device, dtype) if networks else encoder

    def load_garment_encoder(
        self, device: Device = "cpu", dtype: torch.dtype = torch.float32, *, networks: bool = True
    ) -> GarmentEncoder:
        """Return the vision tower and the inversion adapter, which together are one network."""
        wanted = all_keys if networks else no_keys
        vision_encoder = read_vision_encoder(self.path / "vision_encoder", dtype, wanted)
        processor = read_config(self.path / "image_processor" / PROCESSOR_FILE)
        encoder = GarmentEncoder(
            vision_encoder,
            read_adapter(self.path / "inversion_adapter", vision_encoder.config, dtype, wanted),
            picture_size=self.manifest.image_size,
            crop=vision_encoder.config.image_size,
            mean=processor["image_mean"],
            std=processor["image_std"],
        ).eval()
        return encoder.to(device, dtype) if networks else encoder

    def load_retrieval_encoder(self, device: Device = "cpu") -> RetrievalEncoder:
        """Return the encoder that catalogues are built and searched with, always float32."""
        return RetrievalEncoder.load(self.path / "retrieval", device)

    def load_encoders(self, device: Device = "cpu") -> Encoders:
        """Return what garments are encoded with for a catalogue, always float32."""
        return Encoders(self.load_retrieval_encoder(device), self.load_garment_encoder(device))

    def open_catalogue(self, root: str | Path, cache: Path | None = None) -> Catalogue:
        """Return the catalogue in `root`, to be searched and worn with this bundle.

        Raises ArtifactError as `check_catalogue`, before any weights are loaded, and as `Catalogue.open`.
        """
        fingerprints = self.fingerprints()
        self.check_catalogue(root, fingerprints)
        return Catalogue.open(root, self.load_retrieval_encoder(), fingerprints[INVERSION], cache)

    def check_catalogue(self, root: str | Path, fingerprints: Mapping[str, str] | None = None) -> None:
        """Raise ArtifactError unless the live version of the catalogue in `root` can be searched with this bundle.

        fingerprints: of this bundle, where they are known already.
        """
        built_by = live(Root.at(root)).encoders.get(RETRIEVAL, "none")
        mine = (fingerprints or self.fingerprints())[RETRIEVAL]
        if built_by == mine:
            return
        opened = str(self.path)
        if self.path.resolve() == DEMO_BUNDLE.resolve():
            opened = "the packaged demo bundle, which is the default where no --bundle is given"
        raise ArtifactError(
            f"{root}: was built with another bundle than the one that was opened, {opened}; give the catalogue's own "
            f"with --bundle, or build the catalogue again with this one (its retrieval encoder is {built_by[:12]}, "
            f"this bundle's is {mine[:12]})"
        )

    def build_catalogue(
        self, root: str | Path, garments: Sequence[Garment], device: Device = "cpu", **how: Any
    ) -> Built:
        """Return the catalogue in `root` with `garments` in it, encoded with this bundle. how: and errors, as
        `build`.
        """
        return build(Root.at(root), garments, partial(self.load_encoders, device), self.fingerprints(), **how)

    def fingerprints(self) -> dict[str, str]:
        """Return the digests of what a catalogue's vectors and pseudo-words are made with, to be kept beside them."""
        retrieval_weights = self.path / "retrieval" / WEIGHTS["retrieval"]
        inversion = self.fingerprint("vision_encoder", "inversion_adapter")
        sizes = f"{inversion} {self.manifest.image_size}"
        return {RETRIEVAL: sha256(retrieval_weights), INVERSION: hashlib.sha256(sizes.encode()).hexdigest()}

    def fingerprint(self, *parts: str) -> str:
        """Return one SHA-256 of the weights and configurations of these parts."""
        return joint_sha256(self.path / part / name for part in parts for name in (CONFIG_FILE, WEIGHTS[part]))


@dataclass(frozen=True)
class BundleParts:
    """What `write_bundle` writes.

    tokenizer, retrieval: folders whose files are taken over. image_mean, image_std: of the vision tower's RGB pixels
    in [0, 1]. scheduler: the content of DDIM's `scheduler_config.json`.
    """

    text_encoder: CLIPTextModel
    tokenizer: Path
    vision_encoder: CLIPVisionModel
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    inversion_adapter: InversionAdapter
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: Mapping[str, Any]
    retrieval: Path


def write_bundle(folder: Path, manifest: Manifest, parts: BundleParts, dtype: torch.dtype = torch.float32) -> Bundle:
    """Return the bundle of `parts`, now in `folder`, whose earlier bundle it replaces once it is whole.

    Weights are stored as `dtype`; a manifest without a preview gets one. Raises ArtifactError, leaving `folder` as it
    was, if the parts do not fit each other.
    """
    with written_aside(folder) as new:
        manifest.write(new / MANIFEST_FILE)
        for part in ("tokenizer", "retrieval"):
            copy_files(getattr(parts, part), new / part)
        for part in ("text_encoder", "vision_encoder", "inversion_adapter", "unet", "vae"):
            (new / part).mkdir()
            write_state(new / part / WEIGHTS[part], getattr(parts, part).state_dict(), dtype)
        weights = new / "retrieval" / retrieval.WEIGHTS_FILE
        write_state(weights, read_state(weights), dtype)

        parts.text_encoder.config.to_json_file(new / "text_encoder" / CONFIG_FILE)
        parts.vision_encoder.config.to_json_file(new / "vision_encoder" / CONFIG_FILE)
        parts.unet.save_config(new / "unet")
        parts.vae.save_config(new / "vae")
        write_json(new / "inversion_adapter" / CONFIG_FILE, _adapter_config(parts.inversion_adapter))
        for part in ("scheduler", "image_processor"):
            (new / part).mkdir()
        write_json(new / "scheduler" / SCHEDULER_FILE, dict(parts.scheduler))
        crop = parts.vision_encoder.config.image_size
        processor = {"crop_size": crop, "image_mean": parts.image_mean, "image_std": parts.image_std}
        write_json(new / "image_processor" / PROCESSOR_FILE, processor)
        bundle = Bundle.open(new)
        if manifest.preview is None:
            # Of the weights as they are stored.
            preview = fit_preview(bundle.load_vae(), manifest.image_size)
            replace(manifest, preview=preview).write(new / MANIFEST_FILE)
    return Bundle.open(folder)


def read_adapter(
    folder: Path, vision_config: CLIPVisionConfig, dtype: torch.dtype = torch.float32, wanted: Wanted = all_keys
) -> InversionAdapter:
    """Return the inversion adapter in `folder`, for a vision tower of this configuration. Raises ArtifactError.

    dtype, wanted: as for `pretrained.read_text_encoder`.
    """
    path = folder / CONFIG_FILE
    try:
        with hollow():
            adapter = InversionAdapter(vision_config, **read_config(path))
    except TypeError as error:
        raise ArtifactError(f"{path}: not the configuration of an inversion adapter: {error}") from error
    return fill(adapter, StateFile(folder / CLIP_FILE), folder / CLIP_FILE, dtype, wanted)


def _adapter_config(adapter: InversionAdapter) -> dict[str, Any]:
    layers: Any = adapter.layers
    return {
        "hidden_dim": layers[0].out_features,
        "text_width": layers[6].out_features // adapter.num_pseudo_words,
        "num_pseudo_words": adapter.num_pseudo_words,
        "dropout": layers[2].p,
    }


def _check_text(path: Path, manifest: Manifest) -> None:
    """Return the tokenizer, text encoder, adapter and UNet must agree on ids and widths."""
    text = path / "text_encoder" / CONFIG_FILE
    config = read_config(text)
    width, vocab_size = config.get("hidden_size"), config.get("vocab_size")
    _require(text, "max_position_embeddings", config.get("max_position_embeddings", MAX_TOKENS), MAX_TOKENS)
    adapter = path / "inversion_adapter" / CONFIG_FILE
    config = read_config(adapter)
    _require(adapter, "text_width", config.get("text_width"), width, "the text encoder's hidden_size")
    words = manifest.num_pseudo_words
    _require(adapter, "num_pseudo_words", config.get("num_pseudo_words"), words, "as in the manifest")
    unet = path / "unet" / CONFIG_FILE
    attended = read_config(unet).get("cross_attention_dim")
    _require(unet, "cross_attention_dim", attended, width, "the text encoder's hidden_size")
    tokenizer = read_tokenizer(path / "tokenizer")
    _require(path / "tokenizer", "number of tokens", len(tokenizer), vocab_size, "the text encoder's vocab_size")
    placeholder = tokenizer("$", add_special_tokens=False)["input_ids"]
    _require(path / "tokenizer", 'ids of "$"', placeholder, [PLACEHOLDER_ID])


def _check_vision(path: Path) -> None:
    """Return the picture processor must be the vision tower's own."""
    vision = read_config(path / "vision_encoder" / CONFIG_FILE)
    image_size = vision.get("vision_config", vision).get("image_size")
    processor = path / "image_processor" / PROCESSOR_FILE
    config = read_config(processor)
    crop = config.get("crop_size")
    if isinstance(crop, dict):
        crop = crop["height"]
    _require(processor, "crop_size", crop, image_size, "the vision encoder's image_size")
    for key in ("image_mean", "image_std"):
        _require(processor, f"length of {key}", len(config.get(key, ())), 3)


def _check_latents(path: Path, manifest: Manifest) -> None:
    """Return UNet and VAE must agree on the latents, and the image size must be a whole number of them."""
    unet, vae = path / "unet" / CONFIG_FILE, path / "vae" / CONFIG_FILE
    config = read_config(unet)
    _require(unet, "in_channels", config.get("in_channels"), IN_CHANNELS, "latents, mask, masked image, pose")
    _require(unet, "out_channels", config.get("out_channels"), LATENT_CHANNELS)
    config = read_config(vae)
    _require(vae, "latent_channels", config.get("latent_channels"), LATENT_CHANNELS)
    downsampling = _downsampling(config)
    remainders = [side % downsampling for side in manifest.image_size]
    _require(vae, f"remainder of image_size {manifest.image_size} by {downsampling}", remainders, [0, 0])


def _downsampling(vae_config: Mapping[str, Any]) -> int:
    return int(2 ** (len(vae_config.get("block_out_channels", ())) - 1))


def _require(path: Path, key: str, value: object, expected: object, why: str = "") -> None:
    if value != expected:
        raise ArtifactError(f"{path}: {key} is {value!r}; must be {expected!r}{f' ({why})' if why else ''}")
