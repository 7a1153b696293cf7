"""Holds the whole graph, on a real Ray, to the pipeline's pictures and to its manners over HTTP."""

import asyncio
import base64
import io
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from ray import serve as ray_serve

from fashion_rag.pipeline import Pipeline
from fashion_rag.request import EditRequest, Template
from serve import app
from serve.config import ServeConfig
from serve.schemas import parse_keypoints
from tests.serve.pictures import SIZE, huge_png, mask, photo, png

FORM = {"prompt": "red dress", "category": "dresses", "seed": 5}
POINTS = [[20 + index, 4 * index + 1] for index in range(18)]
PATIENCE_S = 120.0
# Long enough for a test to look in; the tiny bundle's schedule has room for a few more.
MANY_STEPS = 900


@pytest.fixture(scope="module")
def url(tiny_bundle: Path, tiny_catalogue: Path) -> Iterator[str]:
    """Where the graph of the tiny bundle answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app.run(str(tiny_bundle), str(tiny_catalogue), port=port, blocking=False)
    yield f"http://127.0.0.1:{port}"
    app.stop()


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path, tiny_catalogue: Path) -> Iterator[Pipeline]:
    threads = torch.get_num_threads()
    # As many as a replica has: sums may differ in the last digit otherwise.
    torch.set_num_threads(1)
    yield Pipeline.load(tiny_bundle, tiny_catalogue)
    torch.set_num_threads(threads)


def form(**changes: Any) -> dict[str, Any]:
    """The arguments of an edit's post; `changes` replace parts of the form, None leaves one out."""
    parts = {"image": png(photo()), "mask": png(mask())} | FORM | changes
    files = {name: parts.pop(name) for name in ("image", "mask")}
    return {
        "files": {name: content for name, content in files.items() if content is not None},
        "data": {name: value for name, value in parts.items() if value is not None},
    }


def edit(url: str, **changes: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/images/edits", timeout=PATIENCE_S, **form(**changes))


def picture(reply: httpx.Response) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(reply.raise_for_status().json()["data"][0]["b64_json"]))))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_garments": 0},
        {"num_garments": 3, "category": "upper_body", "keypoints": json.dumps(POINTS)},
        {"garment_ids": ["blue-dress", "red-shirt"], "template": "caption_and_garments"},
        {"template": "caption", "guidance_scale": 1.0, "steps": 2},
    ],
)
def test_the_picture_is_the_pipelines(url: str, pipeline: Pipeline, changes: dict[str, Any]) -> None:
    asked = FORM | {"num_garments": 1} | changes
    keypoints = asked.get("keypoints")
    expected = pipeline(
        EditRequest(
            image=photo(),
            mask=mask(),
            prompt=asked["prompt"],
            category=asked["category"],
            keypoints=keypoints and parse_keypoints(keypoints, SIZE),
            num_garments=asked["num_garments"],
            garment_ids=tuple(asked.get("garment_ids", ())),
            template=Template(asked.get("template", "garments")),
            seed=asked["seed"],
            num_inference_steps=asked.get("steps", pipeline.manifest.num_inference_steps),
            guidance_scale=asked.get("guidance_scale", pipeline.manifest.guidance_scale),
        )
    )
    reply = edit(url, **changes)
    assert np.array_equal(picture(reply), expected.image)
    assert [garment["id"] for garment in reply.json()["garments"]] == list(expected.garment_ids)
    assert reply.json()["seed"] == 5
    assert set(reply.json()["timings_ms"]) == set(expected.timings_s)


def test_the_seed_makes_the_picture(url: str) -> None:
    assert not np.array_equal(picture(edit(url, seed=1)), picture(edit(url, seed=2)))
    drawn = edit(url, seed=None)
    assert np.array_equal(picture(edit(url, seed=drawn.json()["seed"])), picture(drawn))


def test_edits_at_the_same_time_do_not_mix(url: str) -> None:
    seeds = [11, 12, 11, 12]
    alone = {seed: picture(edit(url, seed=seed)) for seed in set(seeds)}
    with ThreadPoolExecutor(len(seeds)) as pool:
        together = list(pool.map(lambda seed: picture(edit(url, seed=seed)), seeds))
    assert all(np.array_equal(shown, alone[seed]) for shown, seed in zip(together, seeds, strict=True))


WRONG = [
    ({"image": None}, "image"),
    ({"image": b"no picture"}, "image"),
    ({"image": b""}, "image"),
    ({"image": png(photo())[:-200]}, "image"),
    ({"image": huge_png()}, "image"),
    ({"mask": None}, "mask"),
    ({"mask": huge_png()}, "mask"),
    ({"mask": png(np.zeros(SIZE, np.uint8))}, "mask"),
    ({"mask": png(mask()[:-1])}, "mask"),
    ({"prompt": None}, "prompt"),
    ({"prompt": " "}, "prompt"),
    ({"category": "hats"}, "category"),
    ({"num_garments": 4}, "num_garments"),
    ({"num_garments": "two"}, "num_garments"),
    ({"steps": 0}, "steps"),
    ({"steps": -1}, "steps"),
    ({"guidance_scale": "nan"}, "guidance_scale"),
    ({"seed": -1}, "seed"),
    ({"template": "rhyme"}, "template"),
    ({"keypoints": "[[1, 2]]"}, "keypoints"),
    ({"garment_ids": ["no-such-dress"]}, "garment_ids"),
    ({"garment_ids": ["../../red-dress"]}, "garment_ids"),
    ({"colour": "red"}, "colour"),
]


@pytest.mark.parametrize(("changes", "field"), WRONG, ids=[f"{field}-{i}" for i, (_, field) in enumerate(WRONG)])
def test_wrong_input_is_refused_by_name(url: str, changes: dict[str, Any], field: str) -> None:
    reply = edit(url, **changes)
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["field"]) == (400, "InvalidRequest", field)
    assert error["message"].startswith(f"{field}: ")
    assert edit(url, steps=1).status_code == 200


def test_a_body_too_large_is_refused(url: str) -> None:
    reply = edit(url, image=bytes(app.MAX_BODY_BYTES))
    assert reply.status_code == 413
    assert "body" in reply.json()["error"]["message"]


def test_the_request_id_comes_back(url: str) -> None:
    reply = httpx.post(f"{url}/v1/images/edits", headers={"x-request-id": "request-7"}, timeout=PATIENCE_S, **form())
    assert reply.headers.get_list("x-request-id") == ["request-7"]


def test_health_and_readiness(url: str) -> None:
    assert httpx.get(f"{url}/healthz").status_code == 200
    ready = httpx.get(f"{url}/readyz", timeout=PATIENCE_S)
    assert (ready.status_code, set(ready.json().values())) == (200, {True})


def test_a_garments_picture_is_served_by_id_only(url: str, pipeline: Pipeline) -> None:
    assert pipeline.catalogue is not None
    reply = httpx.get(f"{url}/v1/garments/red-dress/image")
    assert reply.headers["content-type"] == "image/png"
    assert reply.content == pipeline.catalogue.get("red-dress").image_path.read_bytes()
    for unknown in ("no-such-dress", "..%2Fred-dress", "%2Fetc%2Fpasswd"):
        reply = httpx.get(f"{url}/v1/garments/{unknown}/image")
        assert (reply.status_code, reply.json()["error"]["type"]) == (404, "NotFound")


def test_unknown_routes_answer_in_the_same_form(url: str) -> None:
    assert httpx.get(f"{url}/v1/nothing").json()["error"]["type"] == "NotFound"
    assert httpx.get(f"{url}/v1/images/edits").json()["error"]["type"] == "MethodNotAllowed"


@asynccontextmanager
async def long_edits(url: str, count: int) -> AsyncIterator[None]:
    """So many edits of many steps, all in the denoiser; their callers leave at the end of the block."""
    async with httpx.AsyncClient(timeout=None) as client:
        posts = [
            asyncio.create_task(client.post(f"{url}/v1/images/edits", **form(steps=MANY_STEPS))) for _ in range(count)
        ]
        await until(lambda num_running, _: num_running == count)
        yield
        for post in posts:
            post.cancel()
        await asyncio.wait(posts)


async def until(reached: Callable[[int, int], bool]) -> int:
    """The steps done so far, once the edits in the denoiser and the steps done are as `reached` wants them."""
    denoiser = ray_serve.get_deployment_handle("Denoiser", app.APP_NAME)
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        num_running, num_steps = await asyncio.to_thread(lambda: denoiser.progress.remote().result())
        if reached(num_running, num_steps):
            return int(num_steps)
        await asyncio.sleep(0.05)
    pytest.fail("the denoiser never came to where it should")


def empty(num_running: int, _: int) -> bool:
    return num_running == 0


def test_a_caller_that_leaves_ends_the_denoising(url: str) -> None:
    async def leave() -> int:
        before = await until(empty)
        async with long_edits(url, 1):
            await until(lambda _, num_steps: num_steps > before)
        return await until(empty) - before

    assert 0 < asyncio.run(leave()) < MANY_STEPS


def test_a_full_server_refuses_and_recovers(url: str) -> None:
    async def fill() -> httpx.Response:
        async with long_edits(url, ServeConfig.max_edits):
            return await asyncio.to_thread(edit, url)

    refused = asyncio.run(fill())
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "Overloaded")
    assert int(refused.headers["retry-after"]) == ServeConfig.retry_after_s
    asyncio.run(until(empty))
    assert edit(url).status_code == 200


def test_an_edit_past_its_deadline_is_ended(url: str, tiny_bundle: Path, tiny_catalogue: Path) -> None:
    config = ServeConfig(str(tiny_bundle), str(tiny_catalogue))
    ray_serve.run(app.build(replace(config, deadline_s=0.5)), name=app.APP_NAME)
    try:
        late = edit(url, steps=MANY_STEPS)
        assert (late.status_code, late.json()["error"]["type"]) == (504, "DeadlineExceeded")
        asyncio.run(until(empty))
    finally:
        ray_serve.run(app.build(config), name=app.APP_NAME)
