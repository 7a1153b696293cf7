"""The VAE between pictures and latents. The person-encoding and the decoding stage each use one half."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn


class VAEEncoder(nn.Module):
    """The half that looks at a picture."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.encoder = autoencoder.encoder
        self.quant_conv = autoencoder.quant_conv or nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Posterior moments [B, 8, h, w] (mean, then log variance) of `image` [B, 3, H, W] in [-1, 1]."""
        moments: Tensor = self.quant_conv(self.encoder(image.to(self.encoder.conv_in.weight.dtype)))
        return moments.float()


class VAEDecoder(nn.Module):
    """The half that paints a picture."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv = autoencoder.post_quant_conv or nn.Identity()
        self.decoder = autoencoder.decoder

    def forward(self, latents: Tensor) -> Tensor:
        """Picture [B, 3, H, W], about [-1, 1], of unscaled `latents` [B, 4, h, w]."""
        image: Tensor = self.decoder(self.post_quant_conv(latents.to(self.decoder.conv_in.weight.dtype)))
        return image.float()


class VAE(nn.Module):
    """Pictures to scaled latents and back. A compiled module may be put in the place of `encoder` or `decoder`."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.encoder: nn.Module = VAEEncoder(autoencoder)
        self.decoder: nn.Module = VAEDecoder(autoencoder)
        self.scaling_factor: float = autoencoder.config["scaling_factor"]
        self.downsampling: int = 2 ** (len(autoencoder.config["block_out_channels"]) - 1)

    def encode(self, image: Tensor, noise: Tensor) -> Tensor:
        """Scaled latents [B, 4, h, w]: the posterior's sample that `noise` [B, 4, h, w], unit normal, picks.

        `image` is [B, 3, H, W] in [-1, 1], contiguous NCHW: GroupNorm on the CPU loses digits on other strides.
        """
        mean, logvar = self.encoder(image.contiguous()).chunk(2, dim=1)
        std = torch.exp(0.5 * logvar.clamp(-30.0, 20.0))
        latents: Tensor = self.scaling_factor * (mean + std * noise)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Picture [B, 3, H, W] of scaled `latents` [B, 4, h, w]; values may leave [-1, 1] a little."""
        image: Tensor = self.decoder(latents / self.scaling_factor)
        return image
