"""The writing of a bundle. `bundle_import` and the demo's training call it; `bundle.py` describes what is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPVisionModel

from fashion_rag.artifacts import MANIFEST_FILE, copy_files, write_json
from fashion_rag.atomic_files import written_aside
from fashion_rag.bundle import SCHEDULER_FILE, WEIGHTS, Bundle
from fashion_rag.manifest import Manifest
from fashion_rag.models.adapter import InversionAdapter
from fashion_rag.models.autoencoder import fit_preview
from fashion_rag.models.pretrained import CONFIG_FILE, PROCESSOR_FILE
from fashion_rag.person.files import PARSER, POSE, copy_part
from fashion_rag.weights import read_state, write_state


@dataclass(frozen=True, eq=False)
class BundleParts:
    """The parts that `write_bundle` writes.

    tokenizer, retrieval: folders whose files are copied. parser, pose: folders of a human parser and a pose estimator,
    whose files are copied as they are; None = the bundle has none. image_mean, image_std: mean and standard deviation
    by which the vision encoder's RGB pixels in [0, 1] are normalised. scheduler: the content of DDIM's
    `scheduler_config.json`.
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
    parser: Path | None = None
    pose: Path | None = None


def write_bundle(folder: Path, manifest: Manifest, parts: BundleParts, dtype: torch.dtype = torch.float32) -> Bundle:
    """Write the bundle of `parts` to `folder`, and return it.

    An earlier bundle in `folder` is replaced once the new one is whole. Weights are stored as `dtype`. A manifest
    without a preview gets one. If the parts do not fit each other, ArtifactError is raised, and `folder` stays as it
    was.
    """
    with written_aside(folder) as new:
        manifest.write(new / MANIFEST_FILE)
        for part in ("tokenizer", "retrieval"):
            copy_files(getattr(parts, part), new / part)
        for part in ("text_encoder", "vision_encoder", "inversion_adapter", "unet", "vae"):
            (new / part).mkdir()
            write_state(new / part / WEIGHTS[part], getattr(parts, part).state_dict(), dtype)
        for part, folder_of_part in ((PARSER, parts.parser), (POSE, parts.pose)):
            if folder_of_part is not None:
                copy_part(folder_of_part, new / part)
        weights = new / "retrieval" / WEIGHTS["retrieval"]
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
            # The preview is fitted to the weights as they are stored.
            preview = fit_preview(bundle.load_vae(), manifest.image_size)
            replace(manifest, preview=preview).write(new / MANIFEST_FILE)
    return Bundle.open(folder)


def _adapter_config(adapter: InversionAdapter) -> dict[str, Any]:
    layers: Any = adapter.layers
    return {
        "hidden_dim": layers[0].out_features,
        "text_width": layers[6].out_features // adapter.num_pseudo_words,
        "num_pseudo_words": adapter.num_pseudo_words,
        "dropout": layers[2].p,
    }
