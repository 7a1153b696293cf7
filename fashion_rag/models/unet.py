"""The inpainting UNet with 27 input channels, and how its input is put together."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

LATENT_CHANNELS = 4
POSE_CHANNELS = 18
# latents, mask, masked-image latents, pose: 4 + 1 + 4 + 18.
IN_CHANNELS = LATENT_CHANNELS + 1 + LATENT_CHANNELS + POSE_CHANNELS


class UNet(nn.Module):
    """Noise prediction as a plain tensor: the call that every compiled UNet answers too."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
        """Predicted noise [B, 4, h, w] for `sample` [B, 27, h, w] at timesteps `t` [B] int64, text [B, 77, D]."""
        dtype = self.unet.conv_in.weight.dtype
        noise_pred: Tensor = self.unet(sample.to(dtype), t, encoder_hidden_states=prompt_embeds.to(dtype)).sample
        return noise_pred.float()


def unet_input(latents: Tensor, mask: Tensor, masked_image_latents: Tensor, pose_map: Tensor) -> Tensor:
    """The UNet's input [B, 27, h, w]: latents 4, mask 1, masked-image latents 4, pose 18, in this order."""
    return torch.cat([latents, mask, masked_image_latents, pose_map], dim=1)


def widen_conv_in(unet: UNet2DConditionModel, in_channels: int = IN_CHANNELS) -> None:
    """Give `unet` in place a first convolution of `in_channels` inputs; the new channels' weights are zero.

    The widened UNet predicts what the narrow one did until training fills the new weights.
    """
    narrow = unet.conv_in
    wide = nn.Conv2d(in_channels, narrow.out_channels, kernel_size=3, padding=1)
    wide = wide.to(device=narrow.weight.device, dtype=narrow.weight.dtype)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, : narrow.in_channels] = narrow.weight
        assert wide.bias is not None and narrow.bias is not None
        wide.bias.copy_(narrow.bias)
    unet.conv_in = wide
    unet.register_to_config(in_channels=in_channels)
