"""What passes from replica to replica. Each stage adds its seconds to `timings_s` and hands on what came with it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fashion_rag.pipeline import Conditioning, Person
from serve.schemas import GarmentUsed

Timings = dict[str, float]


@dataclass(frozen=True)
class Retrieved:
    """Garments, best first, and their pictures."""

    garments: tuple[GarmentUsed, ...]
    pictures: list[Image.Image]
    timings_s: Timings


@dataclass(frozen=True)
class Conditioned:
    """Prompt embeddings, and the garments in them."""

    conditioning: Conditioning
    garments: tuple[GarmentUsed, ...]
    timings_s: Timings


@dataclass(frozen=True)
class Encoded:
    """The person, and the initial latents [1, 4, h, w] that were drawn with the person's noise."""

    person: Person
    latents: Tensor
    timings_s: Timings


@dataclass(frozen=True)
class Denoised:
    """Scaled latents [1, 4, h, w]."""

    latents: Tensor
    garments: tuple[GarmentUsed, ...]
    timings_s: Timings


@dataclass(frozen=True)
class Edited:
    """The edited photo, uint8 [H, W, 3] in the request's size."""

    image: NDArray[np.uint8]
    garments: tuple[GarmentUsed, ...]
    timings_s: Timings
