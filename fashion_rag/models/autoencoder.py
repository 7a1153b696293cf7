"""The VAE between pictures and latents. The person-encoding and the decoding stage each use one half.

Also the map from latents to colours that shows an edit while it runs; `bundle` fits it once and keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

# A preview is fitted on so many pictures; so many cells along each side, in turn, colour their backgrounds. Colours are
# local, so that pictures of more latents along a side would only take longer.
PREVIEW_PICTURES = 24
PREVIEW_MAX_LATENTS = 24
PREVIEW_CELLS = (1, 2, 4)
PREVIEW_PATCHES = 6


class VAEEncoder(nn.Module):
    """The half that looks at a picture."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.encoder = autoencoder.encoder
        self.quant_conv = autoencoder.quant_conv or nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Return the posterior moments [B, 8, h, w] (mean, then log variance) of `image` [B, 3, H, W] in [-1, 1]."""
        moments: Tensor = self.quant_conv(self.encoder(image.to(self.encoder.conv_in.weight.dtype)))
        return moments.float()


class VAEDecoder(nn.Module):
    """The half that paints a picture."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv = autoencoder.post_quant_conv or nn.Identity()
        self.decoder = autoencoder.decoder

    def forward(self, latents: Tensor) -> Tensor:
        """Return the picture [B, 3, H, W], about [-1, 1], of unscaled `latents` [B, 4, h, w]."""
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
        """Return the scaled latents [B, 4, h, w]: the posterior's sample that `noise` [B, 4, h, w], unit normal, picks.

        `image` is [B, 3, H, W] in [-1, 1], contiguous NCHW: GroupNorm on the CPU loses digits on other strides.
        """
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
    """Return the linear map from scaled latents to colours in [-1, 1]: a row for each of the four channels, then the
    bias.

    Least squares on random pictures, always the same ones of `image_size` or a part of it: what a latent says of the
    mean colour of the pixels that it stands for. The VAE must be on the CPU.
    """
    height, width = (min(side, PREVIEW_MAX_LATENTS * vae.downsampling) for side in image_size)
    latents, colours = [], []
    for picture in _preview_pictures(height, width):
        mean, _ = vae.encoder(picture).chunk(2, dim=1)
        latents.append(vae.scaling_factor * mean)
        colours.append(functional.avg_pool2d(picture, vae.downsampling))
    known, wanted = (torch.cat(rows).double().movedim(1, -1).flatten(0, 2) for rows in (latents, colours))
    known = torch.cat([known, torch.ones_like(known[:, :1])], dim=1)
    rows = torch.linalg.lstsq(known, wanted).solution.tolist()
    return tuple((round(red, 6), round(green, 6), round(blue, 6)) for red, green, blue in rows)


def _preview_pictures(height: int, width: int) -> Iterator[Tensor]:
    """Pictures [1, 3, H, W] in [-1, 1] in tones as of shop photos: light smooth fields, flat patches of any colour."""
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
