"""The inpainting UNet with 27 input channels, and how its input is put together.

From one step to the next, most of what the UNet computes hardly changes (DeepCache, arXiv 2312.00858). So it can also
be called in two ways that belong together: `deep` runs all of it and gives, beside the prediction, the features that
enter its last layers; `shallow` runs only the outermost layers, on features of an earlier call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

LATENT_CHANNELS = 4
POSE_CHANNELS = 18
# latents, mask, masked-image latents, pose: 4 + 1 + 4 + 18.
IN_CHANNELS = LATENT_CHANNELS + 1 + LATENT_CHANNELS + POSE_CHANNELS


# How many layers of the last block `shallow` runs; the first of the network that lead to them by skip connections, too.
SHALLOW_LAYERS = 2


def feature_channels(config: Mapping[str, Any]) -> int:
    """Return the channels C of the features of a UNet with this configuration.

    They are what leaves the layer before: in the last block one like it, or the block before where that is all of it.
    """
    layers: Any = config.get("layers_per_block", 2)
    widths: list[int] = config["block_out_channels"]
    last = layers if isinstance(layers, int) else layers[0]
    return widths[min(1, len(widths) - 1)] if last + 1 == SHALLOW_LAYERS else widths[0]


class DeepUNet(Protocol):
    """A UNet, or a compiled one, that may be called in all three ways; shapes as of `UNet`."""

    def __call__(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
        """Return the predicted noise."""

    def deep(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Return the predicted noise, and features for `shallow`."""

    def shallow(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor, features: Tensor) -> Tensor:
        """Return the predicted noise, nearly, from features of the same edit's earlier step."""


class UNet(nn.Module):
    """Noise prediction as plain tensors: the calls that every compiled UNet answers too."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
        """Return the predicted noise [B, 4, h, w] for `sample` [B, 27, h, w] at timesteps `t` [B] int64, text [B, 77,
        D].
        """
        dtype = self.unet.conv_in.weight.dtype
        noise_pred: Tensor = self.unet(sample.to(dtype), t, encoder_hidden_states=prompt_embeds.to(dtype)).sample
        return noise_pred.float()

    def deep(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same noise, and the features float32 [B, C, h, w] that enter the last `SHALLOW_LAYERS` layers."""
        unet: Any = self.unet
        hidden, temb, text = _enter(unet, sample, t, prompt_embeds)
        skips = [hidden]
        for block in unet.down_blocks:
            hidden, kept = _block(block, hidden, temb, text)
            skips += kept
        hidden = unet.mid_block(hidden, temb, encoder_hidden_states=text)
        for block in unet.up_blocks[:-1]:
            count = len(block.resnets)
            own, skips = tuple(skips[-count:]), skips[:-count]
            hidden = _block(block, hidden, temb, text, res_hidden_states_tuple=own, upsample_size=skips[-1].shape[2:])
        last = unet.up_blocks[-1]
        for number in range(len(last.resnets) - SHALLOW_LAYERS):
            hidden = _layer(last, number, torch.cat([hidden, skips.pop()], dim=1), temb, text)
        return _leave(unet, hidden, skips, temb, text), hidden.float()

    def shallow(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor, features: Tensor) -> Tensor:
        """Return the noise that the outermost layers predict from `features` [B, C, h, w] of an earlier step."""
        return _shallow(self.unet, sample, t, prompt_embeds, features)


class WholeUNet(nn.Module):
    """`UNet.deep` with one output, [B, 4 + C, h, w]: the noise, then the features. What is compiled."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
        """Return the noise and features for inputs as of `UNet`."""
        return torch.cat(self.unet.deep(sample, t, prompt_embeds), dim=1)


class ShallowUNet(nn.Module):
    """`UNet.shallow` with the weights of the outermost layers alone."""

    def __init__(self, whole: UNet) -> None:
        super().__init__()
        unet: Any = whole.unet
        shell: Any = nn.Module()
        for name in ("conv_in", "time_proj", "time_embedding", "conv_norm_out", "conv_act", "conv_out"):
            setattr(shell, name, getattr(unet, name))
        shell.down_blocks = nn.ModuleList([_part(unet.down_blocks[0], slice(SHALLOW_LAYERS - 1))])
        shell.up_blocks = nn.ModuleList([_part(unet.up_blocks[-1], slice(-SHALLOW_LAYERS, None))])
        self.unet = shell

    def forward(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor, features: Tensor) -> Tensor:
        """Return the noise, for inputs as of `UNet.shallow`."""
        return _shallow(self.unet, sample, t, prompt_embeds, features)


@dataclass(frozen=True)
class SplitUNet:
    """A DeepUNet of two networks that are called like a WholeUNet and a ShallowUNet."""

    whole: nn.Module
    outermost: nn.Module

    def __call__(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
        """As `DeepUNet`."""
        return self.deep(sample, t, prompt_embeds)[0]

    def deep(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """As `DeepUNet.deep`."""
        output = self.whole(sample, t, prompt_embeds)
        return output[:, :LATENT_CHANNELS], output[:, LATENT_CHANNELS:]

    def shallow(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor, features: Tensor) -> Tensor:
        """As `DeepUNet.shallow`."""
        noise_pred: Tensor = self.outermost(sample, t, prompt_embeds, features)
        return noise_pred


def _enter(unet: Any, sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the hidden states after the first convolution, the timestep's embedding, and the text."""
    dtype = unet.conv_in.weight.dtype
    temb = unet.time_embedding(unet.time_proj(t).to(dtype))
    return unet.conv_in(sample.to(dtype)), temb, prompt_embeds.to(dtype)


def _shallow(unet: Any, sample: Tensor, t: Tensor, prompt_embeds: Tensor, features: Tensor) -> Tensor:
    hidden, temb, text = _enter(unet, sample, t, prompt_embeds)
    skips = [hidden]
    for number in range(SHALLOW_LAYERS - 1):
        hidden = _layer(unet.down_blocks[0], number, hidden, temb, text)
        skips.append(hidden)
    return _leave(unet, features.to(hidden.dtype), skips, temb, text)


def _leave(unet: Any, hidden: Tensor, skips: list[Tensor], temb: Tensor, text: Tensor) -> Tensor:
    """Return the last layers and the way out, from the features on."""
    for number in range(-SHALLOW_LAYERS, 0):
        hidden = _layer(unet.up_blocks[-1], number, torch.cat([hidden, skips.pop()], dim=1), temb, text)
    noise_pred: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
    return noise_pred.float()


def _block(block: Any, hidden: Tensor, temb: Tensor, text: Tensor, **others: Any) -> Any:
    """Return a whole block of diffusers' UNet, with attention to the text where it has any."""
    attended = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
    return block(hidden, temb=temb, **attended, **others)


def _layer(block: Any, number: int, hidden: Tensor, temb: Tensor, text: Tensor) -> Tensor:
    """Return one layer of a block: a residual block, and attention where it has any."""
    hidden = block.resnets[number](hidden, temb)
    if getattr(block, "has_cross_attention", False):
        hidden = block.attentions[number](hidden, encoder_hidden_states=text, return_dict=False)[0]
    return hidden


def _part(block: Any, layers: slice) -> nn.Module:
    """Return the some layers of a block, as `_layer` takes them."""
    part: Any = nn.Module()
    part.has_cross_attention = getattr(block, "has_cross_attention", False)
    part.resnets = block.resnets[layers]
    if part.has_cross_attention:
        part.attentions = block.attentions[layers]
    return part  # type: ignore[no-any-return]


def unet_input(latents: Tensor, mask: Tensor, masked_image_latents: Tensor, pose_map: Tensor) -> Tensor:
    """Return the UNet's input [B, 27, h, w]: latents 4, mask 1, masked-image latents 4, pose 18, in this order."""
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
