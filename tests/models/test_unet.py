from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from fashion_rag.models.unet import (
    IN_CHANNELS,
    ShallowUNet,
    SplitUNet,
    UNet,
    WholeUNet,
    feature_channels,
    unet_input,
    widen_conv_in,
)
from tests.models import toy


def test_channels_stand_in_the_order_of_the_released_model() -> None:
    parts = [torch.full((2, channels, 3, 2), float(number)) for number, channels in enumerate((4, 1, 4, 18))]
    sample = unet_input(*parts)
    assert sample.shape == (2, IN_CHANNELS, 3, 2)
    assert sample[1, :, 2, 1].tolist() == [0.0] * 4 + [1.0] + [2.0] * 4 + [3.0] * 18


def test_a_widened_unet_predicts_what_the_narrow_one_did() -> None:
    unet = toy.diffusers_unet(in_channels=9)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, IN_CHANNELS, 8, 8, generator=generator)
    prompt_embeds = torch.randn(2, 77, toy.TEXT_WIDTH, generator=generator)
    t = torch.tensor([981, 1])
    with torch.inference_mode():
        before = UNet(unet)(sample[:, :9], t, prompt_embeds)
    widen_conv_in(unet)
    with torch.inference_mode():
        after = UNet(unet)(sample, t, prompt_embeds)
    assert unet.config.in_channels == IN_CHANNELS
    torch.testing.assert_close(after, before)


def test_half_weights_still_give_float32() -> None:
    unet = UNet(toy.diffusers_unet(in_channels=IN_CHANNELS))
    arguments = torch.zeros(1, IN_CHANNELS, 8, 8), torch.tensor([1]), torch.zeros(1, 77, toy.TEXT_WIDTH)
    with torch.inference_mode():
        full = unet(*arguments)
        half = unet.to(torch.bfloat16)(*arguments)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0.05, rtol=0)


# UNets like that of the demo, like that of Stable Diffusion, and with blocks that do not attend to the text.
KINDS: dict[str, dict[str, Any]] = {
    "two levels": {"block_out_channels": (8, 16), "layers_per_block": 1},
    "three levels": {"block_out_channels": (8, 16, 24), "layers_per_block": 2},
    "no text outside": {
        "block_out_channels": (8, 16),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
}


def unet_of(kind: str) -> UNet:
    torch.manual_seed(0)
    levels = len(KINDS[kind]["block_out_channels"])
    options: dict[str, Any] = {
        "down_block_types": ("CrossAttnDownBlock2D",) * levels,
        "up_block_types": ("CrossAttnUpBlock2D",) * levels,
    }
    options |= {"cross_attention_dim": toy.TEXT_WIDTH, "attention_head_dim": 4, "norm_num_groups": 4} | KINDS[kind]
    return UNet(UNet2DConditionModel(sample_size=8, in_channels=IN_CHANNELS, **options)).eval()


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(3, IN_CHANNELS, 12, 8, generator=generator)
    return sample, torch.tensor([901, 20, 1]), torch.randn(3, 77, toy.TEXT_WIDTH, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_the_noise_is_the_same_with_features_and_from_them_to_the_bit(kind: str) -> None:
    unet = unet_of(kind)
    expected = unet(*inputs())
    noise_pred, features = unet.deep(*inputs())
    assert torch.equal(noise_pred, expected)
    assert torch.equal(unet.shallow(*inputs(), features), expected)
    assert features.shape == (3, feature_channels(unet.unet.config), 12, 8)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_features_of_another_step_change_the_noise_and_what_is_seen_now_does_too(kind: str) -> None:
    unet = unet_of(kind)
    _, features = unet.deep(*inputs())
    later = unet.shallow(*inputs(1), features)
    assert not torch.allclose(later, unet(*inputs(1)))
    assert not torch.allclose(later, unet.shallow(*inputs(2), features))


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_two_networks_make_a_whole_unet_and_the_outer_one_is_small(kind: str) -> None:
    unet = unet_of(kind)
    outermost = ShallowUNet(unet)
    split = SplitUNet(WholeUNet(unet), outermost)
    assert torch.equal(split(*inputs()), unet(*inputs()))
    for mine, other in zip(split.deep(*inputs()), unet.deep(*inputs()), strict=True):
        assert torch.equal(mine, other)
    features = unet.deep(*inputs())[1]
    assert torch.equal(split.shallow(*inputs(1), features), unet.shallow(*inputs(1), features))
    num_weights, num_all = (sum(each.numel() for each in module.parameters()) for module in (outermost, unet))
    assert num_weights < num_all / 2
