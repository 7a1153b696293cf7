"""Forms of edits as callers send them, and the edits that a small server makes of them."""

import io
from typing import Any

from PIL import Image

from fashion_rag.manifest import Manifest
from fashion_rag.request import EditRequest
from fashion_rag.sampling import Preset
from serve.config import IngressSettings
from serve.http.edit_requests import edit_requests
from serve.http.forms import EditForm
from serve.http.multipart import parse_form
from tests.serve.pictures import mask, photo, png

MANIFEST = Manifest("toy", image_size=(64, 48), num_inference_steps=7, guidance_scale=2.5)
PRESETS = {"fast": Preset(steps=2), "balanced": Preset(guidance_scale=0.0), "mine": Preset(3, 4.0)}
SETTINGS = IngressSettings(max_pixels=10_000, deadline_s=20.0, presets=PRESETS)
MAX_BYTES = 200_000
ARRIVED = 1000.0

Items = list[tuple[str, str | bytes]]
ITEMS: Items = [("image", png(photo())), ("mask", png(mask())), ("prompt", "red dress"), ("category", "dresses")]
KEYPOINTS = [[index + 1, 2 * index + 2] for index in range(18)]


def changed(**fields: str | bytes | None) -> EditForm:
    """Return the form of ITEMS with changed fields; None leaves a field out."""
    return parse_form([(name, value) for name, value in (dict(ITEMS) | fields).items() if value is not None], EditForm)


def requests(settings: IngressSettings = SETTINGS, /, **fields: str | bytes | None) -> list[EditRequest]:
    return edit_requests(changed(**fields), MANIFEST, settings, "request-7", ARRIVED)


def saved(image: Image.Image, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, format="PNG", **options)
    return content.getvalue()


# Bodies
