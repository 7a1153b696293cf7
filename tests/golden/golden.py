"""The golden data: what the published code computed on small random weights, and the same weights loaded here.

There may be several sets of them. Every size, count, name, order and configuration comes from the set's own manifest,
from the names of its tensors, or from their shapes.
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import AutoencoderKL, UNet2DConditionModel
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModel

from fashion_rag.denoising.noise_schedule import NoiseSchedule
from fashion_rag.models.adapter import GarmentEncoder, GarmentNetwork, InversionAdapter
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

    def rows(self, case: str) -> Any:
        """Return what the JSON file of a case holds; where the set has no such case, the test is skipped."""
        file = self.manifest["cases"].get(case, {}).get("file")
        if file is None or not (self.folder / file).is_file():
            pytest.skip(f"the golden data in {self.folder} have no case {case}")
        return self.json(file)

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Return what was found for each sample, size and mask type of the data preparation (case 6)."""
        samples: list[dict[str, Any]] = self.json(self.case("6_dataprep")["index"])
        return samples

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
    def sampler(self) -> NoiseSchedule:
        return NoiseSchedule.from_diffusers({"_class_name": "DDIMScheduler", **self.case("5_pipeline")["scheduler"]})

    @property
    def dresscode(self) -> Path:
        """Return the data set that the cases from 6 on were made of."""
        return self.folder / self.case("6_dataprep")["folder"]

    def garments(self) -> list[Image.Image]:
        """Return the garment pictures that went into the vision tower (case 7), in their order."""
        files = self.case("7_vision")["garment_files_in_order"]
        return [Image.open(self.dresscode / file).convert("RGB") for file in files]

    def crops(self) -> list[np.ndarray]:
        """Return the published crops [H, W, 3] of the first garments of case 7, in their order."""
        folder = self.folder / self.case("7_vision")["crops"].split("/")[0]
        files = sorted(folder.glob("*.png"), key=lambda path: int(path.stem))
        assert [path.stem for path in files] == [str(number) for number in range(len(files))] != []
        return [np.asarray(Image.open(path).convert("RGB")) for path in files]

    def picture_row(self, sample: str) -> int:
        """Return the row of a sample of case 8, such as "000110_0.jpg", among the published pictures.

        They are in the order of their files' names, which begin with the sample's; all else is in that of the samples.
        """
        about = self.case("8_evaluation")
        files = next(files for name, files in about.items() if name.startswith("image_files_in_order_of_image_stride"))
        (row,) = [row for row, file in enumerate(files) if Path(file).name.startswith(f"{Path(sample).stem}_")]
        return row

    @cached_property
    def num_pseudo_words(self) -> int:
        return int(self.config("inversion_adapter")["num_vstar"])

    @cached_property
    def picture_size(self) -> tuple[int, int]:
        height, width = self.case("8_evaluation")["size"]
        return height, width

    @property
    def crop(self) -> int:
        """Return the side of the square picture that the vision tower sees."""
        return int(self.config("vision_encoder")["image_size"])

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
        weights.pop("visual_projection.weight", None)  # leads to the pooled output, of no use here
        model.load_state_dict(weights)
        return GarmentEncoder(
            GarmentNetwork(model, self.adapter), self.picture_size, self.crop, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
        ).eval()

    @cached_property
    def prompt_encoder(self) -> PromptEncoder:
        special = {"bos_token_id": self.case("2_text")["bos"], "eos_token_id": self.case("2_text")["eos"]}
        model = CLIPTextModel(CLIPTextConfig(**self.config("text_encoder"), **special))
        model.load_state_dict(_without_prefix(self.tensors("weights_text_encoder"), "text_model."))
        return PromptEncoder.of(CLIPTokenizer.from_pretrained(self.folder / "tokenizer"), model).eval()

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
        return VAE.of(autoencoder).eval()


def _without_prefix(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return a CLIP tower's weights: since the data were made, keys have lost `prefix` and position ids are
    no weights.
    """
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if "position_ids" not in name}


def named(tensors: dict[str, Tensor], pattern: str) -> dict[str, tuple[str, ...]]:
    """Return the names that match the whole of `pattern`, each with what its groups matched; there is at least one.

    The names say what they hold: "image_stride4" is every fourth pixel, "steps7.timesteps" are those of seven steps.
    """
    found = {name: match.groups() for name in tensors if (match := re.fullmatch(pattern, name))}
    assert found, f"no tensor is named {pattern}; there are {sorted(tensors)}"
    return found


def strided(tensors: dict[str, Tensor], kind: str) -> tuple[Tensor, slice]:
    """Return the pictures called `kind`, of which only every so many pixels are kept, and the slice that keeps them."""
    ((name, (stride,)),) = named(tensors, rf"{kind}_stride(\d+)").items()
    return tensors[name], slice(None, None, int(stride))


def first_rows(tensors: dict[str, Tensor], kind: str) -> Tensor:
    """Return the tensor called `kind`, of which only the first rows are kept; their number is in its shape."""
    (name,) = named(tensors, rf"{kind}_first\d*")
    return tensors[name]


def difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest absolute difference; the shapes must be equal."""
    assert actual.shape == expected.shape
    return float((actual.double() - expected.double()).abs().max())
