"""The deployment that reads photos: where the person is, what is worn where, and the pose.

The denoiser has it find what a caller left out of an edit, and the ingress shows what it sees. What was read in a photo
is kept, so the photo of a shopper who tries ten garments on is read once. With a bundle that has no human parser, the
deployment loads no networks, and refuses its calls.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from ray import serve as ray_serve

from export.runtime import Runtime
from fashion_rag.artifacts import MANIFEST_FILE, wait_for
from fashion_rag.data.colour import to_srgb
from fashion_rag.errors import InvalidRequest
from fashion_rag.manifest import Manifest
from fashion_rag.person.completion import CategoryChoice, find
from fashion_rag.person.reading import PhotoReading, read_photos
from fashion_rag.request import EditRequest
from serve import metrics, tracing
from serve.batching import Outcome, run_batch, set_max_batch
from serve.config import ParserSettings
from serve.logs import leave_out_expected_errors
from serve.memory import give_back_large_blocks
from serve.messages import FoundInPhoto
from serve.readings import Readings
from serve.tracing import Kind

# Returns what is seen in each photo, which is RGB and in sRGB.
ReadPhotos = Callable[[Sequence[Image.Image]], list[PhotoReading]]


@ray_serve.deployment
class Parser:
    """Reads photos, several in one call of the networks, and each photo once."""

    def __init__(self, runtime: Runtime) -> None:
        leave_out_expected_errors()
        give_back_large_blocks()
        wait_for(runtime.missing_bundle, runtime.wait_s)
        self.shape = Manifest.read(Path(runtime.bundle) / MANIFEST_FILE).image_size
        self.read_photos = _load(runtime, self.shape) if runtime.has_parser else None
        self.readings = Readings(self._read_one)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take on new ParserSettings."""
        settings = ParserSettings.from_args(user_config)
        set_max_batch(settings.max_batch, self._read)
        self.readings.kept.max_bytes = settings.cache_bytes

    async def ping(self) -> None:
        """Return when the replica answers."""

    async def num_read(self) -> int:
        """Return how many photos were read since the replica started."""
        return self.readings.num_read

    async def find(self, request: EditRequest, choice: CategoryChoice) -> FoundInPhoto:
        """Return what completes the request, as it follows from its photo.

        Raises InvalidRequest if the photo does not show what it must, and if the bundle has no human parser.
        """
        with metrics.timed("parse") as timings_s:
            reading = await self.readings.of(request)
            with tracing.span("find mask and window", Kind.IMAGE):
                found = await asyncio.to_thread(find, request, choice, self.shape, reading)
        return FoundInPhoto(found, timings_s)

    async def read(self, request: EditRequest) -> PhotoReading:
        """Return what is seen in the photo of the request. Raises InvalidRequest if the bundle has no human parser."""
        with metrics.timed("parse"):
            return await self.readings.of(request)

    async def _read_one(self, request: EditRequest) -> Outcome[PhotoReading]:
        if self.read_photos is None:
            rule = "cannot be read: the bundle that is served has no human parser; give a mask"
            raise InvalidRequest("image", "a photo", rule, "unsupported_value")
        outcome: Outcome[PhotoReading] = await self._read(request)
        return outcome

    @ray_serve.batch(batch_wait_timeout_s=0)
    async def _read(self, requests: list[EditRequest]) -> list[Outcome[PhotoReading]]:
        return await run_batch(self._read_all, requests)

    def _read_all(self, requests: Sequence[EditRequest]) -> list[PhotoReading]:
        assert self.read_photos is not None
        return self.read_photos([to_srgb(Image.fromarray(request.image), request.icc_profile) for request in requests])


def _load(runtime: Runtime, shape: tuple[int, int]) -> ReadPhotos:
    """Return what reads photos with the networks of the bundle.

    shape: the (height, width) of the model's pictures.
    """
    # Imported here, because a replica without networks does without PyTorch.
    import torch

    torch.set_num_threads(runtime.num_threads)
    parts = runtime.open()
    pose_estimator = parts.load_pose_estimator() if parts.bundle.has_pose_estimator else None
    read = partial(read_photos, parts.load_parser(), pose_estimator, shape=shape)
    decorated: ReadPhotos = torch.inference_mode()(read)
    return decorated
