"""The reply to a request for a mask: the mask, and what was read in the photo. The ingress sends it."""

import time

import numpy as np
from pydantic import BaseModel

from fashion_rag.person.completion import Found
from fashion_rag.person.reading import PhotoReading
from fashion_rag.person.regions import regions
from fashion_rag.request import CompleteRequest
from serve.http.replies import WhatWasFound, encode_picture, found_fields, size_text


class PhotoBox(BaseModel):
    """A rectangle in pixels of the photo."""

    top: int
    left: int
    height: int
    width: int


class PhotoRegion(BaseModel):
    """The part of the photo that is of one of Dress Code's classes. `area` is its share of the photo, from 0 to 1."""

    name: str
    area: float
    box: PhotoBox


class MaskReply(WhatWasFound):
    """The reply to a request for a mask, which may be sent with an edit as it is here.

    `b64_json` is the mask as a PNG of the photo's size, white where to repaint. `keypoints` are in pixels of the photo,
    [0, 0] where a point is absent, or null where nobody gave them and the bundle cannot find them. `window` is the part
    of the photo that an edit works on; it may reach beyond the photo.
    """

    created: int
    b64_json: str
    size: str
    keypoints: list[tuple[float, float]] | None
    regions: list[PhotoRegion]
    window: PhotoBox
    num_persons: int


def mask_reply(completed: CompleteRequest, found: Found, reading: PhotoReading) -> MaskReply:
    """Return the reply with the mask of a completed request, and what was read in its photo.

    Encodes the mask, so keep it off an event loop.
    """
    photo_size = (completed.image.shape[0], completed.image.shape[1])
    shown = []
    for region in regions(reading, photo_size):
        top, left, bottom, right = region.box
        box = PhotoBox(top=top, left=left, height=bottom - top, width=right - left)
        shown.append(PhotoRegion(name=region.name, area=round(region.area, 6), box=box))
    return MaskReply(
        created=int(time.time()),
        b64_json=encode_picture((completed.mask != 0) * np.uint8(255), "png", 100),
        size=size_text(completed.image),
        keypoints=None if completed.keypoints is None else completed.keypoints.round(3).tolist(),
        regions=shown,
        window=PhotoBox(**completed.window._asdict()),
        num_persons=reading.num_persons,
        **found_fields(found),
    )
