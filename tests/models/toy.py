"""Networks with a few thousand random weights, which are made in milliseconds."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModel

from fashion_rag.demo.model.tokenizer import write_tokenizer
from fashion_rag.models.adapter import GarmentEncoder, GarmentNetwork, InversionAdapter
from fashion_rag.models.autoencoder import VAE
from fashion_rag.models.prompt import PromptEncoder

VOCAB_SIZE = 600
TEXT_WIDTH = 16


def prompt_encoder(folder: Path) -> PromptEncoder:
    torch.manual_seed(0)
    sizes = {"hidden_size": TEXT_WIDTH, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"vocab_size": VOCAB_SIZE, "bos_token_id": VOCAB_SIZE - 2, "eos_token_id": VOCAB_SIZE - 1}
    model = CLIPTextModel(CLIPTextConfig(**sizes, **special)).eval()
    return PromptEncoder.of(CLIPTokenizer.from_pretrained(write_tokenizer(folder, VOCAB_SIZE)), model)


def garment_encoder(num_pseudo_words: int) -> GarmentEncoder:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    adapter = InversionAdapter(config, hidden_dim=24, text_width=TEXT_WIDTH, num_pseudo_words=num_pseudo_words)
    model = CLIPVisionModel(config)
    return GarmentEncoder(
        GarmentNetwork(model, adapter), (64, 48), crop=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
    ).eval()


def diffusers_unet(in_channels: int) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        cross_attention_dim=TEXT_WIDTH,
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=8,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


def autoencoder() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        scaling_factor=0.3,
    ).eval()


def vae() -> VAE:
    return VAE.of(autoencoder())
