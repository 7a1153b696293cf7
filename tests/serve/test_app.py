"""Tests the whole graph on a real Ray: its pictures must be the pipeline's, and its replies must keep the API."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from ray import serve as ray_serve

from fashion_rag.pipeline import Pipeline
from serve import app
from serve.config import IngressSettings, ServeConfig
from serve.ingress import MAX_BODY_BYTES, Ingress
from serve.proxy.cors import ORIGINS_HEADER
from tests.serve.client import FORM, PATIENCE_S, decoded, edit, empty, expected, form, picture, same, until
from tests.serve.pictures import SIZE, huge_png, mask, photo, png
from tests.waiting import wait_for

POINTS = [[20 + index, 4 * index + 1] for index in range(18)]
# Long enough for a test to look in; the tiny bundle's schedule has room for a few more.
MANY_STEPS = 900


@contextmanager
def another_ingress(url: str, config: ServeConfig) -> Iterator[str]:
    """Run an ingress with another configuration for the same stages during the block; yield its URL."""
    names = [name for name in app.LOADS if name != "Ingress"]
    stages = {name.lower(): ray_serve.get_deployment_handle(name, app.APP_NAME) for name in names}
    ingress = Ingress.options(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=100)
    ray_serve.run(ingress.bind(config, stages), name="another", route_prefix="/another")
    try:
        yield f"{url}/another"
    finally:
        ray_serve.delete("another")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_garments": 0},
        {"num_garments": 3, "category": "upper_body", "keypoints": json.dumps(POINTS)},
        {"garment_ids": ["blue-dress", "red-shirt"], "template": "caption_and_garments"},
        {"garment_ids": ["red-dress", "red-dress"]},
        {"template": "caption", "guidance_scale": 1.0, "steps": 2},
        {"prompt": "red dress, with green dots", "num_chunks": 1},
    ],
)
def test_the_picture_is_the_pipelines(url: str, pipeline: Pipeline, changes: dict[str, Any]) -> None:
    reply = edit(url, **changes)
    assert same(picture(reply), expected(pipeline, **changes))
    body = reply.json()
    assert [garment["id"] for garment in body["garments"]] == changes.get(
        "garment_ids", [garment["id"] for garment in body["garments"]]
    )
    assert (body["seed"], body["size"]) == (5, f"{SIZE[1]}x{SIZE[0]}")
    assert set(body["timings_ms"]) == {"retrieve", "condition", "encode", "denoise", "decode"}


def test_the_seed_makes_the_picture(url: str) -> None:
    assert not same(picture(edit(url, seed=1)), picture(edit(url, seed=2)))
    drawn = edit(url, seed=None)
    assert np.array_equal(picture(edit(url, seed=drawn.json()["seed"])), picture(drawn))


def test_edits_at_the_same_time_do_not_mix(url: str, pipeline: Pipeline) -> None:
    """Edits that every stage has in one batch have the same pictures as in the pipeline."""
    asked = [
        {"seed": seed, "steps": 4 + seed % 3, "num_garments": seed % 4, "guidance_scale": 1.0 + seed % 2}
        for seed in range(12)
    ]
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda changes: picture(edit(url, **changes)), asked))
    for shown, changes in zip(together, asked, strict=True):
        assert same(shown, expected(pipeline, **changes)), changes


def test_presets_and_shortcuts_share_steps_and_do_not_mix(url: str, pipeline: Pipeline) -> None:
    presets = {name: preset for name, preset in IngressSettings().presets.items() if not preset.shortcuts.student}
    asked: list[dict[str, Any]] = [
        *({"preset": name, "seed": seed} for seed, name in enumerate(presets)),
        {"steps": 9, "solver": "dpmpp_2m", "guidance_end": 0.5},
        {"steps": 12, "cache_interval": 3, "guidance_start": 0.25},
        {"steps": 6, "solver": "unipc", "cache_interval": 2, "guidance_scale": 1},
        {"steps": 5},
    ]
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda changes: picture(edit(url, **changes)), asked))
    for shown, changes in zip(together, asked, strict=True):
        meant = {}
        if "preset" in changes:
            preset = presets[changes["preset"]]
            assert preset.guidance_scale is None
            meant = {"steps": preset.steps} | asdict(preset.shortcuts)
        assert same(shown, expected(pipeline, **meant | changes)), changes


def test_several_pictures_have_seeds_that_follow_each_other(url: str, pipeline: Pipeline) -> None:
    reply = edit(url, n=3, seed=7).raise_for_status().json()
    assert [data["seed"] for data in reply["data"]] == [7, 8, 9]
    for data in reply["data"]:
        assert same(decoded(data["b64_json"]), expected(pipeline, seed=data["seed"]))


def test_a_size_is_the_pictures(url: str) -> None:
    assert picture(edit(url, size="120x160")).shape == (160, 120, 3)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"image": None}, "image"),
    ({"image": b"no picture"}, "image"),
    ({"image": b""}, "image"),
    ({"image": png(photo())[:-200]}, "image"),
    ({"image": png(photo()[:1, :1])}, "image"),
    ({"image": huge_png()}, "image"),
    ({"mask": None}, "mask"),
    ({"mask": huge_png()}, "mask"),
    ({"mask": png(np.zeros(SIZE, np.uint8))}, "mask"),
    ({"mask": png(mask()[:-1])}, "mask"),
    ({"prompt": None}, "prompt"),
    ({"prompt": " "}, "prompt"),
    ({"prompt": "red " * 10_000}, "prompt"),
    ({"category": "hats"}, "category"),
    ({"num_garments": 4}, "num_garments"),
    ({"num_garments": "two"}, "num_garments"),
    ({"steps": 0}, "steps"),
    ({"steps": -1}, "steps"),
    ({"guidance_scale": "nan"}, "guidance_scale"),
    ({"seed": -1}, "seed"),
    ({"n": 0}, "n"),
    ({"n": 2, "stream": "true"}, "n"),
    ({"size": "big"}, "size"),
    ({"response_format": "url"}, "response_format"),
    ({"deadline_s": 1e9}, "deadline_s"),
    ({"preset": "best"}, "preset"),
    ({"solver": "euler"}, "solver"),
    ({"guidance_start": 2}, "guidance_start"),
    ({"guidance_start": 0.5, "guidance_end": 0.4}, "guidance_end"),
    ({"cache_interval": 0}, "cache_interval"),
    ({"cache_interval": "often"}, "cache_interval"),
    ({"model": "gpt-image-1"}, "model"),
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


def test_wrong_input_to_a_stream_is_refused_by_its_status_too(url: str) -> None:
    for changes, field in (({"steps": 0}, "steps"), ({"garment_ids": ["no-such-dress"]}, "garment_ids")):
        reply = edit(url, stream="true", **changes)
        assert (reply.status_code, reply.json()["error"]["field"]) == (400, field)


def test_a_body_too_large_is_refused(url: str) -> None:
    reply = edit(url, image=bytes(MAX_BODY_BYTES))
    assert reply.status_code == 413
    assert "body" in reply.json()["error"]["message"]


def test_a_body_of_another_kind_is_refused(url: str) -> None:
    reply = httpx.post(f"{url}/v1/images/edits", json=FORM)
    assert reply.status_code == 415


def test_the_request_id_comes_back(url: str) -> None:
    reply = edit(url, headers={"x-request-id": "request-7"})
    assert reply.headers.get_list("x-request-id") == ["request-7"]


def test_health_and_readiness(url: str) -> None:
    assert httpx.get(f"{url}/healthz").status_code == 200
    assert httpx.head(f"{url}/healthz").status_code == 200
    ready = httpx.get(f"{url}/readyz", timeout=PATIENCE_S)
    assert ready.status_code == 200
    assert ready.json() == {
        "stages": dict.fromkeys(("retriever", "parser", "conditioner", "denoiser", "vae"), True),
        "missing": [],
        "warnings": [],
    }


def test_a_deadline_too_short_for_the_default_edit_is_a_warning(url: str, config: ServeConfig) -> None:
    with another_ingress(url, replace(config, ingress=IngressSettings(deadline_s=0.001))) as another:
        ready = httpx.get(f"{another}/readyz", timeout=PATIENCE_S)
    assert ready.status_code == 200
    (warning,) = ready.json()["warnings"]
    assert "raise ingress.deadline_s and drain_s to" in warning


def test_pages_of_the_origins_that_the_graph_allows_may_use_it(url: str, config: ServeConfig) -> None:
    page = {"origin": "https://shop.example"}
    assert "access-control-allow-origin" not in edit(url, headers=page, steps=0).headers
    with another_ingress(url, replace(config, allow_origins=("https://shop.example",))) as another:
        assert httpx.get(f"{another}/readyz", timeout=PATIENCE_S).headers[ORIGINS_HEADER] == "https://shop.example"
        # The proxy asks again after a while.
        wait_for(lambda: "access-control-allow-origin" in edit(another, headers=page, steps=0).headers)


def test_garments_are_found_and_served_by_id_only(url: str, pipeline: Pipeline) -> None:
    assert pipeline.catalogue is not None
    reply = httpx.get(f"{url}/v1/garments/search", params={"q": "red dress", "category": "dresses", "limit": 2})
    matches = pipeline.catalogue.search("red dress", "dresses", 2)
    assert [garment["id"] for garment in reply.json()["data"]] == [match.garment.id for match in matches]
    assert [garment["score"] for garment in reply.json()["data"]] == [
        pytest.approx(match.score, abs=1e-6) for match in matches
    ]
    garment = httpx.get(f"{url}/v1/garments/red-dress").json()
    assert (garment["category"], garment["caption"]) == ("dresses", "red dress")
    reply = httpx.get(f"{url}{garment['image_url']}")
    assert reply.headers["content-type"] == "image/jpeg"
    assert reply.content == pipeline.catalogue.get("red-dress").picture.read_bytes()
    for unknown in ("no-such-dress", "..%2Fred-dress", "%2Fetc%2Fpasswd"):
        for path in (unknown, f"{unknown}/image"):
            reply = httpx.get(f"{url}/v1/garments/{path}")
            assert (reply.status_code, reply.json()["error"]["type"]) == (404, "NotFound")


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"category": "dresses"}, "q"),
        ({"q": "", "category": "dresses"}, "q"),
        ({"q": "red", "category": "hats"}, "category"),
        ({"q": "red", "category": "dresses", "limit": 0}, "limit"),
        ({"q": "red", "category": "dresses", "limit": "many"}, "limit"),
    ],
)
def test_a_wrong_search_is_refused_by_name(url: str, params: dict[str, Any], field: str) -> None:
    reply = httpx.get(f"{url}/v1/garments/search", params=params)
    assert (reply.status_code, reply.json()["error"]["field"]) == (400, field)


def test_the_interface_describes_itself(url: str, pipeline: Pipeline) -> None:
    assert [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]] == [pipeline.manifest.name]
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    form = paths["/v1/images/edits"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(FORM) | {"image", "mask"} <= set(form["properties"])
    assert httpx.get(f"{url}/docs").status_code == 200


def test_unknown_routes_answer_in_the_same_form(url: str) -> None:
    assert httpx.get(f"{url}/v1/nothing").json()["error"]["type"] == "NotFound"
    assert httpx.get(f"{url}/v1/images/edits").json()["error"]["type"] == "MethodNotAllowed"


@asynccontextmanager
async def long_edits(url: str, count: int) -> AsyncIterator[None]:
    """Keep so many edits of many steps in the denoiser during the block; their callers leave at its end."""
    async with httpx.AsyncClient(timeout=None) as client:
        posts = [
            asyncio.create_task(client.post(f"{url}/v1/images/edits", **form(steps=MANY_STEPS))) for _ in range(count)
        ]
        await until(lambda num_edits, _: num_edits == count)
        yield
        for post in posts:
            post.cancel()
        await asyncio.wait(posts)


@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_caller_that_leaves_ends_the_denoising(url: str, stream: str) -> None:
    async def leave() -> int:
        before = await until(empty)
        async with httpx.AsyncClient(timeout=None) as client:
            asked = form(steps=MANY_STEPS, stream=stream)
            post = asyncio.create_task(client.post(f"{url}/v1/images/edits", **asked))
            await until(lambda _, num_calls: num_calls > before)
            post.cancel()
            await asyncio.wait([post])
        return await until(empty) - before

    assert 0 < asyncio.run(leave()) < MANY_STEPS


def test_a_full_server_refuses_and_recovers(url: str, config: ServeConfig) -> None:
    async def fill() -> httpx.Response:
        async with long_edits(url, config.denoiser.max_rows // 2 + config.denoiser.max_waiting):
            return await asyncio.to_thread(edit, url)

    refused = asyncio.run(fill())
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "Overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    asyncio.run(until(empty))
    assert edit(url).status_code == 200


def test_an_edit_that_cannot_be_done_in_time_is_refused_before_its_first_step(url: str) -> None:
    before = asyncio.run(until(empty))
    # A tenth of a millisecond a step, which no machine does.
    late = edit(url, steps=MANY_STEPS, deadline_s=0.1)
    assert (late.status_code, late.json()["error"]["type"]) == (504, "DeadlineExceeded")
    assert asyncio.run(until(empty)) == before


def test_keys_and_their_limits(url: str, config: ServeConfig, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# shop\nsesame\n")
    settings = IngressSettings(max_edits=3, max_edits_per_key=2, retry_after_s=7)

    async def fill() -> httpx.Response:
        async with httpx.AsyncClient(timeout=None, headers={"authorization": "Bearer sesame"}) as client:
            posts = [
                asyncio.create_task(client.post(f"{url}/v1/images/edits", **form(steps=MANY_STEPS))) for _ in range(2)
            ]
            await until(lambda num_edits, _: num_edits == 2)
            refused = await client.post(f"{url}/v1/images/edits", **form())
            for post in posts:
                post.cancel()
            await asyncio.wait(posts)
        return refused

    with another_ingress(url, replace(config, api_keys=str(keys), ingress=settings)) as url:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "sesame"}):
            reply = edit(url, headers=headers)
            assert (reply.status_code, reply.json()["error"]["type"]) == (401, "Unauthorized")
            assert reply.headers["www-authenticate"] == "Bearer"
            assert httpx.get(f"{url}/v1/garments/red-dress", headers=headers).status_code == 401
        assert httpx.get(f"{url}/healthz").status_code == 200
        refused = asyncio.run(fill())
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "7")
        assert edit(url, headers={"authorization": "Bearer sesame"}, n=3).json()["error"]["field"] == "n"
        asyncio.run(until(empty))
        assert edit(url, headers={"authorization": "Bearer sesame"}, n=2).status_code == 200
