"""What passes from replica to replica. Each stage adds its seconds to `timings_s` and hands on what came with it.

What passes through the ingress is made of NumPy arrays, so that the ingress does without PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from ray import ObjectRef

from fashion_rag.person.completion import CategoryChoice, Found
from fashion_rag.request import EditRequest, Shortcuts
from serve.http.replies import GarmentUsed

if TYPE_CHECKING:
    from torch import Tensor

    from fashion_rag.pipeline import Conditioning, Person

Timings = dict[str, float]


@dataclass(frozen=True)
class Job:
    """An edit as the denoiser needs it. The request itself, pictures included, lies once in shared memory.

    choice: the category; None if it is to be chosen. is_read: whether the parser is to read the photo.
    found: what completes the request; None if other stages are to find it.
    deadline_unix_s: the edit's deadline in Unix time. after_s: how long edits have lately taken from their last step to
    the encoded answer. preview_steps: after which steps, counted from 1, the caller wants a preview.
    """

    request: ObjectRef[EditRequest]
    choice: CategoryChoice | None
    is_read: bool
    found: Found | None
    num_inference_steps: int
    guidance_scale: float
    shortcuts: Shortcuts
    deadline_unix_s: float
    after_s: float
    preview_steps: frozenset[int]


@dataclass(frozen=True)
class Chosen:
    """The category that was chosen for an edit."""

    choice: CategoryChoice
    timings_s: Timings


@dataclass(frozen=True, eq=False)
class FoundInPhoto:
    """What completes a request, as it follows from its photo."""

    found: Found
    timings_s: Timings


@dataclass(frozen=True, eq=False)
class RetrievedGarments:
    """The garments of an edit, best first, all of one version of the catalogue.

    pseudo_words: of each garment its pseudo-words [P, D], or the picture file from which they are to be made where the
    catalogue has none.
    """

    garments: tuple[GarmentUsed, ...]
    pseudo_words: tuple[Tensor | bytes, ...]
    version: str
    timings_s: Timings


@dataclass(frozen=True, eq=False)
class Conditioned:
    """The prompt embeddings of an edit, the garments in them, and the version of the catalogue that has these."""

    conditioning: Conditioning
    garments: tuple[GarmentUsed, ...]
    version: str
    timings_s: Timings


@dataclass(frozen=True, eq=False)
class EncodedPerson:
    """The person of an edit, and the initial latents [1, 4, h, w] that were drawn with the person's noise."""

    person: Person
    latents: Tensor
    timings_s: Timings


@dataclass(frozen=True)
class Admitted:
    """The denoiser's first message about an edit: it has taken the edit on.

    `calls.stream` needs such a message before the others, to know that a replica had room for the edit.
    """


@dataclass(frozen=True, eq=False)
class Prepared:
    """The stages before the denoiser have accepted the edit: if it fails from here on, it is not the caller's fault.

    found: what completes the request.
    """

    found: Found


@dataclass(frozen=True, eq=False)
class Partial:
    """A preview after `step` of the edit's `num_steps`: uint8 [h, w, 3] in the latents' size, not yet in the photo."""

    step: int
    num_steps: int
    preview: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Denoised:
    """The denoiser's last message about an edit: scaled latents, float32 [1, 4, h, w]."""

    latents: NDArray[np.float32]
    garments: tuple[GarmentUsed, ...]
    timings_s: Timings


@dataclass(frozen=True, eq=False)
class Decoded:
    """The picture that latents stand for: uint8 [H, W, 3] in the model's size, not yet in the photo."""

    picture: NDArray[np.uint8]
    timings_s: Timings
