"""Whether the configurations of a bundle's parts fit each other. `Bundle.open` calls it before any weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fashion_rag.artifacts import read_config
from fashion_rag.errors import ArtifactError
from fashion_rag.manifest import Manifest
from fashion_rag.models.pretrained import CONFIG_FILE, DIFFUSERS_FILE, PROCESSOR_FILE, read_tokenizer
from fashion_rag.models.prompt import MAX_TOKENS, PLACEHOLDER_ID
from fashion_rag.models.unet import IN_CHANNELS, LATENT_CHANNELS
from fashion_rag.person.files import PARSER, POSE, check_parser, check_pose_estimator


def check_text(path: Path, manifest: Manifest) -> None:
    """Raise ArtifactError unless tokenizer, text encoder, adapter and UNet agree on ids and widths."""
    text = path / "text_encoder" / CONFIG_FILE
    text_config = read_config(text)
    width, vocab_size = text_config.get("hidden_size"), text_config.get("vocab_size")
    _require(text, "max_position_embeddings", text_config.get("max_position_embeddings", MAX_TOKENS), MAX_TOKENS)
    adapter = path / "inversion_adapter" / CONFIG_FILE
    adapter_config = read_config(adapter)
    _require(adapter, "text_width", adapter_config.get("text_width"), width, "the text encoder's hidden_size")
    num_words = adapter_config.get("num_pseudo_words")
    _require(adapter, "num_pseudo_words", num_words, manifest.num_pseudo_words, "as in the manifest")
    unet = path / "unet" / CONFIG_FILE
    attended = read_config(unet).get("cross_attention_dim")
    _require(unet, "cross_attention_dim", attended, width, "the text encoder's hidden_size")
    tokenizer = read_tokenizer(path / "tokenizer")
    _require(path / "tokenizer", "number of tokens", len(tokenizer), vocab_size, "the text encoder's vocab_size")
    placeholder = tokenizer("$", add_special_tokens=False)["input_ids"]
    _require(path / "tokenizer", 'ids of "$"', placeholder, [PLACEHOLDER_ID])


def check_vision(path: Path) -> None:
    """Raise ArtifactError unless the picture processor fits the vision encoder."""
    processor = path / "image_processor" / PROCESSOR_FILE
    config = read_config(processor)
    crop = config.get("crop_size")
    if isinstance(crop, dict):
        crop = crop["height"]
    _require(processor, "crop_size", crop, crop_of(path), "the vision encoder's image_size")
    for key in ("image_mean", "image_std"):
        _require(processor, f"length of {key}", len(config.get(key, ())), 3)


def check_latents(path: Path, manifest: Manifest) -> None:
    """Raise ArtifactError unless UNet and VAE agree on the latents, and the image size is a multiple of their scale."""
    unet, vae = path / "unet" / CONFIG_FILE, path / "vae" / CONFIG_FILE
    unet_config, vae_config = read_config(unet), read_config(vae)
    _require(unet, "in_channels", unet_config.get("in_channels"), IN_CHANNELS, "latents, mask, masked image, pose")
    _require(unet, "out_channels", unet_config.get("out_channels"), LATENT_CHANNELS)
    _require(vae, "latent_channels", vae_config.get("latent_channels"), LATENT_CHANNELS)
    downsampling = downsampling_of(vae_config)
    remainders = [side % downsampling for side in manifest.image_size]
    _require(vae, f"remainder of image_size {manifest.image_size} by {downsampling}", remainders, [0, 0])


def check_person(path: Path) -> None:
    """Raise ArtifactError unless the human parser and the pose estimator can be used, if they are there."""
    if (path / PARSER).exists():
        check_parser(path / PARSER)
    if (path / POSE).exists():
        check_pose_estimator(path / POSE)
        if not (path / PARSER).exists():
            raise ArtifactError(f"{path / POSE}: needs a human parser, in {path / PARSER}, which finds the person")


def check_student(student: Path, unet: Path) -> None:
    """Raise ArtifactError unless the student of the UNet is there and has the same configuration."""
    if not (student / DIFFUSERS_FILE).is_file():
        raise ArtifactError(f"{student / DIFFUSERS_FILE}: no such file, though the manifest has a student")
    own, expected = read_config(student / CONFIG_FILE), read_config(unet / CONFIG_FILE)
    for key in sorted(own.keys() | expected.keys()):
        if not key.startswith("_"):
            _require(student / CONFIG_FILE, key, own.get(key), expected.get(key), "as the UNet has it")


def crop_of(path: Path) -> Any:
    """Return the side of the vision encoder's square input, as its configuration in the bundle `path` has it."""
    config = read_config(path / "vision_encoder" / CONFIG_FILE)
    return config.get("vision_config", config).get("image_size")


def downsampling_of(vae_config: Mapping[str, Any]) -> int:
    """Return how many pixels, in height and width, one pixel of the latents stands for."""
    return int(2 ** (len(vae_config.get("block_out_channels", ())) - 1))


def _require(path: Path, key: str, value: object, expected: object, why: str = "") -> None:
    """Raise ArtifactError unless `value` is `expected`. why: where the expected value comes from."""
    if value != expected:
        reason = f" ({why})" if why else ""
        raise ArtifactError(f"{path}: {key} is {value!r}; must be {expected!r}{reason}")
