"""Tests edits of a photo and a sentence alone, and masks, without Ray, in front of stand-ins for the stages."""

import base64
import io
import json
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from tests.serve.client import PATIENCE_S, decoded, edit
from tests.serve.pictures import photo, png
from tests.serve.standin import served


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Yield the URL of the stand-in."""
    with pytest.MonkeyPatch.context() as monkeypatch, served(monkeypatch) as address:
        yield address


def mask_of(url: str, image: bytes, **fields: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/images/masks", files={"image": image}, data=fields, timeout=PATIENCE_S)


def refusal(reply: httpx.Response) -> tuple[int, str, str]:
    """Return the status, the field and the code of an error."""
    error = reply.json()["error"]
    return reply.status_code, error["param"], error["code"]


def test_a_photo_and_a_sentence_are_enough(url: str) -> None:
    found = edit(url, mask=None, category=None).raise_for_status().json()
    assert (found["category"], found["category_confidence"], found["warnings"]) == ("dresses", 0.75, [])
    given = edit(url, mask=None).raise_for_status().json()
    assert (given["category"], given["category_confidence"]) == ("dresses", None)
    shown = decoded(found["data"][0]["b64_json"])
    # Every edit paints black, and the dress is in the upper half.
    repainted = (shown == 0).all(axis=2)
    assert repainted[:30].mean() > 0.5
    assert np.array_equal(shown[70:], photo()[70:])


def test_openais_client_needs_no_more_than_image_and_prompt(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        reply = client.images.edit(image=("photo.png", png(photo())), prompt="a red dress")
        events = list(client.images.edit(image=("photo.png", png(photo())), prompt="a red dress", stream=True))
    assert reply.data is not None and reply.data[0].b64_json is not None
    assert reply.model_extra is not None and reply.model_extra["category"] == "dresses"
    (completed,) = events
    assert completed.type == "image_edit.completed"
    assert completed.model_extra is not None
    assert (completed.model_extra["category"], completed.model_extra["warnings"]) == ("dresses", [])


@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_photo_that_shows_nobody_is_refused(url: str, stream: str) -> None:
    black = png(np.zeros((80, 60, 3), np.uint8))
    refused = [edit(url, image=black, mask=None, stream=stream), mask_of(url, image=black)]
    refused.append(mask_of(url, image=black, category="dresses"))
    for reply in refused:
        assert refusal(reply) == (400, "image", "invalid_value")
    assert edit(url, image=black).status_code == 200


def test_a_mask_comes_with_what_was_seen(url: str) -> None:
    reply = mask_of(url, png(photo())).raise_for_status().json()
    content = base64.b64decode(reply.pop("b64_json"))
    shown = Image.open(io.BytesIO(content))
    assert (shown.format, shown.size, shown.mode) == ("PNG", (60, 80), "L")
    pixels = np.asarray(shown)
    assert set(np.unique(pixels)) == {0, 255}
    assert pixels[:30].mean() > 127
    assert isinstance(reply.pop("created"), int)
    assert reply == {
        "size": "60x80",
        "category": "dresses",
        "category_confidence": None,
        "warnings": [],
        "keypoints": None,
        "regions": [{"name": "dress", "area": 0.5, "box": {"top": 0, "left": 0, "height": 40, "width": 60}}],
        "window": {"top": 0, "left": 0, "height": 80, "width": 60},
        "num_persons": 1,
    }
    # The mask may be sent with an edit as it is, which then has the picture of an edit without.
    sent, found = edit(url, mask=content), edit(url, mask=None)
    assert sent.raise_for_status().json()["data"] == found.raise_for_status().json()["data"]


def test_the_category_of_a_mask_is_the_callers_or_that_of_the_words(url: str) -> None:
    by_words = mask_of(url, png(photo()), prompt="a red dress").raise_for_status().json()
    assert (by_words["category"], by_words["category_confidence"]) == ("dresses", 0.75)
    given = mask_of(url, png(photo()), prompt="a red dress", category="upper_body").raise_for_status().json()
    assert (given["category"], given["category_confidence"]) == ("upper_body", None)


def test_key_points_that_are_given_come_back_with_the_mask(url: str) -> None:
    points = [[index + 1.5, 2.0 * index] for index in range(18)]
    assert mask_of(url, png(photo()), keypoints=json.dumps(points)).json()["keypoints"] == points


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"category": "hats"}, "category"),
        ({"mask_type": "circle"}, "mask_type"),
        ({"prompt": " "}, "prompt"),
        ({"keypoints": "[[1, 2]]"}, "keypoints"),
        ({"n": "2"}, "n"),
    ],
)
def test_a_wrong_request_for_a_mask_is_refused_by_name(url: str, fields: dict[str, str], field: str) -> None:
    assert refusal(mask_of(url, png(photo()), **fields))[:2] == (400, field)


def test_a_mask_needs_a_picture(url: str) -> None:
    assert refusal(mask_of(url, b"no picture"))[:2] == (400, "image")
    assert refusal(mask_of(url, b"")) == (400, "image", "invalid_value")


def test_with_a_bundle_without_a_parser_a_mask_must_be_given() -> None:
    with pytest.MonkeyPatch.context() as monkeypatch, served(monkeypatch, has_parser=False) as url:
        assert refusal(edit(url, mask=None)) == (400, "mask", "missing_required_parameter")
        assert refusal(edit(url, mask=None, category=None)) == (400, "mask", "missing_required_parameter")
        assert refusal(mask_of(url, png(photo()))) == (400, "image", "unsupported_value")
        given = edit(url, category=None).raise_for_status().json()
        assert (given["category"], given["category_confidence"]) == ("dresses", 0.75)
