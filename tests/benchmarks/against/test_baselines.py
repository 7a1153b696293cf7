"""Tests that the baselines make the pipeline's pictures: only the ways of serving edits are to differ."""

import asyncio
import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.against.baselines.batched import edit_groups
from benchmarks.against.baselines.eager import Editor, build
from fashion_rag.person.completion import CategoryChoice, Found
from fashion_rag.pipeline import Pipeline
from fashion_rag.request import EditRequest, Window
from serve.edits import EditedPhoto
from tests.serve.pictures import mask, photo, png

ROUNDING = 2


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path, tiny_catalogue: Path) -> Iterator[Pipeline]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Pipeline.load(tiny_bundle, tiny_catalogue)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def editor(tiny_bundle: Path, tiny_catalogue: Path) -> Editor:
    return Editor.load(tiny_bundle, str(tiny_catalogue))


def request(**changes: Any) -> EditRequest:
    keypoints = np.random.default_rng(0).uniform(5, 55, (18, 2))
    plain = EditRequest(
        image=photo(),
        mask=mask(),
        prompt="red dress",
        category="dresses",
        keypoints=keypoints,
        seed=5,
        num_inference_steps=4,
    )
    return replace(plain, **changes)


def apart(pixels: NDArray[np.uint8], others: NDArray[np.uint8]) -> int:
    assert pixels.shape == others.shape
    return int(np.abs(pixels.astype(int) - others).max())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"guidance_scale": 1.0},
        {"num_garments": 0},
        {"garment_ids": ("red-dress", "blue-dress")},
        {"keypoints": None},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_an_eager_edit_is_the_pipeline_s(editor: Editor, pipeline: Pipeline, changes: dict[str, Any]) -> None:
    asked = request(**changes)
    (edited,) = editor([asked])
    wanted = pipeline(asked)
    assert apart(edited.image, wanted.image) <= ROUNDING
    assert tuple(garment.id for garment in edited.garments) == wanted.garment_ids


def test_pictures_tell_requests_apart(pipeline: Pipeline) -> None:
    plain = pipeline(request()).image
    for changes in ({"seed": 6}, {"num_inference_steps": 3}, {"guidance_scale": 1.0}, {"keypoints": None}):
        assert apart(plain, pipeline(request(**changes)).image) > ROUNDING, changes


def test_each_edit_of_a_batch_is_the_pipeline_s(editor: Editor, pipeline: Pipeline) -> None:
    batch = [
        request(),
        request(num_inference_steps=2, seed=1),
        request(prompt="blue dress", seed=2),
        request(guidance_scale=1.0, category="upper_body", num_garments=2),
    ]
    for asked, edited in zip(batch, edit_groups(editor, batch), strict=True):
        assert apart(edited.image, pipeline(asked).image) <= ROUNDING


def test_a_batch_takes_a_loop_for_each_number_of_steps_and_guidance() -> None:
    loops = []

    def editor(requests: Sequence[EditRequest]) -> list[EditedPhoto]:
        loops.append([request.seed for request in requests])
        found = Found(CategoryChoice("dresses"), Window(0, 0, 64, 48), None, None)
        return [EditedPhoto(request.image, (), found, {"seed": request.seed}, 0.0) for request in requests]

    batch = [
        request(seed=0),
        request(seed=1, num_inference_steps=2),
        request(seed=2),
        request(seed=3, guidance_scale=2.0),
    ]
    assert [edited.timings_s["seed"] for edited in edit_groups(editor, batch)] == [0, 1, 2, 3]
    assert loops == [[0, 2], [1], [3]]


def test_the_server_answers_as_ours(editor: Editor, pipeline: Pipeline) -> None:
    form = {"prompt": "red dress", "category": "dresses", "seed": "5", "steps": "4", "n": "2"}
    files = {"image": png(photo()), "mask": png(mask())}

    async def post(**changes: str) -> httpx.Response:
        transport = httpx.ASGITransport(build(editor))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.post("/v1/images/edits", data=form | changes, files=files)

    reply = asyncio.run(post()).raise_for_status().json()
    for data, seed in zip(reply["data"], (5, 6), strict=True):
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["b64_json"]))).convert("RGB"))
        wanted = pipeline(request(keypoints=None, seed=seed, guidance_scale=pipeline.manifest.guidance_scale)).image
        assert apart(shown, wanted) <= ROUNDING
        assert data["seed"] == seed
    assert reply["garments"][0]["id"] == pipeline(request()).garment_ids[0]
    refused = asyncio.run(post(category="hats"))
    assert refused.status_code == 400
    assert refused.json()["error"]["field"] == "category"
