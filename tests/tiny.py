"""A whole bundle and a catalogue of toy size with random weights: what most tests run the real code on."""

import tempfile
from dataclasses import replace
from pathlib import Path

import open_clip
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from fashion_rag.artifacts import write_json
from fashion_rag.bundle import Bundle
from fashion_rag.bundle_write import BundleParts, write_bundle
from fashion_rag.catalogue import retrieval_encoder as encoder
from fashion_rag.catalogue.garments import garments_in
from fashion_rag.demo.model.tokenizer import write_tokenizer
from fashion_rag.manifest import Manifest
from fashion_rag.models.adapter import InversionAdapter
from fashion_rag.models.unet import UNet
from fashion_rag.training.base import write_student
from fashion_rag.weights import write_state
from tests.person import toy

VOCAB_SIZE = 600
TEXT_WIDTH = 16
MANIFEST = Manifest("tiny", image_size=(64, 48), num_pseudo_words=4, num_inference_steps=4)
CLIP_SIZES = {"intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_act": "gelu"}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
RETRIEVAL = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8},
        "text_cfg": {"vocab_size": VOCAB_SIZE, "width": 16, "heads": 2, "layers": 1, "hf_tokenizer_name": "tokenizer"},
    },
    "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"},
}
# Four garments a category; ids are unique across them.
GARMENT_COLOURS = {
    "dresses": {"red-dress": "red", "blue-dress": "blue", "green-dress": "green", "black-dress": "black"},
    "lower_body": {"red-skirt": "red", "blue-jeans": "blue", "green-shorts": "green", "black-trousers": "black"},
    "upper_body": {"red-shirt": "red", "blue-blouse": "blue", "green-jumper": "green", "black-top": "black"},
}


def text_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=TEXT_WIDTH,
        bos_token_id=VOCAB_SIZE - 2,
        eos_token_id=VOCAB_SIZE - 1,
        pad_token_id=0,
        **CLIP_SIZES,
    )


def make_unet(in_channels: int = 27) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=in_channels,
        out_channels=4,
        cross_attention_dim=TEXT_WIDTH,
        use_linear_projection=True,
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=(1, 2),
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
    )


def make_parts(folder: Path, seed: int = 0) -> BundleParts:
    """Return the random parts that fit each other; those that are files lie in `folder`."""
    tokenizer = write_tokenizer(folder / "tokenizer", VOCAB_SIZE)
    towers = write_tokenizer(folder / "retrieval", VOCAB_SIZE)
    write_json(towers / encoder.CONFIG_FILE, RETRIEVAL)
    vision_config = CLIPVisionConfig(hidden_size=16, image_size=32, patch_size=16, **CLIP_SIZES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        write_state(towers / encoder.WEIGHTS_FILE, open_clip.CLIP(**RETRIEVAL["model_cfg"]).state_dict())
        return BundleParts(
            text_encoder=CLIPTextModel(text_config()),
            tokenizer=tokenizer,
            vision_encoder=CLIPVisionModel(vision_config),
            image_mean=(0.5, 0.5, 0.5),
            image_std=(0.25, 0.25, 0.25),
            inversion_adapter=InversionAdapter(vision_config, 24, TEXT_WIDTH, MANIFEST.num_pseudo_words),
            unet=make_unet(),
            vae=make_vae(),
            scheduler=SCHEDULER,
            retrieval=towers,
        )


def make_tiny_bundle(folder: Path, seed: int = 0, person: bool = False) -> Path:
    """Return `folder`, now holding a bundle of random weights. person: with a human parser and a pose estimator."""
    with tempfile.TemporaryDirectory() as scratch:
        parts = make_parts(Path(scratch), seed)
        if person:
            parser = toy.write_parser(Path(scratch) / "parser", seed=seed)
            parts = replace(parts, parser=parser, pose=toy.write_pose_estimator(Path(scratch) / "pose", seed=seed))
        write_bundle(folder, MANIFEST, parts)
    return folder


def add_tiny_student(folder: Path, bundle: Path) -> Path:
    """Return `folder`, now holding the bundle with a student whose weights are random, and not its teacher's."""
    torch.manual_seed(1)
    return write_student(Bundle.open(bundle), UNet(make_unet()), folder, num_steps=4).path


def make_tiny_catalogue(folder: Path, bundle: Path) -> Path:
    """Return `folder`, now holding a catalogue of plain coloured garments, whose pictures lie beside it."""
    pictures = folder.with_name(f"{folder.name}-pictures")
    for category, colours in GARMENT_COLOURS.items():
        (pictures / category).mkdir(parents=True)
        for garment_id, colour in colours.items():
            picture = Image.new("RGB", (48, 64), "white")
            picture.paste(colour, (12, 8, 36, 56))
            picture.save(pictures / category / f"{garment_id}.png")
    captions = {name: name.replace("-", " ") for colours in GARMENT_COLOURS.values() for name in colours}
    write_json(pictures / "captions.json", captions)
    Bundle.open(bundle).build_catalogue(folder, garments_in(pictures), work=folder.with_name(f"{folder.name}-work"))
    return folder
