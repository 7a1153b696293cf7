"""Tests which multipart forms are read, and with which messages the others are refused, without Ray."""

import asyncio
from collections.abc import Sequence
from typing import Any, get_args

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.formparsers import SpooledTemporaryFile  # type: ignore[attr-defined]
from starlette.requests import Request
from starlette.types import Message

from fashion_rag.errors import InvalidRequest
from fashion_rag.request import Template
from serve.config import IngressSettings
from serve.http.forms import EditForm
from serve.http.multipart import MIN_PROGRESS_BYTES, parse_form, read_form
from tests.serve.http.sent_forms import (
    ITEMS,
    MAX_BYTES,
    SETTINGS,
    Items,
    changed,
    requests,
)
from tests.serve.pictures import mask, photo, png


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
    for name, value in (("prompt", ""), ("image", b"")):
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


@pytest.mark.parametrize("name", ["image", "prompt"])
def test_a_field_that_is_missing_is_named(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{name}: is missing; must be given"):
        changed(**{name: None})


@pytest.mark.parametrize("name", ["image", "mask", "image[]"])
def test_text_is_no_file(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^(image|mask): got 'text'; must be a file"):
        parse_form([(name, "text")], EditForm)


@pytest.mark.parametrize(("name", "value"), [("prompt", "blue"), ("seed", "1")])
def test_a_single_field_that_repeats_is_refused(name: str, value: str | bytes) -> None:
    with pytest.raises(InvalidRequest, match=f"{name}: .*must be given once"):
        parse_form([*ITEMS, ("seed", "1"), (name, value)], EditForm)
