"""The import of the released Fashion-RAG checkpoints, and of the base models that they go with, as a bundle.

`fashion-rag bundle import` calls it. The released weights are under CC BY-NC 4.0, and the bundle's manifest says so.
Without them, the base models alone become a bundle to train, which is marked as untrained.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPVisionConfig

from fashion_rag.artifacts import read_config, write_json
from fashion_rag.atomic_files import check_replaceable, scratch_beside
from fashion_rag.bundle import SCHEDULER_FILE, Bundle
from fashion_rag.bundle_write import BundleParts, write_bundle
from fashion_rag.catalogue import retrieval_encoder as encoder
from fashion_rag.errors import ArtifactError, InvalidRequest
from fashion_rag.manifest import Manifest
from fashion_rag.models.adapter import InversionAdapter, new_adapter
from fashion_rag.models.pretrained import (
    CLIP_FILE,
    CONFIG_FILE,
    DIFFUSERS_FILE,
    PROCESSOR_FILE,
    build,
    fill,
    read_text_encoder,
    read_unet,
    read_vae,
    read_vision_encoder,
)
from fashion_rag.models.unet import IN_CHANNELS, widen_conv_in
from fashion_rag.person.files import PARSER, POSE
from fashion_rag.person_import import find_parts, with_licence
from fashion_rag.published import folder_of, read_pth
from fashion_rag.weights import hollow, write_state

RELEASED_LICENCE = "UNet and inversion adapter: released Fashion-RAG weights, CC BY-NC 4.0, non-commercial use only."
BASE_LICENCE = "Made of base models, each of which has its own licence."
BASE_IN_CHANNELS = 9
BASE_FILES = [
    *(f"{part}/{CONFIG_FILE}" for part in ("text_encoder", "unet", "vae")),
    f"text_encoder/{CLIP_FILE}",
    f"vae/{DIFFUSERS_FILE}",
    f"scheduler/{SCHEDULER_FILE}",
    "tokenizer/*",
]
# Needed only where the released UNet is not taken.
BASE_UNET_FILE = f"unet/{DIFFUSERS_FILE}"
VISION_FILES = [CONFIG_FILE, CLIP_FILE, PROCESSOR_FILE]


def import_bundle(
    *,
    base: str,
    vision: str,
    retrieval: str,
    out: Path,
    name: str,
    unet: Path | None = None,
    adapter: Path | None = None,
    seed: int = 0,
    parser: str | None = None,
    pose: str | None = None,
    licence: str = "",
    dtype: torch.dtype = torch.float32,
) -> Bundle:
    """Write the bundle of the released weights, or of the base models alone, to the folder `out`, and return it.

    base: Stable Diffusion 2 inpainting in the layout of diffusers, as a folder or an id on the Hugging Face hub.
    unet, adapter: the released `.pth` files. With both None, the base's UNet is widened as in the paper, so that it
        predicts what it did before; the adapter is `new_adapter` of the seed; and the bundle is marked as untrained.
    vision: the CLIP vision encoder, as a folder or an id on the Hugging Face hub.
    retrieval: a folder in OpenCLIP's layout, or MODEL/TAG of a pretrained model, such as ViT-L-14/laion2b_s32b_b82k.
    parser, pose: the human parser and the pose estimator, as folders or ids on the Hugging Face hub; None = none.
    licence: a sentence on the base models, which the manifest has beside the one on the released weights.
    dtype: the type in which weights are stored.

    At full size this takes about 15 GB of memory. Raises InvalidRequest if only one of `unet` and `adapter` is given,
    and ArtifactError, writing nothing, for a file that is missing or damaged, and for weights that are not exactly
    those of the configurations.
    """
    # Checks that take no time come before anything is fetched or loaded.
    check_replaceable(out)
    if (unet is None) != (adapter is None):
        missing, given = ("unet", "adapter") if unet is None else ("adapter", "unet")
        raise InvalidRequest(missing, None, f"must be given with {given}, or both be left out")
    for path in (unet, adapter):
        if path is not None and not path.is_file():
            raise ArtifactError(f"{path}: not a readable file of weights: there is no such file")
    _check_retrieval(retrieval)
    base_folder = folder_of(base, BASE_FILES if unet else [*BASE_FILES, BASE_UNET_FILE])
    vision_folder = folder_of(vision, VISION_FILES)
    text_encoder = read_text_encoder(base_folder / "text_encoder")
    vision_encoder = read_vision_encoder(vision_folder)
    text_width = text_encoder.config.hidden_size
    if adapter is None:
        inversion_adapter = new_adapter(vision_encoder.config, text_width, Manifest.num_pseudo_words, seed)
    else:
        inversion_adapter = _read_adapter(adapter, vision_encoder.config, text_width)
    processor = read_config(vision_folder / PROCESSOR_FILE)
    manifest = Manifest(
        name=name,
        num_pseudo_words=inversion_adapter.num_pseudo_words,
        licence=f"{BASE_LICENCE if unet is None else RELEASED_LICENCE} {licence}".strip(),
        untrained=unet is None,
    )
    with scratch_beside(out) as scratch:
        published = find_parts(parser, pose, scratch)
        for part in published:
            manifest = replace(manifest, licence=with_licence(manifest.licence, part))
        folders = {part.part: part.folder for part in published}
        parts = BundleParts(
            text_encoder=text_encoder,
            tokenizer=base_folder / "tokenizer",
            vision_encoder=vision_encoder,
            image_mean=processor["image_mean"],
            image_std=processor["image_std"],
            inversion_adapter=inversion_adapter,
            unet=_widened(base_folder / "unet") if unet is None else _read_unet(unet, base_folder / "unet"),
            vae=read_vae(base_folder / "vae"),
            scheduler=_ddim(read_config(base_folder / "scheduler" / SCHEDULER_FILE)),
            retrieval=_retrieval_folder(retrieval, scratch / "retrieval"),
            parser=folders.get(PARSER),
            pose=folders.get(POSE),
        )
        return write_bundle(out, manifest, parts, dtype)


def _read_unet(path: Path, base: Path) -> UNet2DConditionModel:
    """Return the released UNet in `path`. base: the folder of the base UNet, which has the configuration."""
    _check_inpainting(base)

    def wide(raw: dict[str, Any]) -> UNet2DConditionModel:
        return UNet2DConditionModel.from_config(raw | {"in_channels": IN_CHANNELS})

    return fill(build(wide, base / CONFIG_FILE), read_pth(path), path)


def _widened(base: Path) -> UNet2DConditionModel:
    """Return the base UNet in the folder `base` with all input channels."""
    _check_inpainting(base)
    unet = read_unet(base)
    widen_conv_in(unet)
    return unet


def _check_inpainting(base: Path) -> None:
    """Raise ArtifactError unless the base UNet is one for inpainting."""
    channels = read_config(base / CONFIG_FILE).get("in_channels")
    if channels != BASE_IN_CHANNELS:
        raise ArtifactError(
            f"{base / CONFIG_FILE}: in_channels is {channels}; an inpainting UNet has {BASE_IN_CHANNELS}"
        )


def _read_adapter(path: Path, vision_config: CLIPVisionConfig, text_width: int) -> InversionAdapter:
    """Return the adapter in a released file. Its sizes are read off the shapes of its weights."""
    state = read_pth(path)
    for key in ("layers.0.weight", "layers.6.weight"):
        if key not in state:
            raise ArtifactError(f"{path}: {key} is missing; not an inversion adapter")
    hidden_dim, out_features = len(state["layers.0.weight"]), len(state["layers.6.weight"])
    if out_features % text_width:
        raise ArtifactError(
            f"{path}: layers.6.weight has {out_features} rows; must be a multiple of the text width {text_width}"
        )
    with hollow():
        adapter = InversionAdapter(vision_config, hidden_dim, text_width, num_pseudo_words=out_features // text_width)
    return fill(adapter, state, path)


def _ddim(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the base model's noise schedule for DDIM, which the method uses, for whatever sampler the file is."""
    # The pipelines of Stable Diffusion set these two values, whatever the file says.
    config = DDIMScheduler.from_config(raw | {"clip_sample": False, "steps_offset": 1}).config
    return {key: value for key, value in config.items() if not key.startswith("_")} | {"_class_name": "DDIMScheduler"}


def _check_retrieval(source: str) -> None:
    """Raise ArtifactError unless `source` is a folder, or MODEL/TAG of a pretrained OpenCLIP model."""
    model_name, _, tag = source.partition("/")
    if not Path(source).is_dir() and tag not in open_clip.list_pretrained_tags_by_model(model_name):
        raise ArtifactError(f"{source}: no such folder, nor MODEL/TAG of a pretrained OpenCLIP model")


def _retrieval_folder(source: str, folder: Path) -> Path:
    """Return the folder `source`; if it is MODEL/TAG of a pretrained OpenCLIP model, write that to `folder` first."""
    if Path(source).is_dir():
        return Path(source)
    model_name, _, tag = source.partition("/")
    try:
        model = open_clip.create_model(model_name, pretrained=tag, require_pretrained=True)
    except (OSError, RuntimeError) as error:
        raise ArtifactError(f"{source}: could not be fetched: {error}") from error
    config = {"model_cfg": open_clip.get_model_config(model_name), "preprocess_cfg": model.visual.preprocess_cfg}
    folder.mkdir()
    write_json(folder / encoder.CONFIG_FILE, config)
    write_state(folder / encoder.WEIGHTS_FILE, model.state_dict())
    return folder
