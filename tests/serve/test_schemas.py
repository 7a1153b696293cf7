"""Holds the form of an edit, and its reply, to what they say; without Ray."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from fastapi import UploadFile
from PIL import Image

from fashion_rag.config import Manifest
from fashion_rag.errors import InvalidRequest
from fashion_rag.request import EditRequest, Template
from serve.schemas import EditForm, GarmentUsed, edit_reply, edit_request, parse_keypoints
from tests.serve.pictures import mask, photo, png

MANIFEST = Manifest("toy", image_size=(64, 48), num_inference_steps=7, guidance_scale=2.5)


def request(max_pixels: int = 10_000, **fields: Any) -> EditRequest:
    upload = UploadFile(io.BytesIO())
    form = EditForm(image=upload, mask=upload, **{"prompt": "red dress", "category": "dresses"} | fields)
    return edit_request(form, png(photo()), png(mask()), MANIFEST, max_pixels, "request-7")


def test_what_the_form_leaves_out_comes_from_the_manifest() -> None:
    edit = request()
    assert np.array_equal(edit.image, photo())
    assert np.array_equal(edit.mask != 0, mask() != 0)
    assert (edit.num_inference_steps, edit.guidance_scale, edit.num_garments) == (7, 2.5, 1)
    assert (edit.keypoints, edit.garment_ids, edit.template) == (None, (), Template.GARMENTS)
    assert edit.request_id == "request-7"


def test_what_the_form_says_is_what_is_asked_for() -> None:
    points = [[index, 2 * index] for index in range(18)]
    edit = request(
        keypoints=json.dumps(points),
        num_garments=3,
        garment_ids=["b", "a"],
        seed=0,
        steps=3,
        guidance_scale=0.0,
        template="caption",
    )
    assert edit.keypoints is not None
    assert edit.keypoints.tolist() == points
    assert (edit.num_garments, edit.garment_ids, edit.template) == (3, ("b", "a"), Template.CAPTION)
    assert (edit.seed, edit.num_inference_steps, edit.guidance_scale) == (0, 3, 0.0)


def test_without_a_seed_every_edit_gets_another() -> None:
    assert request().seed != request().seed


def test_a_picture_of_too_many_pixels_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="image"):
        request(max_pixels=4000)


def test_dress_code_keypoints_are_scaled_from_their_frame() -> None:
    rows = [[384.0, 512.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0], *[[192.0, 64.0, 1.0, 2.0]] * 16]
    points = parse_keypoints(json.dumps({"keypoints": rows}), (80, 60))
    assert points[:3].tolist() == [[60, 80], [0, 0], [30, 10]]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "7",
        "[[1, 2]]",
        json.dumps([[1, 2]] * 17 + [[1]]),
        json.dumps([["x", "y"]] * 18),
        json.dumps([[1, 2, 3, 4]] * 18),
        json.dumps({"keypoints": [[1, 2]] * 18}),
        json.dumps({"pose": []}),
        "[" * 100_000,
    ],
)
def test_other_keypoints_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="keypoints"):
        parse_keypoints(text, (80, 60))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "null"])
def test_keypoints_that_are_no_numbers_are_refused(number: str) -> None:
    with pytest.raises(InvalidRequest, match="keypoints"):
        request(keypoints=json.dumps([[1, 2]] * 17)[:-1] + f", [1, {number}]]")


def test_the_reply_has_the_shape_of_the_images_api() -> None:
    garment = GarmentUsed(id="g1", score=0.5, caption="red dress")
    reply = json.loads(edit_reply(photo(), [garment], 11, {"denoise": 1.25}).model_dump_json())
    assert sorted(reply) == ["created", "data", "garments", "seed", "timings_ms"]
    picture = Image.open(io.BytesIO(base64.b64decode(reply["data"][0]["b64_json"])))
    assert np.array_equal(np.asarray(picture), photo())
    assert reply["garments"] == [{"id": "g1", "score": 0.5, "caption": "red dress"}]
    assert (reply["seed"], reply["timings_ms"]) == (11, {"denoise": 1250.0})
