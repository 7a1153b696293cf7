import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig

from fashion_rag.models.adapter import InversionAdapter
from tests.models import toy


def garments(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (50, 40, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_garment_gives_the_same_words_in_any_company(count: int) -> None:
    encoder = toy.garment_encoder(num_pseudo_words=4)
    with torch.inference_mode():
        pixels = encoder.pixels(garments(count))
        words = encoder(pixels)
        alone = torch.cat([encoder(pixels[row : row + 1]) for row in range(count)])
    assert words.shape == (count, 4, toy.TEXT_WIDTH)
    torch.testing.assert_close(words, alone)


def test_the_words_leave_out_the_vision_tower_s_own_layer_norm() -> None:
    encoder = toy.garment_encoder(num_pseudo_words=4)
    pixels = encoder.pixels(garments(1))
    with torch.inference_mode():
        before = encoder(pixels)
        encoder.network.vision_encoder.post_layernorm.weight.mul_(3)
        assert torch.equal(encoder(pixels), before)


def test_parameter_names_are_those_of_the_released_file() -> None:
    config = CLIPVisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2)
    adapter = InversionAdapter(config, hidden_dim=20, text_width=8, num_pseudo_words=4)
    shapes = {name: tuple(weight.shape) for name, weight in adapter.state_dict().items()}
    assert len(shapes) == 24
    assert shapes["encoder_layers.0.mlp.fc1.weight"] == (24, 16)
    assert shapes["post_layernorm.weight"] == (16,)
    assert shapes["layers.0.weight"] == (20, 16)
    assert shapes["layers.3.weight"] == (20, 20)
    assert shapes["layers.6.weight"] == (4 * 8, 20)


def test_full_size_has_the_released_number_of_parameters() -> None:
    config = CLIPVisionConfig(hidden_size=1280, intermediate_size=5120, num_attention_heads=16)
    with torch.device("meta"):
        adapter = InversionAdapter(config, hidden_dim=5120, text_width=1024, num_pseudo_words=16)
    assert sum(parameter.numel() for parameter in adapter.parameters()) == 136_360_704
