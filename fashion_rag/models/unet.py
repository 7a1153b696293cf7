"""The inpainting UNet with 27 input channels, and how its input is put together.

From one step to the next, most of what the UNet computes hardly changes (DeepCache, arXiv 2312.00858). So there are two
more ways to call it, which belong together: `deep` runs the whole UNet and also returns the features that enter its
last layers, and `shallow` runs only the outermost layers, on the features of an earlier `deep` call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

LATENT_CHANNELS = 4
POSE_CHANNELS = 18
# Latents, mask, masked-image latents, pose: 4 + 1 + 4 + 18.
IN_CHANNELS = LATENT_CHANNELS + 1 + LATENT_CHANNELS + POSE_CHANNELS
# How many layers of the last block `shallow` runs. It also runs the first layers, whose skip connections lead to them.
SHALLOW_LAYERS = 2


def feature_channels(config: Mapping[str, Any]) -> int:
    """Return the number C of feature channels of a UNet with this configuration.

    The features leave the layer before the shallow ones. That layer is in the last block, unless all layers of the last
    block are shallow; then it is in the block before.
    """
    layers: Any = config.get("layers_per_block", 2)
    widths: list[int] = config["block_out_channels"]
    num_layers = layers if isinstance(layers, int) else layers[0]
    last_block_is_shallow = num_layers + 1 == SHALLOW_LAYERS
    return widths[1] if last_block_is_shallow and len(widths) > 1 else widths[0]


class DeepUNet(Protocol):
    """A UNet, in PyTorch or compiled, that can be called in all three ways. Shapes are those of `UNet`."""

    def __call__(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
        """Return the predicted noise."""

    def deep(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Return the predicted noise, and the features for `shallow`."""

    def shallow(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor, features: Tensor) -> Tensor:
        """Return nearly the predicted noise, from the features of an earlier step of the same edit."""


class UNet(nn.Module):
    """The UNet of diffusers, called with plain tensors and returning plain tensors, like the compiled UNets."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
        """Return the predicted noise, float32 [B, 4, h, w].

        sample: [B, 27, h, w]. t: timesteps [B], int64. prompt_embeds: [B, 77, D].
        """
        dtype = self.unet.conv_in.weight.dtype
        noise_pred: Tensor = self.unet(sample.to(dtype), t, encoder_hidden_states=prompt_embeds.to(dtype)).sample
        return noise_pred.float()

    def deep(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Return the predicted noise, and the features that enter the last SHALLOW_LAYERS layers.

        Both are float32; the features are [B, C, h, w].
        """
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
        """Return the noise that the outermost layers predict from the `features` [B, C, h, w] of an earlier step."""
        return _shallow(self.unet, sample, t, prompt_embeds, features)


class WholeUNet(nn.Module):
    """A network that computes `UNet.deep` with a single output, so that it can be compiled."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
        """Return the noise and then the features, [B, 4 + C, h, w]. The inputs are those of `UNet`."""
        return torch.cat(self.unet.deep(sample, t, prompt_embeds), dim=1)


class ShallowUNet(nn.Module):
    """A network that computes `UNet.shallow`, and holds the weights of the outermost layers alone."""

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
        """Return the noise. The inputs are those of `UNet.shallow`."""
        return _shallow(self.unet, sample, t, prompt_embeds, features)


@dataclass(frozen=True, eq=False)
class SplitUNet:
    """A DeepUNet made of two networks, which are called like a WholeUNet and a ShallowUNet."""

    whole: nn.Module
    outermost: nn.Module

    def __call__(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
        """Return the predicted noise."""
        return self.deep(sample, t, prompt_embeds)[0]

    def deep(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Return the predicted noise, and the features for `shallow`."""
        output = self.whole(sample, t, prompt_embeds)
        return output[:, :LATENT_CHANNELS], output[:, LATENT_CHANNELS:]

    def shallow(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor, features: Tensor) -> Tensor:
        """Return nearly the predicted noise, from the features of an earlier step of the same edit."""
        noise_pred: Tensor = self.outermost(sample, t, prompt_embeds, features)
        return noise_pred


def _enter(unet: Any, sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the hidden states after the first convolution, the timestep's embedding, and the text."""
    dtype = unet.conv_in.weight.dtype
    temb = unet.time_embedding(unet.time_proj(t).to(dtype))
    return unet.conv_in(sample.to(dtype)), temb, prompt_embeds.to(dtype)


def _shallow(unet: Any, sample: Tensor, t: Tensor, prompt_embeds: Tensor, features: Tensor) -> Tensor:
    """Return the noise that the outermost layers of `unet` predict from `features`."""
    hidden, temb, text = _enter(unet, sample, t, prompt_embeds)
    skips = [hidden]
    for number in range(SHALLOW_LAYERS - 1):
        hidden = _layer(unet.down_blocks[0], number, hidden, temb, text)
        skips.append(hidden)
    return _leave(unet, features.to(hidden.dtype), skips, temb, text)


def _leave(unet: Any, hidden: Tensor, skips: list[Tensor], temb: Tensor, text: Tensor) -> Tensor:
    """Return the predicted noise, computed from the features `hidden` by the last layers.

    skips: the hidden states that skip connections lead to these layers, the last first.
    """
    for number in range(-SHALLOW_LAYERS, 0):
        hidden = _layer(unet.up_blocks[-1], number, torch.cat([hidden, skips.pop()], dim=1), temb, text)
    noise_pred: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
    return noise_pred.float()


def _block(block: Any, hidden: Tensor, temb: Tensor, text: Tensor, **arguments: Any) -> Any:
    """Return what a block of diffusers' UNet makes of `hidden`, with attention to the text where it has any."""
    if getattr(block, "has_cross_attention", False):
        arguments["encoder_hidden_states"] = text
    return block(hidden, temb=temb, **arguments)


def _layer(block: Any, number: int, hidden: Tensor, temb: Tensor, text: Tensor) -> Tensor:
    """Return what one layer of a block makes of `hidden`: a residual block, and attention where it has any."""
    hidden = block.resnets[number](hidden, temb)
    if getattr(block, "has_cross_attention", False):
        hidden = block.attentions[number](hidden, encoder_hidden_states=text, return_dict=False)[0]
    return hidden


def _part(block: Any, layers: slice) -> nn.Module:
    """Return a module of these layers of a block, which `_layer` can run."""
    part: Any = nn.Module()
    part.has_cross_attention = getattr(block, "has_cross_attention", False)
    part.resnets = block.resnets[layers]
    if part.has_cross_attention:
        part.attentions = block.attentions[layers]
    return part  # type: ignore[no-any-return]


def unet_input(latents: Tensor, mask: Tensor, masked_image_latents: Tensor, pose_map: Tensor) -> Tensor:
    """Return the UNet's input [B, 27, h, w]: 4 channels of latents, mask 1, masked-image latents 4, pose 18."""
    return torch.cat([latents, mask, masked_image_latents, pose_map], dim=1)


def widen_conv_in(unet: UNet2DConditionModel, in_channels: int = IN_CHANNELS) -> None:
    """Replace the first convolution of `unet` by one with `in_channels` inputs.

    The weights of the new channels are zero, so the widened UNet predicts the same until it is trained.
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
