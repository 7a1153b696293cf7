import torch

from fashion_rag.models.unet import IN_CHANNELS, UNet, unet_input, widen_conv_in
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
