"""The human parser: a SegFormer that finds out, for each pixel of a picture, which part of a person it shows.

`reading.py` calls it. Sizes are (height, width).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from fashion_rag.person.labels import CLASSES
from fashion_rag.person.pixels import InputPicture, normalised

if TYPE_CHECKING:
    from transformers import SegformerForSemanticSegmentation

# A large picture is first reduced, by averaging, to about so many times the size that it is then resized to.
REDUCING_GAP = 3.0


class Letterbox(NamedTuple):
    """The part of the network's input that a picture fills, in pixels; what is around it has the mean colour."""

    top: int
    left: int
    height: int
    width: int


class ParserNetwork(nn.Module):
    """A SegFormer that is called with plain tensors and returns plain tensors, like the compiled networks."""

    def __init__(self, segformer: SegformerForSemanticSegmentation) -> None:
        super().__init__()
        self.segformer = segformer

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits of the network's own classes, float32 [B, C, h, w], for normalised pixels [B, 3, H, W].

        The pixels may be on any device.
        """
        logits: Tensor = self.segformer(pixel_values=pixels.to(self.segformer.device, self.segformer.dtype)).logits
        return logits.float()


@dataclass(frozen=True, eq=False)
class Look:
    """What the network says about one picture.

    logits: [C, h, w] of the whole input. letterbox: the part of the input that shows the picture. input_size: the
    size of the input. classes: the class of Dress Code for each class of the network.
    """

    logits: Tensor
    letterbox: Letterbox
    input_size: tuple[int, int]
    classes: Tensor

    def label_map(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return Dress Code's classes in the picture, uint8 [height, width] at `size`.

        The logits are interpolated first. Of several classes of the network that are one class of Dress Code, the
        probabilities are added: a pixel that is nearly as likely to be a hand as it is to be an arm is an arm.
        """
        logits = functional.grid_sample(
            self.logits[None], self._positions(size), mode="bilinear", padding_mode="border", align_corners=False
        )[0]
        probabilities = torch.zeros(len(CLASSES), *size).index_add_(0, self.classes, logits.softmax(0))
        label_map: NDArray[np.uint8] = probabilities.argmax(0).to(torch.uint8).numpy()
        return label_map

    def _positions(self, size: tuple[int, int]) -> Tensor:
        """Return where in the logits the pixels of the picture at `size` lie, [1, height, width, 2], (x, y) in -1 to 1.

        With this, `grid_sample` does what `interpolate` would do with the whole input and a cut.
        """
        axes = []
        starts, lengths = self.letterbox[:2], self.letterbox[2:]
        for start, length, num_pixels, whole in zip(starts, lengths, size, self.input_size, strict=True):
            middles = (torch.arange(num_pixels) + 0.5) / num_pixels
            axes.append((start + middles * length) / whole * 2 - 1)
        rows, columns = torch.meshgrid(*axes, indexing="ij")
        return torch.stack([columns, rows], dim=-1)[None]


class HumanParser(nn.Module):
    """The finder of the parts of persons in pictures. A compiled module may replace `network`."""

    def __init__(self, network: nn.Module, input_picture: InputPicture, classes: Sequence[int]) -> None:
        """Take the network, the form of its input, and the class of Dress Code for each of its classes."""
        super().__init__()
        self.network = network
        self.input_picture = input_picture
        self.classes = tuple(classes)

    def fitted(self, size: tuple[int, int]) -> Letterbox:
        """Return the part of the input that a picture of `size` fills, with its shape kept."""
        return letterbox(size, self.input_picture.size)

    def pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return the input of the network for RGB pictures of any size, float32 [B, 3, h, w], on the CPU."""
        rows = []
        for picture in pictures:
            box = self.fitted((picture.height, picture.width))
            fitted = picture.resize((box.width, box.height), Image.Resampling.BICUBIC, reducing_gap=REDUCING_GAP)
            # After the pixels are normalised, the mean colour is 0.
            row = torch.zeros(3, *self.input_picture.size)
            inside = normalised(fitted, self.input_picture)
            row[:, box.top : box.top + box.height, box.left : box.left + box.width] = inside
            rows.append(row)
        return torch.stack(rows)

    def look_at(self, pictures: Sequence[Image.Image]) -> list[Look]:
        """Return what the network says about each of B >= 1 RGB pictures of any size, which it sees all at once."""
        logits = self.network(self.pixels(pictures)).cpu()
        looks = []
        for row, picture in zip(logits, pictures, strict=True):
            box = self.fitted((picture.height, picture.width))
            looks.append(Look(row, box, self.input_picture.size, torch.tensor(self.classes)))
        return looks

    def label_maps(self, pictures: Sequence[Image.Image], size: tuple[int, int]) -> list[NDArray[np.uint8]]:
        """Return the label maps of B >= 1 RGB pictures, uint8 at `size`, which should have the pictures' shape."""
        return [look.label_map(size) for look in self.look_at(pictures)]


def letterbox(size: tuple[int, int], input_size: tuple[int, int]) -> Letterbox:
    """Return the part of an input of `input_size`, in its middle, that a picture fills with the shape of its `size`."""
    scale = min(input_size[0] / size[0], input_size[1] / size[1])
    height, width = (max(1, round(side * scale)) for side in size)
    return Letterbox((input_size[0] - height) // 2, (input_size[1] - width) // 2, height, width)
