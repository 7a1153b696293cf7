"""Tests that the events of a stream keep the colours of the photo, without Ray's workers."""

import base64
import io
import json

import numpy as np
from PIL import Image

from fashion_rag.request import EditRequest
from serve.edits import EditedPhoto, completed_event, partial_event
from serve.http.forms import EditForm
from serve.messages import Partial
from tests.profiles import display_p3
from tests.serve.pictures import mask, photo


def test_previews_and_the_finished_picture_are_in_the_photos_colours() -> None:
    form = EditForm.model_validate({"image": b"1", "prompt": "red", "category": "dresses"})
    request = EditRequest(photo(), mask(), "red", "dresses", icc_profile=display_p3())
    preview = np.full((32, 24, 3), (215, 93, 31), np.uint8)
    events = [
        partial_event(form, request, Partial(5, 10, preview), 0),
        completed_event(form, request, EditedPhoto(photo(), (), {})),
    ]
    shown = []
    for event in events:
        data = json.loads(event.decode().splitlines()[1].removeprefix("data: "))
        image = Image.open(io.BytesIO(base64.b64decode(data["b64_json"])))
        assert image.info["icc_profile"] == display_p3()
        shown.append(np.asarray(image).astype(int))
    assert (shown[0][mask() == 0] == photo()[mask() == 0]).all()
    # What the model's colour is in Display P3.
    assert np.abs(shown[0][mask() != 0] - (200, 100, 50)).max() <= 1
    assert (shown[1] == photo()).all()
