"""The golden data: what the published code computed on small random weights, and the same weights loaded here.

Every size and configuration comes from the data's own manifest.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModel

from fashion_rag.denoising.sampler import SamplerConfig
from fashion_rag.models.adapter import GarmentEncoder, InversionAdapter
from fashion_rag.models.autoencoder import VAE
from fashion_rag.models.prompt import PromptEncoder
from fashion_rag.models.unet import UNet

# Renamed in diffusers since the data were made.
VAE_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class Golden:
    """One folder of golden data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = self.json("manifest.json")

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{name}.safetensors")

    def config(self, part: str) -> dict[str, Any]:
        config: dict[str, Any] = self.manifest["files"][f"weights_{part}.safetensors"]["config"]
        return config

    def case(self, name: str) -> dict[str, Any]:
        case: dict[str, Any] = self.manifest["cases"][name]
        return case

    def tolerance(self, case: str) -> float:
        return float(self.manifest["suggested_tolerance"][case])

    @cached_property
    def sampler(self) -> SamplerConfig:
        return SamplerConfig.from_diffusers({"_class_name": "DDIMScheduler", **self.case("5_pipeline")["scheduler"]})

    @cached_property
    def num_pseudo_words(self) -> int:
        return int(self.config("inversion_adapter")["num_vstar"])

    @cached_property
    def picture_size(self) -> tuple[int, int]:
        height, width = self.case("8_evaluation")["size"]
        return height, width

    @cached_property
    def adapter(self) -> InversionAdapter:
        config = self.config("inversion_adapter")
        adapter = InversionAdapter(
            CLIPVisionConfig(**config["clip_vision_config"]),
            hidden_dim=config["hidden_dim"],
            text_width=config["output_dim"] // config["num_vstar"],
            num_pseudo_words=config["num_vstar"],
            dropout=config["dropout"],
        )
        adapter.load_state_dict(self.tensors("weights_inversion_adapter"))
        return adapter.eval()

    @cached_property
    def garment_encoder(self) -> GarmentEncoder:
        config = CLIPVisionConfig(**self.config("vision_encoder"))
        model = CLIPVisionModel(config)
        weights = _without_prefix(self.tensors("weights_vision_encoder"), "vision_model.")
        del weights["visual_projection.weight"]  # leads to the pooled output, of no use here
        model.load_state_dict(weights)
        crop = config.image_size
        return GarmentEncoder(
            model, self.adapter, self.picture_size, crop, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
        ).eval()

    @cached_property
    def prompt_encoder(self) -> PromptEncoder:
        special = {"bos_token_id": self.case("2_text")["bos"], "eos_token_id": self.case("2_text")["eos"]}
        model = CLIPTextModel(CLIPTextConfig(**self.config("text_encoder"), **special))
        model.load_state_dict(_without_prefix(self.tensors("weights_text_encoder"), "text_model."))
        return PromptEncoder(CLIPTokenizer.from_pretrained(self.folder / "tokenizer"), model).eval()

    @cached_property
    def unet(self) -> UNet:
        unet = UNet2DConditionModel(**self.config("unet"))
        unet.load_state_dict(self.tensors("weights_unet"))
        return UNet(unet).eval()

    @cached_property
    def vae(self) -> VAE:
        autoencoder = AutoencoderKL(**self.config("vae"))
        weights = {}
        for name, weight in self.tensors("weights_vae").items():
            for old, new in VAE_RENAMED.items():
                name = name.replace(f"attentions.0.{old}.", f"attentions.0.{new}.")
            weights[name] = weight
        autoencoder.load_state_dict(weights)
        return VAE(autoencoder).eval()


def _without_prefix(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A CLIP tower's weights: since the data were made, keys have lost `prefix` and position ids are no weights."""
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if "position_ids" not in name}


def difference(actual: Tensor, expected: Tensor) -> float:
    """The largest absolute difference; the shapes must be equal."""
    assert actual.shape == expected.shape
    return float((actual.double() - expected.double()).abs().max())
