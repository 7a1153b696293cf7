"""The pipeline and a server as editors: the edits of a batch equal the same edits made alone."""

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from fashion_rag.errors import InvalidRequest
from fashion_rag.evaluation.editors import Edited, PipelineEditor, ServerEditor
from fashion_rag.evaluation.edits import EditFolder, EvaluationSettings
from fashion_rag.manifest import Manifest
from fashion_rag.pipeline import Pipeline
from fashion_rag.request import EditRequest
from serve.config import IngressSettings
from serve.http.edit_requests import edit_requests
from serve.http.forms import EditForm
from serve.http.multipart import read_form
from tests.serve.pictures import png


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path, tiny_catalogue: Path) -> Pipeline:
    return Pipeline.load(tiny_bundle, tiny_catalogue)


@pytest.fixture
def requests(tmp_path: Path, settings: EvaluationSettings, manifest: Manifest) -> list[EditRequest]:
    edits = EditFolder(tmp_path / "out", settings, manifest, limit=1)
    return [edits.request(edits.data[number], edits.mask(edits.data[number])) for number in edits.numbers]


@contextmanager
def stub(pipeline: Pipeline, busy: int = 0) -> Iterator[TestClient]:
    """Yield a client of a server that reads forms as the real one does and answers 503 to its first `busy` requests."""
    refusals = iter(range(busy))

    async def edit(http: Request) -> Response:
        if next(refusals, None) is not None:
            return JSONResponse({}, 503, headers={"Retry-After": "0"})
        form = await read_form(http, 2**24, EditForm, IngressSettings())
        (request,) = edit_requests(form, pipeline.manifest, IngressSettings(), "id", 0.0)
        result = pipeline(request)
        garments = [{"id": garment_id} for garment_id in result.garment_ids]
        return JSONResponse({"data": [{"b64_json": png_base64(result.image)}], "garments": garments})

    async def image(http: Request) -> Response:
        assert pipeline.catalogue is not None
        picture = pipeline.catalogue.get(http.path_params["garment_id"]).picture
        return Response(picture.read_bytes(), media_type="image/jpeg")

    routes = [
        Route("/v1/images/edits", edit, methods=["POST"]),
        Route("/v1/garments/{garment_id}/image", image),
    ]
    with TestClient(Starlette(routes=routes)) as client:
        yield client


def png_base64(pixels: np.ndarray) -> str:
    return base64.b64encode(png(pixels)).decode()


def check(edited: list[Edited], pipeline: Pipeline, requests: list[EditRequest]) -> None:
    for edit, request in zip(edited, requests, strict=True):
        alone = pipeline(request)
        assert edit.garment_ids == alone.garment_ids
        assert int(np.abs(edit.picture.astype(int) - alone.image).max()) <= 1


def test_the_pipelines_batch_is_what_its_edits_are_alone(pipeline: Pipeline, requests: list[EditRequest]) -> None:
    edited = PipelineEditor(pipeline).edit(requests, None)
    assert [len(edit.garment_ids) for edit in edited] == [1, 1, 1]
    check(edited, pipeline, requests)


def test_given_garments_stand_in_for_retrieval(pipeline: Pipeline, requests: list[EditRequest]) -> None:
    assert pipeline.catalogue is not None
    given = [pipeline.catalogue.get("red-dress"), pipeline.catalogue.get("blue-jeans")]
    (edited,) = PipelineEditor(pipeline).edit(requests[:1], [given])
    assert edited.garment_ids == ("red-dress", "blue-jeans")
    assert int(np.abs(edited.picture.astype(int) - pipeline(requests[0], given).image).max()) <= 1


def test_the_pipeline_shows_the_catalogues_garments(pipeline: Pipeline) -> None:
    red, green, blue = PipelineEditor(pipeline).garment_picture("red-dress").getpixel((24, 32))  # type: ignore[misc]
    assert red > 200 > 60 > max(green, blue)


def test_a_server_is_asked_for_the_same_edits(pipeline: Pipeline, requests: list[EditRequest]) -> None:
    with stub(pipeline) as client:
        editor = ServerEditor(client)
        check(editor.edit(requests, None), pipeline, requests)
        assert editor.garment_picture("red-dress").tobytes() == (
            PipelineEditor(pipeline).garment_picture("red-dress").tobytes()
        )


def test_garments_are_asked_for_by_id(pipeline: Pipeline, requests: list[EditRequest]) -> None:
    assert pipeline.catalogue is not None
    given = [pipeline.catalogue.get("red-dress"), pipeline.catalogue.get("blue-dress")]
    with stub(pipeline) as client:
        (edited,) = ServerEditor(client).edit(requests[:1], [given])
    assert edited.garment_ids == ("red-dress", "blue-dress")


def test_a_busy_server_is_asked_again(pipeline: Pipeline, requests: list[EditRequest]) -> None:
    with stub(pipeline, busy=2) as client:
        check(ServerEditor(client).edit(requests[:1], None), pipeline, requests[:1])


def test_a_refusal_is_told_in_the_servers_words(requests: list[EditRequest]) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(401, text="a key that is not known"))
    client = httpx.Client(base_url="http://server", transport=transport)
    with client, pytest.raises(InvalidRequest, match=r"server: got 'http://server/?'; .* 401: a key that is not known"):
        ServerEditor(client).edit(requests[:1], None)


def test_a_server_that_is_not_there_is_named(requests: list[EditRequest]) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    client = httpx.Client(base_url="http://server", transport=httpx.MockTransport(refuse))
    with client, pytest.raises(InvalidRequest, match=r"server: .*must answer: ConnectError"):
        ServerEditor(client).edit(requests[:1], None)


def test_a_server_finds_the_mask_that_is_not_sent(pipeline: Pipeline, requests: list[EditRequest]) -> None:
    sent: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.content)
        edited = png_base64(np.zeros((64, 48, 3), np.uint8))
        return httpx.Response(200, json={"data": [{"b64_json": edited}], "garments": []})

    client = httpx.Client(base_url="http://server", transport=httpx.MockTransport(answer))
    without = replace(requests[0], mask=None, keypoints=None, mask_type="mask")
    with client:
        ServerEditor(client).edit([without], None)
        ServerEditor(client).edit(requests[:1], None)
    names = [set(re.findall(rb' name="([a-z_]+)"', content)) for content in sent]
    assert names[0] - names[1] == {b"mask_type"} and names[1] - names[0] == {b"mask", b"keypoints"}


def test_a_photo_that_a_server_finds_nothing_in_is_at_fault(requests: list[EditRequest]) -> None:
    error = {"message": "image: got 'a photo with hair'; must show", "param": "image"}
    transport = httpx.MockTransport(lambda request: httpx.Response(400, json={"error": error}))
    client = httpx.Client(base_url="http://server", transport=transport)
    with client, pytest.raises(InvalidRequest, match="a photo with hair") as refused:
        ServerEditor(client).edit(requests[:1], None)
    assert refused.value.field == "image"
