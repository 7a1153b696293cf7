"""What was read in photos, kept by the photo. The parser's replicas have one of these each."""

import asyncio
import contextvars
import hashlib
from collections.abc import Awaitable, Callable

import numpy as np

from fashion_rag.person.reading import PhotoReading
from fashion_rag.request import EditRequest
from serve import metrics
from serve.batching import Cache, Outcome, in_batch


class Readings:
    """Has each photo read once, however many requests come with it, one after the other or at the same time.

    `kept` has the readings within its bound in bytes. `num_read` counts the photos that were read.
    """

    def __init__(self, read: Callable[[EditRequest], Awaitable[Outcome[PhotoReading]]]) -> None:
        """Take what reads the photo of a request, in a batch."""
        self.kept: Cache[PhotoReading] = Cache(0, _num_bytes)
        self.num_read = 0
        self._read = read
        self._under_way: dict[str, asyncio.Task[Outcome[PhotoReading]]] = {}

    async def of(self, request: EditRequest) -> PhotoReading:
        """Return what is seen in the photo of the request. Raises what the reading raises.

        A request that is cancelled leaves the reading to the others that wait for it.
        """
        digest = await asyncio.to_thread(photo_digest, request)
        if (reading := self.kept.get(digest)) is not None:
            metrics.photo_lookups().inc(tags={"outcome": "hit"})
            return reading
        under_way = self._under_way.get(digest)
        metrics.photo_lookups().inc(tags={"outcome": "joined" if under_way else "miss"})
        if under_way is None:
            # In a context of its own, because it is not for the first of its requests alone.
            under_way = asyncio.create_task(self._read_and_keep(digest, request), context=contextvars.Context())
            self._under_way[digest] = under_way
        return await in_batch("read", asyncio.shield, under_way)

    async def _read_and_keep(self, digest: str, request: EditRequest) -> Outcome[PhotoReading]:
        try:
            outcome = await self._read(request)
            if not isinstance(outcome.value, Exception):
                self.num_read += 1
                self.kept.put(digest, outcome.value)
            return outcome
        finally:
            del self._under_way[digest]


def photo_digest(request: EditRequest) -> str:
    """Return a SHA-256 of the photo's pixels and the profile of their colours."""
    digest = hashlib.sha256(f"{request.image.shape} {request.icc_profile!r}".encode())
    digest.update(np.ascontiguousarray(request.image).data)
    return digest.hexdigest()


def _num_bytes(reading: PhotoReading) -> int:
    return reading.label_map.nbytes + (0 if reading.keypoints is None else reading.keypoints.nbytes)
