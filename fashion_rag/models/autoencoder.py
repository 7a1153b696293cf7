"""The VAE between pictures and latents. The stages that encode persons and decode pictures use one half each.

This module also fits the map from latents to colours that shows an edit while it runs. `bundle` fits it once and stores
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

# The random pictures on which the preview's map is fitted: their number, their largest side in latents, the numbers of
# background cells along a side, which take turns, and the number of coloured patches in each. A latent depends on the
# pixels near it, so larger pictures would only take longer.
PREVIEW_PICTURES = 24
PREVIEW_MAX_LATENTS = 24
PREVIEW_CELLS = (1, 2, 4)
PREVIEW_PATCHES = 6


class VAEEncoder(nn.Module):
    """The half of the VAE that encodes a picture."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.encoder = autoencoder.encoder
        self.quant_conv = autoencoder.quant_conv or nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Return the posterior moments [B, 8, h, w] (mean, then log variance) of `image` [B, 3, H, W] in [-1, 1]."""
        moments: Tensor = self.quant_conv(self.encoder(image.to(self.encoder.conv_in.weight.dtype)))
        return moments.float()


class VAEDecoder(nn.Module):
    """The half of the VAE that decodes a picture."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv = autoencoder.post_quant_conv or nn.Identity()
        self.decoder = autoencoder.decoder

    def forward(self, latents: Tensor) -> Tensor:
        """Return the picture [B, 3, H, W], about [-1, 1], of unscaled `latents` [B, 4, h, w]."""
        image: Tensor = self.decoder(self.post_quant_conv(latents.to(self.decoder.conv_in.weight.dtype)))
        return image.float()


class VAE(nn.Module):
    """The VAE from pictures to scaled latents and back. Compiled modules may replace `encoder` and `decoder`."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, scaling_factor: float, downsampling: int) -> None:
        """Take both networks. downsampling: how many pixels, in height and width, a latent stands for."""
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.scaling_factor = scaling_factor
        self.downsampling = downsampling

    @classmethod
    def of(cls, autoencoder: AutoencoderKL) -> Self:
        """Return the VAE whose networks are the halves of `autoencoder`."""
        config = autoencoder.config
        downsampling = 2 ** (len(config["block_out_channels"]) - 1)
        return cls(VAEEncoder(autoencoder), VAEDecoder(autoencoder), config["scaling_factor"], downsampling)

    def encode(self, image: Tensor, noise: Tensor) -> Tensor:
        """Return scaled latents [B, 4, h, w]: the sample of the posterior that the noise selects.

        image: [B, 3, H, W] in [-1, 1]. noise: unit normal, [B, 4, h, w].
        """
        # GroupNorm on the CPU is less exact on tensors that are not contiguous.
        mean, logvar = self.encoder(image.contiguous()).chunk(2, dim=1)
        std = torch.exp(0.5 * logvar.clamp(-30.0, 20.0))
        latents: Tensor = self.scaling_factor * (mean + std * noise)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Return the picture [B, 3, H, W] of scaled `latents` [B, 4, h, w]; values may leave [-1, 1] a little."""
        image: Tensor = self.decoder(latents / self.scaling_factor)
        return image


@torch.inference_mode()
def fit_preview(vae: VAE, image_size: tuple[int, int]) -> tuple[tuple[float, float, float], ...]:
    """Return the linear map from scaled latents to colours in [-1, 1]: a row for each of four channels, then the bias.

    It maps a latent to the mean colour of the pixels that it stands for, and is fitted by least squares on random
    pictures, which are always the same for an `image_size` (height, width). The VAE must be on the CPU.
    """
    height, width = (min(side, PREVIEW_MAX_LATENTS * vae.downsampling) for side in image_size)
    latents, colours = [], []
    for picture in _preview_pictures(height, width):
        mean, _ = vae.encoder(picture).chunk(2, dim=1)
        latents.append(vae.scaling_factor * mean)
        colours.append(functional.avg_pool2d(picture, vae.downsampling))
    inputs = torch.cat(latents).double().movedim(1, -1).flatten(0, 2)
    inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)
    targets = torch.cat(colours).double().movedim(1, -1).flatten(0, 2)
    rows = torch.linalg.lstsq(inputs, targets).solution.tolist()
    return tuple((round(red, 6), round(green, 6), round(blue, 6)) for red, green, blue in rows)


def _preview_pictures(height: int, width: int) -> Iterator[Tensor]:
    """Yield pictures [1, 3, H, W] in [-1, 1] like shop photos: flat patches of any colour on light backgrounds."""
    generator = torch.Generator().manual_seed(0)
    for number in range(PREVIEW_PICTURES):
        cells = PREVIEW_CELLS[number % len(PREVIEW_CELLS)]
        field = 0.2 + 0.8 * torch.rand(1, 3, cells, cells, generator=generator)
        picture = functional.interpolate(field, size=(height, width), mode="bilinear")
        for _ in range(PREVIEW_PATCHES):
            top, bottom = sorted(torch.randint(height + 1, (2,), generator=generator).tolist())
            left, right = sorted(torch.randint(width + 1, (2,), generator=generator).tolist())
            picture[..., top:bottom, left:right] = torch.rand(1, 3, 1, 1, generator=generator) * 2 - 1
        yield picture
