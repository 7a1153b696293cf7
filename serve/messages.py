"""What passes from replica to replica. Each stage adds its seconds to `timings_s` and hands on what came with it.

What passes through the ingress is made of NumPy arrays, so that it does without PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from ray import ObjectRef

from fashion_rag.request import EditRequest, Shortcuts
from serve.schemas import GarmentUsed

if TYPE_CHECKING:
    from torch import Tensor

    from fashion_rag.pipeline import Conditioning, Person

Timings = dict[str, float]


@dataclass(frozen=True)
class Job:
    """An edit as the denoiser needs it. The request itself, pictures included, lies once in shared memory.

    deadline: Unix time in seconds. preview_steps: after which steps, counted from 1, the caller wants a preview.
    """

    request_id: str
    request: ObjectRef[EditRequest]
    num_inference_steps: int
    guidance_scale: float
    shortcuts: Shortcuts
    deadline: float
    preview_steps: frozenset[int]


@dataclass(frozen=True)
class Retrieved:
    """Garments, best first, all of one version of the catalogue; of each its pseudo-words [P, D], or the picture file
    that they are to be made of where the catalogue has none.
    """

    garments: tuple[GarmentUsed, ...]
    pseudo_words: tuple[Tensor | bytes, ...]
    version: str
    timings_s: Timings


@dataclass(frozen=True)
class Conditioned:
    """Prompt embeddings, the garments in them, and the version of the catalogue that has these."""

    conditioning: Conditioning
    garments: tuple[GarmentUsed, ...]
    version: str
    timings_s: Timings


@dataclass(frozen=True)
class Encoded:
    """The person, and the initial latents [1, 4, h, w] that were drawn with the person's noise.

    digest: of the request, where it was asked for.
    """

    person: Person
    latents: Tensor
    digest: str | None
    timings_s: Timings


@dataclass(frozen=True)
class Admitted:
    """The denoiser has taken the edit on."""


@dataclass(frozen=True)
class Prepared:
    """The stages before the denoiser have accepted the edit: from here on, it is not the caller's fault if it fails."""


@dataclass(frozen=True)
class Partial:
    """How the edit looks after `step` of its `num_steps`: uint8 [h, w, 3] in the latents' size, not yet pasted."""

    step: int
    num_steps: int
    preview: NDArray[np.uint8]


@dataclass(frozen=True)
class Denoised:
    """Scaled latents, float32 [1, 4, h, w]."""

    latents: NDArray[np.float32]
    garments: tuple[GarmentUsed, ...]
    timings_s: Timings


@dataclass(frozen=True)
class Edited:
    """The edited photo, uint8 [H, W, 3] in the request's size."""

    image: NDArray[np.uint8]
    garments: tuple[GarmentUsed, ...]
    timings_s: Timings
