"""Tests the routes as callers and tools see them, without Ray, in front of stand-ins for the stages."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from numpy.typing import NDArray

from serve.http.errors import STATUSES
from tests.serve.client import PATIENCE_S, edit
from tests.serve.pictures import mask, photo, png
from tests.serve.standin import MODEL, served

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Yield the URL of the stand-in."""
    with pytest.MonkeyPatch.context() as monkeypatch, served(monkeypatch) as address:
        yield address


def error(reply: httpx.Response) -> dict[str, Any]:
    body = reply.json()["error"]
    assert body["param"] == body["field"] and body["code"]
    return dict(body)


@pytest.mark.parametrize(
    "path",
    [
        "/healthz",
        "/readyz",
        "/docs",
        "/openapi.json",
        "/v1/models",
        f"/v1/models/{MODEL}",
        "/v1/garments/red-dress",
        "/v1/garments/red-dress/image",
        "/v1/garments/red-dress/similar",
        "/v1/garments/search?q=a&category=dresses",
    ],
)
def test_what_can_be_read_answers_head_without_a_body(url: str, path: str) -> None:
    read, asked = httpx.get(f"{url}{path}"), httpx.head(f"{url}{path}")
    assert (read.status_code, asked.status_code, asked.content) == (200, 200, b"")
    assert asked.headers["content-type"] == read.headers["content-type"]


def test_a_model_is_found_by_its_name(url: str) -> None:
    assert httpx.get(f"{url}/v1/models/{MODEL}").json() == httpx.get(f"{url}/v1/models").json()["data"][0]
    for unknown in ("gpt-image-2", "tiny", "a%2Fb", ".."):
        reply = httpx.get(f"{url}/v1/models/{unknown}")
        assert reply.status_code == 404
    refused = error(httpx.get(f"{url}/v1/models/gpt-image-2"))
    assert (refused["type"], refused["param"], refused["code"]) == ("NotFound", "model", "model_not_found")


@pytest.mark.parametrize("garment_id", ["no-such", "%2e%2e", "a%2Fb", "100%25", "a%00", "%F0%9F%91%97", "x" * 5000])
@pytest.mark.parametrize("suffix", ["", "/image", "/similar"])
def test_an_unknown_garment_is_not_found(url: str, garment_id: str, suffix: str) -> None:
    reply = httpx.get(f"{url}/v1/garments/{garment_id}{suffix}")
    assert (reply.status_code, error(reply)["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("query", "field", "code"),
    [
        ("category=dresses", "q", "missing_required_parameter"),
        ("q=&category=dresses", "q", "missing_required_parameter"),
        ("q=a&category=dresses&colour=red", "colour", "unknown_parameter"),
        ("q=a&category=dresses&attributes=red", "attributes", "invalid_value"),
        ("q=a&category=dresses&attribute=red", "attributes", "invalid_value"),
        *[
            (f"q=a&category=dresses&limit={number}", "limit", "invalid_value")
            for number in ("9" * 400, "9" * 5000, "1e400", "NaN", "-0", "1e1", "true", "%EF%BC%91", "-1", "0.5")
        ],
    ],
)
def test_a_wrong_query_is_refused_by_name(url: str, query: str, field: str, code: str) -> None:
    reply = httpx.get(f"{url}/v1/garments/search?{query}")
    assert (reply.status_code, error(reply)["field"], error(reply)["code"]) == (400, field, code)


def test_an_empty_parameter_counts_as_left_out(url: str) -> None:
    reply = httpx.get(f"{url}/v1/garments/search?q=a&category=dresses&limit=&attributes=&attribute=")
    assert [garment["id"] for garment in reply.json()["data"]] == ["red-dress"]


def test_keypoints_with_huge_numbers_are_refused(url: str) -> None:
    reply = edit(url, keypoints=f"[[{'9' * 400}, 1]{', [1, 2]' * 17}]")
    assert (reply.status_code, error(reply)["param"]) == (400, "keypoints")


def test_another_method_is_refused_with_those_that_the_address_has(url: str) -> None:
    reply = httpx.put(f"{url}/v1/garments/red-dress")
    assert (reply.status_code, error(reply)["code"]) == (405, "method_not_allowed")
    assert reply.headers["allow"] == "DELETE, GET, HEAD"
    assert httpx.get(f"{url}/v1/images/edits").headers["allow"] == "POST"


def test_the_document_names_what_is_sent_and_nothing_else(url: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    paths = document["paths"]
    statuses = {
        status for path in paths.values() for operation in path.values() for status in map(int, operation["responses"])
    }
    assert statuses == {200, 201, 204, *STATUSES} - {405}
    assert {"400", "408", "413", "415", "429", "503", "504"} <= set(paths["/v1/images/edits"]["post"]["responses"])
    assert set(paths["/v1/images/edits"]["post"]["responses"]["200"]["content"]) == {
        "application/json",
        "text/event-stream",
    }
    picture = paths["/v1/garments/{garment_id}/image"]["get"]["responses"]["200"]
    assert set(picture["content"]) == {"image/jpeg"}


# What OpenAI's client can send, one parameter at a time.

OURS = {"category": "dresses", "seed": 5}


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=PATIENCE_S, max_retries=0) as client:
        yield client


def upload(pixels: NDArray[np.uint8]) -> io.BytesIO:
    file = io.BytesIO(png(pixels))
    file.name = "photo.png"
    return file


@pytest.mark.parametrize(
    "parameters",
    [
        {"background": "opaque"},
        {"background": None, "model": None, "n": None, "quality": None, "size": None, "output_format": None},
        {"complexity": "high"},
        {"input_fidelity": "high"},
        {"n": 2},
        {"output_format": "jpeg", "output_compression": 50},
        {"output_format": "png"},
        {"partial_images": 2},
        {"quality": "low"},
        {"response_format": "b64_json"},
        {"safety_identifier": "shopper", "user": "shopper"},
        {"size": "auto"},
        {"size": "60x80"},
        {"stream": False},
        {"extra_body": OURS | {"moderation": "low", "steps": 1}},
        {"extra_body": OURS | {"seed": "", "keypoints": "", "steps": 1}},
    ],
    ids=str,
)
def test_a_parameter_that_can_be_obeyed_is_taken(client: openai.OpenAI, parameters: dict[str, Any]) -> None:
    asked = {"extra_body": OURS | {"steps": 1}} | parameters
    reply = client.images.edit(image=upload(photo()), mask=upload(mask()), prompt="red dress", **asked)
    assert reply.data is not None and len(reply.data) == (parameters.get("n") or 1)


@pytest.mark.parametrize(
    ("parameters", "param", "code"),
    [
        ({"background": "transparent"}, "background", "unsupported_value"),
        ({"frame_count": 4}, "frame_count", "unknown_parameter"),
        ({"frame_duration_ms": 100}, "frame_duration_ms", "unknown_parameter"),
        ({"image": "two photos"}, "image", "unsupported_value"),
        ({"markup": "a photo"}, "markup", "unknown_parameter"),
        ({"model": "gpt-image-2"}, "model", "model_not_found"),
        ({"n": 11}, "n", "invalid_value"),
        ({"output_compression": 50}, "output_compression", "invalid_value"),
        ({"output_format": "gif"}, "output_format", "unsupported_value"),
        ({"partial_images": -1}, "partial_images", "invalid_value"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"quality": "max"}, "quality", "invalid_value"),
        ({"response_format": "url"}, "response_format", "unsupported_value"),
        ({"size": "1024x1024"}, "size", "unsupported_value"),
        ({"stream": True, "n": 2}, "n", "unsupported_value"),
        ({"svg": {"model": "a"}}, "svg[model]", "unknown_parameter"),
    ],
    ids=str,
)
def test_a_parameter_that_cannot_be_obeyed_is_named(
    client: openai.OpenAI, parameters: dict[str, Any], param: str, code: str
) -> None:
    files = {"two photos": [upload(photo()), upload(photo())], "a photo": upload(photo())}
    changes = {name: files.get(value, value) if isinstance(value, str) else value for name, value in parameters.items()}
    asked: dict[str, Any] = {"image": upload(photo()), "mask": upload(mask()), "prompt": "red dress"} | changes
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.edit(**asked, extra_body=OURS)
    assert (refused.value.param, refused.value.code) == (param, code)


def test_its_models_can_be_listed_and_retrieved(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert client.models.retrieve(model.id) == model
    with pytest.raises(openai.NotFoundError) as unknown:
        client.models.retrieve("gpt-image-2")
    assert (unknown.value.param, unknown.value.code) == ("model", "model_not_found")


@pytest.mark.slow
def test_schemathesis_finds_nothing(url: str) -> None:
    command = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(HERE / "schemathesis.toml")]
    command += ["run", f"{url}/openapi.json", "--checks", "all", "--max-examples", "30", "--seed", "1"]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "tests.serve.schemathesis_hooks", "PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
