"""Tests which multipart forms become edits, and with which messages the others are refused, without Ray."""

import asyncio
import io
import json
from collections.abc import Sequence
from typing import Any, get_args

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.formparsers import SpooledTemporaryFile  # type: ignore[attr-defined]
from starlette.requests import Request
from starlette.types import Message

from fashion_rag.errors import InvalidRequest
from fashion_rag.manifest import Manifest
from fashion_rag.request import EditRequest, Shortcuts, Solver, Template
from fashion_rag.sampling import Preset
from serve.config import IngressSettings
from serve.http.edit_requests import MAX_FILE_SIDES, edit_requests, garment_picture
from serve.http.forms import EditForm, GarmentForm
from serve.http.multipart import MIN_PROGRESS_BYTES, parse_form, read_form
from tests.profiles import display_p3, one_way_rgb
from tests.serve.pictures import SIZE, huge_png, mask, photo, png

MANIFEST = Manifest("toy", image_size=(64, 48), num_inference_steps=7, guidance_scale=2.5)
PRESETS = {"fast": Preset(steps=2), "balanced": Preset(guidance_scale=0.0), "mine": Preset(3, 4.0)}
SETTINGS = IngressSettings(max_pixels=10_000, deadline_s=20.0, presets=PRESETS)
MAX_BYTES = 200_000
ARRIVED = 1000.0

Items = list[tuple[str, str | bytes]]
ITEMS: Items = [("image", png(photo())), ("mask", png(mask())), ("prompt", "red dress"), ("category", "dresses")]
KEYPOINTS = [[index + 1, 2 * index + 2] for index in range(18)]


class Sent:
    """A request as a server would hand it to the application. It counts the bytes that have been read."""

    def __init__(self, content_type: str, body: bytes, chunk: int = 1000, tells_length: bool = False) -> None:
        self.headers = {"content-type": content_type} | ({"content-length": str(len(body))} if tells_length else {})
        self.chunks = [body[start : start + chunk] for start in range(0, len(body), chunk)]
        self.num_read = 0

    def read(self, max_bytes: int = MAX_BYTES) -> EditForm:
        chunks = iter(self.chunks)

        async def receive() -> Message:
            chunk = next(chunks, b"")
            self.num_read += len(chunk)
            return {"type": "http.request", "body": chunk, "more_body": bool(chunk)}

        headers = [(name.encode(), value.encode("latin-1")) for name, value in self.headers.items()]
        http = Request({"type": "http", "headers": headers}, receive)
        return asyncio.run(read_form(http, max_bytes, EditForm, SETTINGS))


def multipart(items: Items) -> tuple[str, bytes]:
    """Return the content type and body as httpx sends them, and so OpenAI's client."""
    parts = [(name, (None, value) if isinstance(value, str) else ("file.png", value)) for name, value in items]
    request = httpx.Request("POST", "http://test", files=parts)
    return request.headers["content-type"], request.read()


def part(name: str, value: str) -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


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


@pytest.mark.parametrize("chunk", [1, 7, 1_000_000])
@pytest.mark.parametrize("tells_length", [True, False])
def test_a_form_is_read_in_whatever_pieces_it_comes(chunk: int, tells_length: bool) -> None:
    form = Sent(*multipart([*ITEMS, ("user", "Zoë")]), chunk, tells_length).read()
    assert (form.image, form.mask) == (png(photo()), png(mask()))
    assert (form.prompt, form.category, form.user) == ("red dress", "dresses", "Zoë")


def test_a_file_too_large_for_memory_is_read_back_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    files = []

    def spooled(*args: Any, **options: Any) -> Any:
        files.append(SpooledTemporaryFile(*args, **options))
        return files[-1]

    monkeypatch.setattr("starlette.formparsers.SpooledTemporaryFile", spooled)
    content = bytes(range(256)) * 8192
    form = Sent(*multipart([("image", content), *ITEMS[1:]]), 100_000).read(max_bytes=3_000_000)
    assert form.image == content
    assert [file.closed for file in files] == [True, True]


@pytest.mark.parametrize("tells_length", [True, False])
def test_a_body_over_the_limit_is_not_read_to_its_end(tells_length: bool) -> None:
    content_type, body = multipart([*ITEMS, ("user", "x" * 100_000)])
    exact = Sent(content_type, body, 1000, tells_length)
    with pytest.raises(InvalidRequest, match="user"):
        exact.read(max_bytes=len(body))
    sent = Sent(content_type, body, 1000, tells_length)
    with pytest.raises(HTTPException, match="at most 50000 bytes") as caught:
        sent.read(max_bytes=50_000)
    assert caught.value.status_code == 413
    assert sent.num_read == (0 if tells_length else 51_000)
    sent = Sent(content_type, body, 1000, tells_length)
    with pytest.raises(HTTPException):
        sent.read(max_bytes=len(body) - 1)
    assert sent.num_read == (0 if tells_length else len(body))


@pytest.mark.parametrize(
    "content_type", ["", "application/json", "application/x-www-form-urlencoded", "multipart/mixed; boundary=b"]
)
def test_another_content_type_is_refused(content_type: str) -> None:
    with pytest.raises(HTTPException, match="multipart/form-data") as caught:
        Sent(content_type, b"{}").read()
    assert caught.value.status_code == 415


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        part("prompt", "red"),
        part("prompt", "red") + part("seed", "1")[:-3],
        b"--b\r\nContent-Disposition: form-data\r\n\r\nred\r\n--b--\r\n",
        b"--b\r\nContent-Disposition form-data\r\n\r\nred\r\n--b--\r\n",
        part("prompt", "x" * 1_100_000) + b"--b--\r\n",
        part("prompt", "red") * 100 + b"--b--\r\n",
    ],
    ids=["empty", "no form", "no end", "cut off", "no name", "no colon", "long text", "many fields"],
)
def test_what_is_no_whole_form_is_refused(body: bytes) -> None:
    with pytest.raises(HTTPException, match="body: ") as caught:
        Sent("multipart/form-data; boundary=b", body).read(max_bytes=2_000_000)
    assert caught.value.status_code == 400


@pytest.mark.parametrize("boundary", ["", "; boundary=", "; boundary*=utf-8''%E2%82%AC", "; boundary=" + "b" * 300])
def test_a_boundary_that_is_none_is_refused(boundary: str) -> None:
    with pytest.raises(HTTPException) as caught:
        Sent(f"multipart/form-data{boundary}", part("prompt", "red") + b"--b--\r\n").read()
    assert caught.value.status_code == 400


@pytest.mark.parametrize("end", [b"--b--", b"--b--\r\n", b"--b--\r\nan epilogue"])
@pytest.mark.parametrize(
    "content_type", ["; boundary=b", '; charset=utf-7; boundary="b"', "; boundary=b; charset=undefined"]
)
def test_forms_end_in_several_ways_and_are_utf_8(content_type: str, end: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"image: got '\+2AA-é'; must be a file"):
        Sent(f"multipart/form-data{content_type}", part("image", "+2AA-é") + end).read()


@given(st.data())
def test_a_damaged_form_is_read_or_refused(data: st.DataObject) -> None:
    content_type, whole = multipart([("image", b"1"), ("mask", b"2"), *ITEMS[2:], ("steps", "3")])
    body = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert Sent(content_type, bytes(body[: data.draw(st.integers(0, len(body)))])).read()
    except (HTTPException, InvalidRequest) as error:
        assert getattr(error, "status_code", 400) == 400


class Slow:
    """Sends a body in chunks with a pause before each, and nothing after the last."""

    def __init__(self, chunks: Sequence[bytes], pause_s: float) -> None:
        self.chunks = list(chunks)
        self.pause_s = pause_s

    async def receive(self) -> Message:
        await asyncio.sleep(self.pause_s if self.chunks else 3600)
        return {"type": "http.request", "body": self.chunks.pop(0), "more_body": True}

    def read(self, settings: IngressSettings) -> EditForm:
        headers = [(b"content-type", b"multipart/form-data; boundary=b")]
        http = Request({"type": "http", "headers": headers}, self.receive)
        return asyncio.run(read_form(http, 10**9, EditForm, settings))


LARGE_CHUNK = part("image", "x" * MIN_PROGRESS_BYTES)


@pytest.mark.parametrize(
    ("chunks", "limits"),
    [
        ([], {"upload_stall_s": 0.05}),
        ([part("prompt", "red")], {"upload_stall_s": 0.05}),
        # A little now and then is no progress.
        ([part("prompt", "red")] * 1000, {"upload_stall_s": 0.05}),
        ([LARGE_CHUNK] * 1000, {"upload_s": 0.05}),
        ([LARGE_CHUNK] * 1000, {"deadline_s": 0.05}),
    ],
    ids=["nothing", "half", "trickle", "endless", "past the deadline"],
)
def test_a_body_that_comes_too_slowly_is_a_408(chunks: Sequence[bytes], limits: dict[str, float]) -> None:
    with pytest.raises(HTTPException, match="body: stopped after") as caught:
        Slow(chunks, 0.01).read(IngressSettings(**limits))  # type: ignore[arg-type]
    assert caught.value.status_code == 408
    # Else the server would take the rest of the body for the next request.
    assert caught.value.headers == {"connection": "close"}


def test_a_body_that_makes_progress_may_take_longer_than_a_stall() -> None:
    slow = Slow([LARGE_CHUNK, LARGE_CHUNK, LARGE_CHUNK, b"--b--\r\n"], 0.5)
    slow.chunks[-1:] = [b"--b-"]
    with pytest.raises(HTTPException, match=f"stopped after {3 * len(LARGE_CHUNK) + 4} bytes"):
        slow.read(IngressSettings(upload_stall_s=1.2))


# Fields


def test_what_a_form_leaves_out_has_the_defaults_of_the_images_api() -> None:
    form = changed()
    assert (form.n, form.size, form.response_format, form.output_format) == (1, "auto", "b64_json", "png")
    assert (form.output_compression, form.stream, form.partial_images, form.quality) == (100, False, 0, "auto")


def test_fields_come_as_text() -> None:
    form = changed(n="2", stream="false", guidance_scale="0", steps="12", deadline_s="0.001", template="caption")
    assert (form.n, form.stream, form.guidance_scale, form.steps) == (2, False, 0.0, 12)
    assert (form.deadline_s, form.template) == (0.001, Template.CAPTION)


@pytest.mark.parametrize("name", ["garment_ids", "garment_ids[]"])
def test_garments_are_a_list_under_either_name(name: str) -> None:
    assert parse_form([*ITEMS, (name, "b")], EditForm).garment_ids == ["b"]
    assert parse_form([*ITEMS, (name, "b"), (name, "a")], EditForm).garment_ids == ["b", "a"]


def test_one_photo_may_come_in_a_list_and_two_are_refused() -> None:
    listed: Items = [("image[]", b"photo"), *ITEMS[1:]]
    assert parse_form(listed, EditForm).image == b"photo"
    for second in ("image", "image[]"):
        with pytest.raises(InvalidRequest, match="image: got 'several files'; must be one picture") as caught:
            parse_form([*listed, (second, b"garment")], EditForm)
        assert caught.value.code == "unsupported_value"


def test_a_mask_may_come_in_a_list() -> None:
    assert changed(**{"mask": None, "mask[]": b"2"}).mask == b"2"
    with pytest.raises(InvalidRequest, match="mask: got 'several files'"):
        changed(**{"mask[]": b"2"})


@pytest.mark.parametrize("name", [name for name, field in EditForm.model_fields.items() if not field.is_required()])
def test_an_optional_field_that_is_empty_counts_as_left_out(name: str) -> None:
    left_out = changed(**{name: None})
    assert changed(**{name: ""}) == changed(**{name: b""}) == left_out


def test_a_required_field_that_is_empty_is_refused() -> None:
    for name, value in (("prompt", ""), ("image", b""), ("category", "")):
        with pytest.raises(InvalidRequest, match=f"{name}: ") as caught:
            requests(**{name: value})
        assert caught.value.field == name


def test_fields_of_the_images_api_without_a_use_here_are_taken() -> None:
    fields = {"input_fidelity": "high", "moderation": "low", "complexity": "medium", "safety_identifier": "a"}
    assert changed(**fields, partial_images="2").model_dump(include=set(fields)) == fields


# Whole numbers and fractions in writings that Python, JSON or C know; each is read as its number or refused.
HUGE = ["9" * 400, "9" * 5000, "-" + "9" * 400, "1e400", "-1e400", "nan", "-inf", "1e-400"]
ODD = ["-0", "-0.0", "+1", "true", "false", "0x10", "1_000", " 1 ", "01", "1.0", "1.", ".5", "1,5", "--1"]
OTHER_DIGITS = ["\uff11", "\u0661", "\u00bd"]
NUMBERS = [name for name, field in EditForm.model_fields.items() if {int, float} & set(get_args(field.annotation))]
NUMBERS += [name for name, field in EditForm.model_fields.items() if field.annotation in (int, float)]


@pytest.mark.parametrize("name", [*NUMBERS, "keypoints", "size"])
@pytest.mark.parametrize("value", [*HUGE, *ODD, *OTHER_DIGITS])
def test_any_writing_of_a_number_is_read_or_refused_by_name(name: str, value: str) -> None:
    try:
        (edit, *_) = requests(**{name: value})
    except InvalidRequest as error:
        assert error.field == name
        assert len(str(error)) < 300
    else:
        assert name not in ("keypoints", "size")
        assert 0 <= edit.guidance_scale <= 50 and 0 <= edit.seed < 2**63 and 1000 < edit.deadline_unix_s <= 1020


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("response_format", "url", "unsupported_value"),
        ("background", "transparent", "unsupported_value"),
        ("output_format", "svg", "unsupported_value"),
        ("size", "80x60", "unsupported_value"),
        ("model", "gpt-image-2", "model_not_found"),
        ("colour", "red", "unknown_parameter"),
        ("steps", "0", "invalid_value"),
        ("prompt", None, "missing_required_parameter"),
    ],
)
def test_a_refusal_says_of_what_kind_it_is(name: str, value: str | None, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        requests(**{name: value})
    assert (caught.value.field, caught.value.code) == (name, code)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n", "0", "n: got '0'; must be greater than or equal to 1"),
        ("n", "11", "n: got '11'; must be less than or equal to 10"),
        ("n", "two", "n: got 'two'; must be a valid integer"),
        ("n", "1.5", "n: got '1.5'; must be a valid integer"),
        ("stream", "maybe", "stream: got 'maybe'; must be a valid boolean"),
        ("seed", "9" * 5000, "must be a smaller number"),
        ("seed", "-1", "seed: got '-1'; must be greater than or equal to 0"),
        ("guidance_scale", "NaN", "guidance_scale: got 'NaN'; must be a finite number"),
        ("guidance_scale", "inf", "guidance_scale: got 'inf'; must be a finite number"),
        ("deadline_s", "nan", "deadline_s: got 'nan'; must be "),
        ("deadline_s", "0", "deadline_s: got '0'; must be greater than or equal to 0.001"),
        ("num_garments", "4", "num_garments: got '4'; must be less than or equal to 3"),
        ("num_chunks", "0", "num_chunks: got '0'; must be greater than or equal to 1"),
        ("partial_images", "51", "partial_images: got '51'; must be less than or equal to 50"),
        ("output_compression", "101", "output_compression: got '101'; must be less than or equal to 100"),
        ("output_format", "gif", "output_format: got 'gif'; must be png, jpeg or webp"),
        ("background", "transparent", "background: got 'transparent'; must be auto or opaque"),
        ("response_format", "url", "response_format: got 'url'; must be b64_json: no picture is stored"),
        ("template", "other", "template: got 'other'; must be 'garments', "),
        ("user", "x" * 257, "must have at most 256 characters"),
        ("prompt[]", "red", "prompt[]: got 'red'; is not a field of this request"),
        ("input_fidelity", "full", "input_fidelity: got 'full'; must be 'low' or 'high'"),
        ("other", b"1234", "other: got 'a file of 4 bytes'; is not a field of this request"),
        ("other", "", "other: got ''; is not a field of this request"),
        ("steps", b"12", "steps: got 'a file of 2 bytes'; must be text, not a file"),
    ],
)
def test_a_field_that_is_wrong_is_named_with_its_value_and_the_rule(
    name: str, value: str | bytes, message: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_form([*ITEMS, (name, value)], EditForm)
    assert message in str(caught.value) and "unable" not in str(caught.value)
    assert caught.value.field == name


@pytest.mark.parametrize("name", ["image", "prompt", "category"])
def test_a_field_that_is_missing_is_named(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{name}: got None; must be given"):
        changed(**{name: None})


@pytest.mark.parametrize("name", ["image", "mask", "image[]"])
def test_text_is_no_file(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^(image|mask): got 'text'; must be a file"):
        parse_form([(name, "text")], EditForm)


@pytest.mark.parametrize(("name", "value"), [("prompt", "blue"), ("seed", "1")])
def test_a_single_field_that_repeats_is_refused(name: str, value: str | bytes) -> None:
    with pytest.raises(InvalidRequest, match=f"{name}: .*must be given once"):
        parse_form([*ITEMS, ("seed", "1"), (name, value)], EditForm)


# Edits


def test_what_the_form_leaves_out_comes_from_the_manifest() -> None:
    (edit,) = requests()
    assert np.array_equal(edit.image, photo())
    assert np.array_equal(edit.mask != 0, mask() != 0)
    assert (edit.num_inference_steps, edit.guidance_scale, edit.num_garments) == (7, 2.5, 1)
    assert (edit.keypoints, edit.garment_ids, edit.template) == (None, (), Template.GARMENTS)
    assert (edit.num_chunks, edit.request_id) == (None, "request-7")


def test_what_the_form_says_is_what_is_asked_for() -> None:
    fields = {"num_garments": "3", "num_chunks": "2", "seed": "0", "steps": "3", "guidance_scale": "0"}
    (edit,) = requests(**fields, keypoints=json.dumps(KEYPOINTS), garment_ids="b", template="caption", model="toy")
    assert edit.keypoints is not None
    assert edit.keypoints.tolist() == KEYPOINTS
    assert (edit.num_garments, edit.num_chunks, edit.garment_ids) == (3, 2, ("b",))
    assert (edit.seed, edit.num_inference_steps, edit.guidance_scale) == (0, 3, 0.0)
    assert edit.template == Template.CAPTION


def test_several_edits_differ_in_seed_and_id_alone() -> None:
    edits = requests(n="3", seed="40")
    assert [(edit.seed, edit.request_id) for edit in edits] == [
        (40, "request-7-0"),
        (41, "request-7-1"),
        (42, "request-7-2"),
    ]
    assert all(edit.image is edits[0].image and edit.prompt == "red dress" for edit in edits)


def test_the_deadline_is_the_callers_else_the_servers() -> None:
    assert requests()[0].deadline_unix_s == 1020.0
    assert [edit.deadline_unix_s for edit in requests(deadline_s="2.5", n="2")] == [1002.5, 1002.5]
    assert requests(deadline_s="20")[0].deadline_unix_s == 1020.0


def test_without_a_seed_one_is_drawn() -> None:
    assert requests()[0].seed != requests()[0].seed
    first, second = requests(n="2")
    assert second.seed == first.seed + 1


def test_seeds_do_not_run_past_the_last() -> None:
    assert requests(seed=str(2**63 - 1))[0].seed == 2**63 - 1
    with pytest.raises(InvalidRequest, match="seed"):
        requests(seed=str(2**63 - 1), n="2")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"preset": "fast"}, (2, 2.5)),
        ({"quality": "low"}, (2, 2.5)),
        ({"quality": "low", "preset": "fast"}, (2, 2.5)),
        ({"quality": "medium"}, (7, 0.0)),
        ({"preset": "mine"}, (3, 4.0)),
        ({"preset": "mine", "steps": "9"}, (9, 4.0)),
        ({"preset": "mine", "guidance_scale": "0"}, (3, 0.0)),
        ({"quality": "auto"}, (7, 2.5)),
    ],
)
def test_steps_and_guidance_are_the_forms_else_the_presets_else_the_bundles(
    fields: dict[str, str], expected: tuple[int, float]
) -> None:
    (edit,) = requests(**fields)
    assert (edit.num_inference_steps, edit.guidance_scale) == expected


def test_shortcuts_are_the_forms_else_the_presets_else_none() -> None:
    quick = Preset(4, None, Shortcuts(Solver.UNIPC, 0.1, 0.6, 2))
    settings = IngressSettings(max_pixels=10_000, deadline_s=20.0, presets={"quick": quick})
    shortcuts = Shortcuts(Solver.UNIPC, 0.1, 0.6, 2)
    assert requests(settings)[0].shortcuts == Shortcuts()
    assert requests(settings, preset="quick")[0].shortcuts == shortcuts
    fields = {"solver": "ddim", "guidance_start": "0", "cache_interval": "1"}
    assert requests(settings, preset="quick", **fields)[0].shortcuts == Shortcuts(guidance_end=0.6)
    assert requests(settings, guidance_end="0.5")[0].shortcuts == Shortcuts(guidance_end=0.5)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("solver", "euler", "must be"),
        ("guidance_start", "-0.1", "must be greater than or equal to 0"),
        ("guidance_end", "nan", "must be a finite number"),
        ("cache_interval", "11", "must be less than or equal to 10"),
        ("preset", "slow", "needs a preset that this server has: fast, balanced, mine"),
        ("quality", "high", "needs a preset that this server has"),
        ("model", "other", "must be 'toy'"),
        ("deadline_s", "20.1", "must be at most 20.0"),
        ("category", "hats", "must be one of"),
        ("guidance_scale", "51", "must be less than or equal to 50"),
        ("keypoints", "[[1, 2]]", "with 18 points"),
        ("keypoints", json.dumps([[1, 2]] * 17)[:-1] + ", [1, NaN]]", "finite"),
        ("image", b"hello", "whole picture"),
        ("image", huge_png(), "at most 10000 pixels"),
        ("mask", huge_png(), "at most 10000 pixels"),
        ("mask", png(mask()[:40]), "got '60x40'; must have the image's size, 60x80 "),
        ("mask", png(np.zeros(SIZE, np.uint8)), "must mark"),
    ],
)
def test_what_does_not_suit_the_server_or_the_photo_is_refused(name: str, value: str | bytes, rule: str) -> None:
    with pytest.raises(InvalidRequest, match=rule) as caught:
        requests(**{name: value})
    assert caught.value.field == name


def test_a_server_without_presets_says_so() -> None:
    with pytest.raises(InvalidRequest, match="quality: got 'low'; needs a preset that this server has: none"):
        requests(IngressSettings(presets={}), quality="low")


# Masks in the photo


def transparent_photo(alpha: int) -> Image.Image:
    marked = np.where(mask() > 0, alpha, 255).astype(np.uint8)
    return Image.fromarray(np.dstack([photo(), marked]))


def test_a_transparent_photo_is_its_own_mask() -> None:
    (edit,) = requests(image=saved(transparent_photo(0)), mask=None)
    assert np.array_equal(edit.mask != 0, mask() != 0)
    assert np.array_equal(edit.image[mask() == 0], photo()[mask() == 0])


def test_a_mask_comes_before_transparency() -> None:
    other = np.zeros(SIZE, np.uint8)
    other[:10] = 255
    (edit,) = requests(image=saved(transparent_photo(0)), mask=png(other))
    assert np.array_equal(edit.mask != 0, other != 0)


# All of it white, which in a mask would mean: repaint.
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_opaque_photo_without_a_mask_is_refused(mode: str) -> None:
    white = saved(Image.new(mode, (60, 80), "white"))
    with pytest.raises(InvalidRequest, match="mask: got None; must be given, unless the photo is transparent"):
        requests(image=white, mask=None)


def test_white_strokes_on_a_transparent_canvas_are_what_is_repainted() -> None:
    strokes = np.dstack([mask()] * 4)
    (edit,) = requests(mask=png(strokes))
    assert np.array_equal(edit.mask != 0, mask() != 0)


def test_a_mask_that_may_mean_either_part_is_refused_by_name() -> None:
    strokes = np.dstack([np.zeros((*SIZE, 3), np.uint8), mask()])
    with pytest.raises(InvalidRequest, match=r"mask: got .*must be clear"):
        requests(mask=png(strokes))


# Colours


def test_the_photo_keeps_its_profile_and_its_pixels() -> None:
    edits = requests(image=saved(Image.fromarray(photo()), icc_profile=display_p3()), n="2")
    for edit in edits:
        assert edit.icc_profile == display_p3()
        assert np.array_equal(edit.image, photo())
    (smaller,) = requests(image=saved(Image.fromarray(photo()), icc_profile=display_p3()), size="30x40")
    assert smaller.icc_profile == display_p3()
    assert np.array_equal(smaller.image, requests(size="30x40")[0].image)


@pytest.mark.parametrize("profile", [None, b"damaged", one_way_rgb()])
def test_a_photo_without_a_profile_that_leads_back_comes_back_as_srgb(profile: bytes | None) -> None:
    (edit,) = requests(image=saved(Image.fromarray(photo()), icc_profile=profile))
    assert edit.icc_profile is None


def test_a_garment_picture_is_stored_as_srgb() -> None:
    picture = saved(Image.new("RGB", (20, 30), (200, 100, 50)), icc_profile=display_p3())
    _, jpeg = garment_picture(GarmentForm(image=picture, id="a", category="dresses"), 10_000)
    with Image.open(io.BytesIO(jpeg)) as stored:
        assert "icc_profile" not in stored.info
        assert np.abs(np.asarray(stored).astype(int) - (215, 93, 31)).max() <= 2


# Sizes


@pytest.mark.parametrize("size", [(8160, 6120), (8064, 6048), (8192, 6144)])
def test_by_default_the_photos_of_phones_are_taken(size: tuple[int, int]) -> None:
    edit = {"prompt": "red dress", "category": "dresses", "garment_ids": ["a"]}
    # Of one bit a pixel, as what is tested is a limit.
    image = saved(Image.new("1", size))
    half = Image.new("1", size)
    half.paste(1, (0, 0, size[0] // 2, size[1]))
    form = EditForm.model_validate({"image": image, "mask": saved(half), **edit})
    (request,) = edit_requests(form, MANIFEST, IngressSettings(), "request-7", ARRIVED)
    assert request.image.shape == (size[1], size[0], 3)


def test_photo_mask_and_keypoints_are_brought_to_the_size_asked_for() -> None:
    (edit,) = requests(size="30x40", keypoints=json.dumps(KEYPOINTS))
    assert (edit.image.shape, edit.mask.shape) == ((40, 30, 3), (40, 30))
    assert np.array_equal(edit.mask != 0, mask()[1::2, 1::2] != 0)
    assert edit.keypoints is not None
    assert np.array_equal(edit.keypoints, np.array(KEYPOINTS) / 2)
    assert abs(edit.image.astype(float).mean() - photo().mean()) < 1


@pytest.mark.parametrize("size", ["60x80", "66x87", "75x100", "61x80", "16x21"])
def test_a_size_in_the_photos_shape_is_taken(size: str) -> None:
    (edit,) = requests(size=size)
    assert "x".join(map(str, edit.image.shape[1::-1])) == size


@pytest.mark.parametrize(
    ("size", "rule"),
    [
        ("62x80", "must have the photo's shape, 60x80, within 2%"),
        ("80x60", "must have the photo's shape"),
        ("1024x1024", "at most 10000 pixels"),
        ("90x120", "at most 10000 pixels"),
        ("15x20", "sides from 16 to 4096"),
        ("3075x4100", "sides from 16 to 4096"),
        ("99999x99999", "must be auto, or WIDTHxHEIGHT"),
        ("60", "must be auto, or WIDTHxHEIGHT"),
        ("60X80", "must be auto, or WIDTHxHEIGHT"),
        ("-60x-80", "must be auto, or WIDTHxHEIGHT"),
        ("60x80\n", "must be auto, or WIDTHxHEIGHT"),
        ("\u0666\u0660x\u0668\u0660", "must be auto, or WIDTHxHEIGHT"),
    ],
)
def test_another_size_is_refused(size: str, rule: str) -> None:
    with pytest.raises(InvalidRequest, match=rule) as caught:
        requests(size=size)
    assert caught.value.field == "size"


def test_a_mask_of_another_size_is_refused_though_both_are_resized() -> None:
    with pytest.raises(InvalidRequest, match=r"mask: .*must have the image's size"):
        requests(size="30x40", mask=png(mask()[::2, ::2]))


def test_a_picture_that_its_file_could_not_hold_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAX_FILE_SIDES, "webp", 79)
    with pytest.raises(InvalidRequest, match="output_format: got 'webp'; holds at most 79 pixels a side"):
        requests(output_format="webp")
    assert requests(output_format="webp", size="30x40")[0].image.shape == (40, 30, 3)
    assert requests(output_format="jpeg")
