"""Tests the rules of the form of an edit, and the shapes of replies and events, without Ray."""

import base64
import io
import json
import math
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from fashion_rag.data.pose import parse_keypoints
from fashion_rag.errors import InvalidRequest
from fashion_rag.person.completion import CategoryChoice, Found
from fashion_rag.request import CATEGORIES, Template, Window
from serve.config import PresetInFile
from serve.http.documents import form_document
from serve.http.forms import EditForm
from serve.http.replies import (
    ErrorDetail,
    ErrorReply,
    GarmentFound,
    GarmentList,
    GarmentUsed,
    Model,
    ModelList,
    edit_completed,
    edit_reply,
    encode_picture,
    partial_image,
    sse,
)
from tests.profiles import display_p3
from tests.serve.pictures import photo

NO_COORDINATES = ["9" * 400, "-" + "9" * 5000, "1e400", "NaN", "-Infinity", "100001", "true", '"1"', "null", "\u0661"]
GARMENT = GarmentUsed(id="g1", score=0.5, caption="red dress")
FOUND = Found(CategoryChoice("dresses", 0.87654), Window(0, 0, 80, 60), None, None, ("Two persons are in the photo.",))
FOUND_FIELDS = {
    "category": "dresses",
    "category_confidence": 0.877,
    "warnings": ["Two persons are in the photo."],
}


def form(**fields: Any) -> EditForm:
    return EditForm.model_validate({"image": b"1", "mask": b"2", "prompt": "red", "category": "dresses"} | fields)


def decoded(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


@pytest.mark.parametrize(
    ("fields", "field", "rule"),
    [
        ({"stream": True, "n": 2}, "n", "must be 1 with stream=true"),
        ({"output_compression": 99}, "output_compression", "png"),
        ({"quality": "low", "preset": "exact"}, "preset", "must be turbo or fast"),
        ({"quality": "high", "preset": "mine"}, "preset", "must be exact"),
        ({"response_format": "url"}, "response_format", "no picture is stored"),
        ({"background": "transparent"}, "background", "the photo keeps its background"),
        ({"output_format": "gif"}, "output_format", "must be png, jpeg or webp"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields: dict[str, Any], field: str, rule: str) -> None:
    with pytest.raises(InvalidRequest, match=rule) as caught:
        form(**fields)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "fields",
    [
        {"stream": True, "n": 1, "partial_images": 50},
        {"partial_images": 1},
        {"n": 10},
        {"output_format": "webp", "output_compression": 0},
        {"output_format": "png", "output_compression": 100},
        {"quality": "low", "preset": "fast"},
        {"quality": "auto", "preset": "mine"},
        {"response_format": "b64_json", "background": "opaque"},
    ],
)
def test_fields_that_go_together_are_taken(fields: dict[str, Any]) -> None:
    assert form(**fields).model_dump(include=set(fields)) == fields


def test_pictures_stay_out_of_what_is_printed() -> None:
    assert "b'" not in repr(form())


def test_the_schema_of_the_form_describes_every_field_in_one_piece() -> None:
    schema = form_document(EditForm)["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(schema["properties"]) == set(EditForm.model_fields)
    assert set(schema["required"]) == {"image", "prompt"}
    assert schema["additionalProperties"] is False
    assert "$ref" not in json.dumps(schema) and "null" not in json.dumps(schema)
    fields = schema["properties"]
    for name in ("image", "mask"):
        assert (fields[name]["type"], fields[name]["format"]) == ("string", "binary")
    assert (fields["n"]["minimum"], fields["n"]["maximum"], fields["n"]["default"]) == (1, 10, 1)
    assert (fields["num_chunks"]["minimum"], fields["num_chunks"]["maximum"]) == (1, 3)
    assert fields["category"]["enum"] == list(CATEGORIES)
    assert (fields["template"]["enum"], fields["template"]["default"]) == (list(Template), "garments")
    assert "default" not in fields["seed"]
    numbers = [field for field in fields.values() if field.get("type") in ("integer", "number")]
    assert len(numbers) > 10 and all("minimum" in number for number in numbers)


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
        *[f"[[{number}, 1]{', [1, 2]' * 17}]" for number in NO_COORDINATES],
        *[f'{{"keypoints": [[{number}, 1, 1, 1]{", [1, 2, 1, 1]" * 17}]}}' for number in NO_COORDINATES],
    ],
)
def test_other_keypoints_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"keypoints: .*from -100000 to 100000"):
        parse_keypoints(text, (80, 60))


@pytest.mark.parametrize("number", ["-0.0", "1e5", "-100000", "1E-400", "0.1e1"])
def test_keypoints_may_be_any_finite_numbers_near_a_picture(number: str) -> None:
    points = parse_keypoints(f"[[{number}, 1]{', [1, 2]' * 17}]", (80, 60))
    assert points[0].tolist() == [float(number), 1]


@pytest.mark.parametrize("preset", [{}, {"steps": 1}, {"steps": 1000, "guidance_scale": 0}, {"guidance_scale": "7.5"}])
def test_a_preset_is_read_from_a_config_file(preset: dict[str, Any]) -> None:
    read = TypeAdapter(PresetInFile).validate_python(preset)
    assert (read.steps, read.guidance_scale) == (
        preset.get("steps"),
        float(preset["guidance_scale"]) if "guidance_scale" in preset else None,
    )


@pytest.mark.parametrize(
    ("preset", "name"),
    [({"steps": 0}, "steps"), ({"steps": 1001}, "steps"), ({"guidance_scale": -1}, "guidance_scale"),
     ({"guidance_scale": 51}, "guidance_scale"), ({"guidance_scale": math.nan}, "guidance_scale"),
     ({"step": 3}, "step"), ({"solver": "euler"}, "solver"), ({"guidance_end": 2}, "guidance_end"),
     ({"guidance_start": 0.5, "guidance_end": 0.2}, "guidance_end"), ({"cache_interval": 0}, "cache_interval")],
)  # fmt: skip
def test_a_preset_outside_its_ranges_is_refused(preset: dict[str, Any], name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        TypeAdapter(PresetInFile).validate_python(preset)


def test_the_reply_has_the_shape_of_the_images_api() -> None:
    pictures = [photo(), 255 - photo()]
    reply = json.loads(edit_reply(form(), pictures, [11, 12], [GARMENT], FOUND, {"denoise": 1.25}).model_dump_json())
    assert isinstance(reply.pop("created"), int)
    for data, picture in zip(reply["data"], pictures, strict=True):
        assert np.array_equal(np.asarray(decoded(data.pop("b64_json"))), picture)
    assert reply == FOUND_FIELDS | {
        "data": [{"seed": 11}, {"seed": 12}],
        "output_format": "png",
        "size": "60x80",
        "garments": [{"id": "g1", "score": 0.5, "caption": "red dress"}],
        "seed": 11,
        "timings_ms": {"denoise": 1250.0},
    }


def test_the_events_of_a_stream_have_the_shape_of_the_images_api() -> None:
    streamed = form(stream=True, quality="low", output_format="jpeg")
    events = [
        partial_image(streamed, photo(), 0, 5, 10).model_dump(mode="json"),
        edit_completed(streamed, photo(), [GARMENT], FOUND, 11, {"denoise": 1.25}).model_dump(mode="json"),
    ]
    for event in events:
        assert isinstance(event.pop("created_at"), int)
        picture = decoded(event.pop("b64_json"))
        assert (picture.format, picture.size) == ("JPEG", (60, 80))
    picture_fields = {"size": "60x80", "quality": "low", "background": "opaque", "output_format": "jpeg"}
    assert events == [
        picture_fields | {"type": "image_edit.partial_image", "partial_image_index": 0, "step": 5, "num_steps": 10},
        picture_fields
        | FOUND_FIELDS
        | {
            "type": "image_edit.completed",
            "garments": [{"id": "g1", "score": 0.5, "caption": "red dress"}],
            "seed": 11,
            "timings_ms": {"denoise": 1250.0},
        },
    ]


@pytest.mark.parametrize("caption", ["two\nlines\r\n\r\n", "a\u2028b\x85c", "é \U0001f457"])
def test_an_event_is_two_lines_whatever_it_tells(caption: str) -> None:
    error = {"type": "DeadlineExceeded", "field": None, "message": caption, "param": None, "code": "deadline_exceeded"}
    sent = sse("error", ErrorReply(error=ErrorDetail.model_validate(error)))
    text = sent.decode("ascii")
    assert text.endswith("\n\n") and len(text.splitlines()) == 3
    event, data = text.splitlines()[:2]
    assert event == "event: error"
    content = json.loads(data.removeprefix("data: "))
    assert content == {"error": error}


def test_a_png_is_exact_and_compression_is_quality_for_the_others() -> None:
    assert np.array_equal(np.asarray(decoded(encode_picture(photo(), "png", 100))), photo())
    for output_format in ("jpeg", "webp"):
        best, worst = (encode_picture(photo(), output_format, quality) for quality in (100, 0))
        assert decoded(best).format == output_format.upper()
        assert len(worst) < len(best) / 2


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_every_picture_of_a_reply_or_a_stream_carries_the_profile(output_format: str) -> None:
    asked = form(output_format=output_format)
    for profile in (display_p3(), None):
        reply = edit_reply(asked, [photo(), photo()], [1, 2], [GARMENT], FOUND, {}, profile)
        events = [
            partial_image(asked, photo(), 0, 5, 10, profile),
            edit_completed(asked, photo(), [GARMENT], FOUND, 11, {}, profile),
        ]
        pictures = [decoded(picture.b64_json) for picture in [*reply.data, *events]]
        assert [picture.info.get("icc_profile") for picture in pictures] == [profile] * 4


def test_lists_name_themselves_and_garments_tell_where_their_picture_is() -> None:
    models = ModelList(data=[Model(id="tiny", created=5, owned_by="fashion-rag")])
    assert models.model_dump() == {
        "object": "list",
        "data": [{"id": "tiny", "object": "model", "created": 5, "owned_by": "fashion-rag"}],
    }
    garment = GarmentFound(id="a/b ?", category="dresses", caption="red", attributes={"size": ["M"]}, score=None)
    garments = GarmentList(data=[garment])
    assert garments.model_dump() == {
        "object": "list",
        "data": [
            {
                "id": "a/b ?",
                "category": "dresses",
                "caption": "red",
                "attributes": {"size": ["M"]},
                "score": None,
                "image_url": "/v1/garments/a%2Fb%20%3F/image",
            }
        ],
    }
