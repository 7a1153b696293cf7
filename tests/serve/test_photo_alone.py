"""Tests a real graph with edits of a photo and a sentence: it must find what the pipeline finds.

The demo's bundle is served, because networks of random weights see nobody in a photo.
"""

import asyncio
import base64
import io
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from ray import serve as ray_serve
from ray.util.state import list_actors

from fashion_rag.demo.world.photos import sample_photo
from fashion_rag.errors import InvalidRequest
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.pipeline import Pipeline
from fashion_rag.request import EditRequest
from serve.config import DenoiserSettings, IngressSettings, ServeConfig
from serve.graph import build
from tests.serve.client import PATIENCE_S, decoded, exported, picture, same, total
from tests.serve.pictures import png
from tests.serve.test_bad_days import dashboard
from tests.tiny import make_tiny_catalogue
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

NAME = "photos"
PROMPTS = ("a green dress", "a red shirt", "black trousers")
STEPS = 2
NUM_PHOTOS = 12
# Long enough for a test to look in.
MANY_STEPS = 900
FOUND_STAGES = {"category", "parse", "retrieve", "condition", "encode", "denoise", "decode"}


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_catalogue(tmp_path_factory.mktemp("photos") / "catalogue", DEMO_BUNDLE)


@pytest.fixture(scope="module")
def photos_url(url: str, catalogue: Path) -> Iterator[str]:
    """Yield the URL of a graph of the demo's bundle, beside the graph of the other tests."""
    config = ServeConfig(
        str(DEMO_BUNDLE),
        str(catalogue),
        backend="torch",
        replica_cpus=0.05,
        ingress=IngressSettings(deadline_s=3600.0, max_edits=100, max_edits_per_key=100),
        denoiser=DenoiserSettings(max_waiting=100),
    )
    ray_serve.run(build(config), name=NAME, route_prefix=f"/{NAME}")
    yield f"{url}/{NAME}"
    ray_serve.delete(NAME)


@pytest.fixture(scope="module")
def demo_pipeline(catalogue: Path) -> Iterator[Pipeline]:
    threads = torch.get_num_threads()
    # With as many threads as a replica has, because sums may differ in the last digit otherwise.
    torch.set_num_threads(1)
    yield Pipeline.load(DEMO_BUNDLE, catalogue)
    torch.set_num_threads(threads)


def drawn(seed: int) -> NDArray[np.uint8]:
    """Return a drawn photo of any shape, with a whole person, with a part of one, or with nobody."""
    return sample_photo(np.random.default_rng([7, seed])).image


def edit(url: str, image: NDArray[np.uint8], **fields: Any) -> httpx.Response:
    asked = {"prompt": PROMPTS[0], "seed": 5, "steps": STEPS} | fields
    return httpx.post(f"{url}/v1/images/edits", files={"image": png(image)}, data=asked, timeout=PATIENCE_S)


def request(image: NDArray[np.uint8], **fields: Any) -> EditRequest:
    asked: dict[str, Any] = {"prompt": PROMPTS[0], "seed": 5, "num_inference_steps": STEPS, "guidance_scale": 3.0}
    return EditRequest(image=image, **asked | fields)


@pytest.fixture(scope="module")
def whole_person(demo_pipeline: Pipeline) -> NDArray[np.uint8]:
    """Return the first drawn photo that has what all the prompts ask for."""
    for seed in range(100):
        try:
            demo_pipeline.complete([request(drawn(seed), prompt=prompt) for prompt in PROMPTS])
        except InvalidRequest:
            continue
        return drawn(seed)
    pytest.fail("none of the photos shows a whole person")


def num_read() -> int:
    """Return how many photos the parser has read."""
    return int(ray_serve.get_deployment_handle("Parser", NAME).num_read.remote().result())


def test_photo_and_sentence_have_the_pipelines_picture(photos_url: str, demo_pipeline: Pipeline) -> None:
    outcomes = []
    for seed in range(NUM_PHOTOS):
        prompt = PROMPTS[seed % len(PROMPTS)]
        reply = edit(photos_url, drawn(seed), prompt=prompt)
        try:
            wanted = demo_pipeline(request(drawn(seed), prompt=prompt))
        except InvalidRequest as error:
            refused = reply.json()["error"]
            assert (reply.status_code, refused["param"], refused["message"]) == (400, error.field, str(error))
            outcomes.append("refused")
            continue
        assert same(picture(reply), wanted.image), seed
        body = reply.json()
        assert (body["category"], body["warnings"]) == (wanted.category, list(wanted.warnings))
        assert body["category_confidence"] == pytest.approx(wanted.category_confidence, abs=1e-3)
        assert set(body["timings_ms"]) == FOUND_STAGES
        outcomes.append("edited")
    # The photos are drawn so that both occur.
    assert outcomes.count("edited") >= NUM_PHOTOS / 3
    assert "refused" in outcomes


def test_a_mask_alone_is_that_of_the_edit(
    photos_url: str, demo_pipeline: Pipeline, whole_person: NDArray[np.uint8]
) -> None:
    for mask_type in ("bounding_box", "mask"):
        fields = {"category": "upper_body", "mask_type": mask_type}
        files = {"image": png(whole_person)}
        reply = httpx.post(f"{photos_url}/v1/images/masks", files=files, data=fields, timeout=PATIENCE_S)
        body = reply.raise_for_status().json()
        asked: dict[str, Any] = fields
        ((complete, _),) = demo_pipeline.complete([request(whole_person, **asked)])
        mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(body["b64_json"]))))
        assert np.array_equal(mask != 0, complete.mask != 0)
        assert complete.keypoints is not None
        assert np.abs(np.array(body["keypoints"]) - complete.keypoints).max() < 0.1
        assert body["window"] == complete.window._asdict()
        assert {"head", "hair"} <= {region["name"] for region in body["regions"]}
        assert 0.01 < sum(region["area"] for region in body["regions"]) < 1


def test_what_is_given_is_not_looked_for(photos_url: str, whole_person: NDArray[np.uint8]) -> None:
    mask = np.zeros(whole_person.shape[:2], np.uint8)
    mask[10:40, 10:40] = 255
    points = str([[index + 1, 2 * index + 1] for index in range(18)])
    asked = {"prompt": "a dress", "category": "dresses", "keypoints": points, "steps": STEPS}
    files = {"image": png(whole_person), "mask": png(mask)}
    reply = httpx.post(f"{photos_url}/v1/images/edits", files=files, data=asked, timeout=PATIENCE_S)
    body = reply.raise_for_status().json()
    assert set(body["timings_ms"]) == FOUND_STAGES - {"category", "parse"}
    assert (body["category"], body["category_confidence"], body["warnings"]) == ("dresses", None, [])


def test_a_photo_is_read_once(photos_url: str, whole_person: NDArray[np.uint8]) -> None:
    # Another photo than those of the other tests, if only by the last bit.
    photo = whole_person ^ 1
    before = num_read()
    for prompt in PROMPTS:
        edit(photos_url, photo, prompt=prompt, n=3).raise_for_status()
    assert num_read() == before + 1
    wait_for(lambda: total(exported(), "fashion_rag_photo_lookups_total", outcome="hit") > 0)


def test_openais_client_sends_image_and_prompt(photos_url: str, whole_person: NDArray[np.uint8]) -> None:
    with openai.OpenAI(base_url=f"{photos_url}/v1", api_key="none", timeout=PATIENCE_S, max_retries=0) as client:
        reply = client.images.edit(image=("photo.png", png(whole_person)), prompt="a red shirt")
    assert reply.data is not None and reply.data[0].b64_json is not None
    changed = (decoded(reply.data[0].b64_json) != whole_person).any(axis=2)
    assert 0.01 < changed.mean() < 0.9


def parsers() -> list[int]:
    """Return the processes of the parser's replicas."""
    filters = [("class_name", "=", f"ServeReplica:{NAME}:Parser"), ("state", "=", "ALIVE")]
    return [actor.pid for actor in list_actors(dashboard(), filters=filters) if actor.pid]


@contextmanager
def stopped_parser() -> Iterator[int]:
    """Stop the parser's process while the block runs."""
    (pid,) = parsers()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def until_in_denoiser(count: int) -> int:
    """Wait until so many edits are in the denoiser; return its calls so far."""
    denoiser = ray_serve.get_deployment_handle("Denoiser", NAME)
    while True:
        num_edits, num_calls = await asyncio.to_thread(lambda: denoiser.progress.remote().result())
        if num_edits == count:
            return int(num_calls)
        await asyncio.sleep(0.02)


def test_a_caller_who_leaves_the_parser_costs_no_step(photos_url: str, whole_person: NDArray[np.uint8]) -> None:
    async def leave() -> int:
        before = await until_in_denoiser(0)
        async with httpx.AsyncClient(timeout=None) as client:
            asked = {"prompt": PROMPTS[0], "steps": MANY_STEPS}
            files = {"image": png(whole_person // 2)}
            post = asyncio.create_task(client.post(f"{photos_url}/v1/images/edits", files=files, data=asked))
            await until_in_denoiser(1)
            post.cancel()
            await asyncio.wait([post])
        return await until_in_denoiser(0) - before

    with stopped_parser():
        assert asyncio.run(leave()) == 0
    edit(photos_url, whole_person).raise_for_status()


def test_a_parser_that_is_killed_costs_no_edit(
    photos_url: str, demo_pipeline: Pipeline, whole_person: NDArray[np.uint8]
) -> None:
    # Photos of the other tests have been read before, and would cost the parser nothing.
    photo = whole_person ^ 2
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        with stopped_parser() as pid:
            posts = [pool.submit(edit, photos_url, photo, prompt=prompt) for prompt in PROMPTS]
            asyncio.run(until_in_denoiser(len(PROMPTS)))
            os.kill(pid, signal.SIGKILL)
        replies = [post.result() for post in posts]
    for reply, prompt in zip(replies, PROMPTS, strict=True):
        assert same(picture(reply), demo_pipeline(request(photo, prompt=prompt)).image)
