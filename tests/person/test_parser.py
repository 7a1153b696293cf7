import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import SegformerImageProcessor

from fashion_rag.person.labels import CLASSES
from fashion_rag.person.parser import HumanParser, ParserNetwork
from fashion_rag.person.pixels import InputPicture
from tests.person import toy

INPUT = InputPicture(toy.PARSER_SIZE, toy.MEAN, toy.STD)


@pytest.fixture(scope="module")
def parser() -> HumanParser:
    """Return a small parser with random weights."""
    torch.manual_seed(0)
    return HumanParser(ParserNetwork(toy.make_segformer()), INPUT, tuple(range(18))).requires_grad_(False)


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    """Return a smooth random picture."""
    levels = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)


class Told(nn.Module):
    """A network whose logits are told, whatever it sees."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, pixels: Tensor) -> Tensor:
        return self.logits.expand(len(pixels), -1, -1, -1)


@pytest.mark.parametrize("size", [(64, 48), (100, 75), (40, 30)])
def test_a_picture_of_the_input_s_shape_is_prepared_as_by_transformers(
    parser: HumanParser, size: tuple[int, int]
) -> None:
    processor = SegformerImageProcessor(
        size={"height": 64, "width": 48}, image_mean=toy.MEAN, image_std=toy.STD, resample=Image.Resampling.BICUBIC
    )
    picture = noise(*size)
    expected = processor(picture, return_tensors="pt")["pixel_values"]
    # Two of 255 levels, where the pixels are divided by a standard deviation of at least 0.224.
    torch.testing.assert_close(parser.pixels([picture]), expected, rtol=0, atol=2 / 255 / 0.224)


def test_label_maps_are_those_of_transformers(parser: HumanParser) -> None:
    pictures = [noise(64, 48, seed) for seed in range(3)]
    outputs = parser.network.segformer(pixel_values=parser.pixels(pictures))
    expected = SegformerImageProcessor().post_process_semantic_segmentation(outputs, [(128, 96)] * 3)
    label_maps = parser.label_maps(pictures, (128, 96))
    for label_map, wanted in zip(label_maps, expected, strict=True):
        assert label_map.dtype == np.uint8
        assert len(np.unique(label_map)) > 1
        # Rounding may decide where two classes are equally likely.
        assert (label_map == wanted.numpy()).mean() > 0.999


@pytest.mark.parametrize(
    ("size", "box"), [((64, 48), (0, 0, 64, 48)), ((48, 64), (14, 0, 36, 48)), ((640, 100), (0, 19, 64, 10))]
)
def test_a_picture_keeps_its_shape_and_has_the_mean_colour_around_it(
    parser: HumanParser, size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    assert parser.fitted(size) == box
    top, left, height, width = box
    pixels = parser.pixels([Image.new("RGB", size[::-1], "white")])[0]
    inside = torch.zeros(64, 48, dtype=torch.bool)
    inside[top : top + height, left : left + width] = True
    assert (pixels[:, inside] > 2).all()
    assert (pixels[:, ~inside] == 0).all()


@pytest.mark.parametrize("size", [(90, 120), (200, 50), (64, 48)])
def test_a_label_map_shows_the_picture_without_what_is_around_it(parser: HumanParser, size: tuple[int, int]) -> None:
    coloured = HumanParser(ParserNetwork(toy.make_segformer()), INPUT, tuple(range(18)))
    coloured.network = toy.ColourParser()
    height, width = size
    picture = Image.new("RGB", (width, height), toy.COLOURS["pants"])
    picture.paste(toy.COLOURS["upper_clothes"], (0, 0, width, height // 2))
    (label_map,) = coloured.label_maps([picture], (60, 40))
    assert (label_map[:28] == CLASSES.index("upper_clothes")).all()
    assert (label_map[32:] == CLASSES.index("pants")).all()


def test_probabilities_of_classes_that_mean_the_same_are_added() -> None:
    # Skin is the likeliest single class, but it is likelier that the pixel is some part of an arm.
    logits = torch.tensor([0.1, 0.4, 0.25, 0.25]).log().view(4, 1, 1)
    parser = HumanParser(ParserNetwork(toy.make_segformer()), INPUT, (0, 11, 14, 14))
    parser.network = Told(logits)
    (label_map,) = parser.label_maps([noise(64, 48)], (8, 6))
    assert (label_map == 14).all()


def test_a_picture_does_not_depend_on_those_beside_it(parser: HumanParser) -> None:
    pictures = [noise(64, 48, 1), noise(30, 90, 2), noise(90, 30, 3)]
    together = parser.look_at(pictures)
    for picture, look in zip(pictures, together, strict=True):
        (alone,) = parser.look_at([picture])
        torch.testing.assert_close(look.logits, alone.logits, rtol=1e-4, atol=1e-4)


def test_a_large_picture_is_seen_as_its_reduction_is(parser: HumanParser) -> None:
    large = noise(1280, 960)
    torch.testing.assert_close(
        parser.pixels([large]), parser.pixels([large.reduce(4)]), rtol=0, atol=3 / 255 / min(toy.STD)
    )
