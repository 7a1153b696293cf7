"""The deployment that reads photos: where the person is, what is worn where, and the pose.

The denoiser has it find what a caller left out of an edit, and the ingress shows what it sees. What was read in a photo
is kept, so the photo of a shopper who tries ten garments on is read once. With a bundle that has no human parser, the
deployment loads no networks, and refuses its calls.
"""

import asyncio
import contextvars
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
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
from serve import metrics
from serve.batching import Cache, checked, outcomes_of, set_max_batch
from serve.config import ParserSettings
from serve.logs import leave_out_expected_errors
from serve.memory import give_back_large_blocks
from serve.messages import FoundInPhoto

# Returns what is seen in each photo, which is RGB and in sRGB.
ReadPhotos = Callable[[Sequence[Image.Image]], list[PhotoReading]]


def load_reader(runtime: Runtime, shape: tuple[int, int]) -> ReadPhotos | None:
    """Return what reads photos with the networks of the bundle, or None if it has no human parser.

    shape: the (height, width) of the model's pictures.
    """
    if not runtime.has_parser:
        return None
    # Imported here, because a replica that has no networks does without PyTorch.
    import torch

    torch.set_num_threads(runtime.num_threads)
    parts = runtime.open()
    parser, pose_estimator = parts.load_parser(), parts.load_pose_estimator()
    return torch.inference_mode()(partial(read_photos, parser, pose_estimator, shape=shape))


@ray_serve.deployment
class Parser:
    """Reads photos, several in one call of the networks, and each photo once."""

    def __init__(self, runtime: Runtime) -> None:
        leave_out_expected_errors()
        give_back_large_blocks()
        wait_for(runtime.missing_bundle, runtime.wait_s)
        self.shape = Manifest.read(Path(runtime.bundle) / MANIFEST_FILE).image_size
        self.read_photos = load_reader(runtime, self.shape)
        self.readings: Cache[PhotoReading] = Cache(0, _num_bytes)
        self._under_way: dict[str, asyncio.Task[PhotoReading]] = {}

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take on new ParserSettings."""
        settings = ParserSettings.from_args(user_config)
        set_max_batch(settings.max_batch, self._read)
        self.readings.max_bytes = settings.cache_bytes

    async def ping(self) -> None:
        """Return when the replica answers."""

    async def find(self, request: EditRequest, choice: CategoryChoice) -> FoundInPhoto:
        """Return what completes the request, as it follows from its photo.

        Raises InvalidRequest if the photo does not show what it must, and if the bundle has no human parser.
        """
        with metrics.timed("parse") as timings_s:
            reading = await self._reading(request)
            found = await asyncio.to_thread(find, request, choice, self.shape, reading)
        return FoundInPhoto(found, timings_s)

    async def read(self, request: EditRequest) -> PhotoReading:
        """Return what is seen in the photo of the request. Raises InvalidRequest if the bundle has no human parser."""
        with metrics.timed("parse"):
            return await self._reading(request)

    async def _reading(self, request: EditRequest) -> PhotoReading:
        """Return what is seen in the photo: from the cache, or from a call of the networks, which requests share."""
        if self.read_photos is None:
            rule = "cannot be read: the bundle that is served has no human parser; give a mask"
            raise InvalidRequest("image", "a photo", rule, "unsupported_value")
        digest = await asyncio.to_thread(photo_digest, request)
        if (kept := self.readings.get(digest)) is not None:
            metrics.photo_lookups().inc(tags={"outcome": "hit"})
            return kept
        reading = self._under_way.get(digest)
        metrics.photo_lookups().inc(tags={"outcome": "joined" if reading else "miss"})
        if reading is None:
            # In a context of its own, so that the end of the first request does not end it for the others.
            reading = asyncio.create_task(self._read_and_keep(digest, request), context=contextvars.Context())
            self._under_way[digest] = reading
        return await asyncio.shield(reading)

    async def _read_and_keep(self, digest: str, request: EditRequest) -> PhotoReading:
        try:
            reading: PhotoReading = checked(await self._read(request))
            self.readings.put(digest, reading)
            return reading
        finally:
            del self._under_way[digest]

    @ray_serve.batch(batch_wait_timeout_s=0)
    async def _read(self, requests: list[EditRequest]) -> list[PhotoReading | Exception]:
        return await asyncio.to_thread(outcomes_of, self._read_all, requests)

    def _read_all(self, requests: Sequence[EditRequest]) -> list[PhotoReading]:
        assert self.read_photos is not None
        photos = [to_srgb(Image.fromarray(request.image), request.icc_profile) for request in requests]
        return self.read_photos(photos)


def photo_digest(request: EditRequest) -> str:
    """Return a SHA-256 of the photo's pixels and the profile of their colours."""
    digest = hashlib.sha256(f"{request.image.shape} {request.icc_profile!r}".encode())
    digest.update(np.ascontiguousarray(request.image).data)
    return digest.hexdigest()


def _num_bytes(reading: PhotoReading) -> int:
    return reading.label_map.nbytes + (0 if reading.keypoints is None else reading.keypoints.nbytes)
