"""The configuration of each small network of the demo bundle. Only `train` and `stages` use it."""

from __future__ import annotations

from typing import Any

import open_clip
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
)

from fashion_rag.manifest import Manifest
from fashion_rag.models.adapter import InversionAdapter
from fashion_rag.models.unet import IN_CHANNELS
from fashion_rag.person import labels

VOCAB_SIZE = 2048
TEXT_WIDTH = 96
VISION_WIDTH = 128
VISION_IMAGE = 64
CLIP_MEAN = (0.5, 0.5, 0.5)
CLIP_STD = (0.5, 0.5, 0.5)
LATENT_CHANNELS = 4
# The (height, width) of the inputs of the human parser and the pose estimator, and of the latter's heat maps.
PARSER_SIZE = (288, 216)
# Training shows the parser smaller pictures at first. These are its stages in their order.
PARSER_STAGES = {"small_parser": (96, 72), "middle_parser": (192, 144), "parser": PARSER_SIZE}
POSE_SIZE = (128, 96)
POSE_MAP_SIZE = (64, 48)
PHOTO_MEAN = (0.5, 0.5, 0.5)
PHOTO_STD = (0.5, 0.5, 0.5)
# The names of Dress Code's classes in `config.json`.
CLASSES = tuple(name.replace("_", "-") for name in labels.CLASSES)

MANIFEST = Manifest(
    name="fashion-rag-demo",
    image_size=(96, 72),
    num_pseudo_words=8,
    pose_sigma=3.0,
    num_inference_steps=20,
    guidance_scale=3.0,
    licence="Apache-2.0; trained from scratch on the project's own paper-doll pictures",
)

# The last step has a signal-to-noise ratio of zero, which needs v-prediction: without it, a small model keeps the mean
# brightness of the noise.
SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "clip_sample": False,
}

CLIP: dict[str, Any] = {
    "embed_dim": 96,
    "vision_cfg": {
        "image_size": VISION_IMAGE,
        "patch_size": 8,
        "width": VISION_WIDTH,
        "layers": 4,
        "head_width": 32,
        "mlp_ratio": 3.0,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": VOCAB_SIZE,
        "width": TEXT_WIDTH,
        "heads": 4,
        "layers": 3,
        "mlp_ratio": 3.0,
        "hf_tokenizer_name": "tokenizer",
    },
}
# The retrieval encoder sees the whole picture of a garment, squeezed into a square.
PREPROCESS: dict[str, Any] = {
    "size": [VISION_IMAGE, VISION_IMAGE],
    "mode": "RGB",
    "mean": list(CLIP_MEAN),
    "std": list(CLIP_STD),
    "interpolation": "bicubic",
    "resize_mode": "squash",
}


def make_clip() -> open_clip.CLIP:
    """Return the untrained retrieval encoder. Its two towers are also the bundle's text and vision encoder."""
    return open_clip.CLIP(**CLIP)


def make_vae() -> AutoencoderKL:
    """Return the untrained autoencoder. Its latents have 4 channels and are 4 times smaller along each side."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )


def make_unet() -> UNet2DConditionModel:
    """Return the untrained denoiser. It has two levels, both with attention."""
    return UNet2DConditionModel(
        sample_size=24,
        in_channels=IN_CHANNELS,
        out_channels=LATENT_CHANNELS,
        cross_attention_dim=TEXT_WIDTH,
        use_linear_projection=True,
        block_out_channels=(64, 112),
        layers_per_block=1,
        # In diffusers this is, in spite of its name, the number of heads.
        attention_head_dim=(2, 4),
        norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )


def make_adapter() -> InversionAdapter:
    """Return the untrained inversion adapter."""
    return InversionAdapter(
        vision_config(), hidden_dim=192, text_width=TEXT_WIDTH, num_pseudo_words=MANIFEST.num_pseudo_words, dropout=0.1
    )


def vision_config() -> CLIPVisionConfig:
    """Return the vision tower's configuration for transformers."""
    cfg = CLIP["vision_cfg"]
    return CLIPVisionConfig(
        hidden_size=cfg["width"],
        intermediate_size=int(cfg["width"] * cfg["mlp_ratio"]),
        num_hidden_layers=cfg["layers"],
        num_attention_heads=cfg["width"] // cfg["head_width"],
        image_size=cfg["image_size"],
        patch_size=cfg["patch_size"],
        projection_dim=CLIP["embed_dim"],
        hidden_act="gelu",
    )


def text_config() -> CLIPTextConfig:
    """Return the text tower's configuration for transformers."""
    cfg = CLIP["text_cfg"]
    return CLIPTextConfig(
        vocab_size=cfg["vocab_size"],
        hidden_size=cfg["width"],
        intermediate_size=int(cfg["width"] * cfg["mlp_ratio"]),
        num_hidden_layers=cfg["layers"],
        num_attention_heads=cfg["heads"],
        max_position_embeddings=cfg["context_length"],
        projection_dim=CLIP["embed_dim"],
        hidden_act="gelu",
        pad_token_id=0,
        bos_token_id=VOCAB_SIZE - 2,
        eos_token_id=VOCAB_SIZE - 1,
    )


def make_parser() -> SegformerForSemanticSegmentation:
    """Return the untrained human parser. Its logits have half the height and width of its input."""
    config = SegformerConfig(
        depths=[1, 2, 2, 1],
        hidden_sizes=[16, 32, 64, 96],
        num_attention_heads=[1, 2, 4, 6],
        mlp_ratios=[2, 2, 4, 4],
        strides=[2, 2, 2, 2],
        decoder_hidden_size=48,
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: number for number, name in enumerate(CLASSES)},
    )
    return SegformerForSemanticSegmentation(config)


def make_pose() -> VitPoseForPoseEstimation:
    """Return the untrained pose estimator. Its heat maps have half the height and width of its input."""
    backbone = VitPoseBackboneConfig(
        image_size=list(POSE_SIZE),
        patch_size=[8, 8],
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        out_indices=[4],
    )
    config = VitPoseConfig(
        backbone_config=backbone,
        scale_factor=4,
        use_simple_decoder=True,
        num_labels=labels.NUM_COCO_POINTS,
    )
    return VitPoseForPoseEstimation(config)


def _block(state: dict[str, Tensor], source: str, target: str) -> dict[str, Tensor]:
    """Return the weights of a transformer block of OpenCLIP, under the names that transformers gives them."""
    weights = {}
    for kind in ("weight", "bias"):
        parts = state[f"{source}.attn.in_proj_{kind}"].chunk(3)
        for name, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
            weights[f"{target}.self_attn.{name}.{kind}"] = part
        weights[f"{target}.self_attn.out_proj.{kind}"] = state[f"{source}.attn.out_proj.{kind}"]
        weights[f"{target}.layer_norm1.{kind}"] = state[f"{source}.ln_1.{kind}"]
        weights[f"{target}.layer_norm2.{kind}"] = state[f"{source}.ln_2.{kind}"]
        weights[f"{target}.mlp.fc1.{kind}"] = state[f"{source}.mlp.c_fc.{kind}"]
        weights[f"{target}.mlp.fc2.{kind}"] = state[f"{source}.mlp.c_proj.{kind}"]
    return weights


def text_encoder_of(clip: open_clip.CLIP) -> CLIPTextModel:
    """Return the text tower of `clip` as a frozen transformers model."""
    state = clip.state_dict()
    converted = {
        "embeddings.token_embedding.weight": state["token_embedding.weight"],
        "embeddings.position_embedding.weight": state["positional_embedding"],
        "final_layer_norm.weight": state["ln_final.weight"],
        "final_layer_norm.bias": state["ln_final.bias"],
    }
    for layer in range(CLIP["text_cfg"]["layers"]):
        converted |= _block(state, f"transformer.resblocks.{layer}", f"encoder.layers.{layer}")
    model = CLIPTextModel(text_config())
    model.load_state_dict(converted)
    return model.eval().requires_grad_(False)


def vision_encoder_of(clip: open_clip.CLIP) -> CLIPVisionModel:
    """Return the vision tower of `clip` as a frozen transformers model."""
    state = clip.visual.state_dict()
    converted = {
        "embeddings.class_embedding": state["class_embedding"],
        "embeddings.patch_embedding.weight": state["conv1.weight"],
        "embeddings.position_embedding.weight": state["positional_embedding"],
    }
    for kind in ("weight", "bias"):
        converted[f"pre_layrnorm.{kind}"] = state[f"ln_pre.{kind}"]
        converted[f"post_layernorm.{kind}"] = state[f"ln_post.{kind}"]
    for layer in range(CLIP["vision_cfg"]["layers"]):
        converted |= _block(state, f"transformer.resblocks.{layer}", f"encoder.layers.{layer}")
    model = CLIPVisionModel(vision_config())
    model.load_state_dict(converted)
    return model.eval().requires_grad_(False)
