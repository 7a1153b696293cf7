"""Helpers of the tests of a running graph: they send edits, read replies, and ask the graph for its state."""

import asyncio
import base64
import io
import re
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import ray
from numpy.typing import NDArray
from PIL import Image
from ray import serve as ray_serve

from fashion_rag.data.pose import parse_keypoints
from fashion_rag.pipeline import Pipeline
from fashion_rag.request import EditRequest, Shortcuts, Template
from fashion_rag.sampling import SHORTCUT_OPTIONS
from serve import app
from tests.serve.pictures import SIZE, mask, photo, png

FORM = {"prompt": "red dress", "category": "dresses", "seed": 5}
PATIENCE_S = 120.0
# The server runs the networks by ONNX Runtime and in batches, the pipeline by PyTorch and alone. The last digits of
# their sums differ, so that a pixel may be rounded to the next level. The bicubic filter that enlarges to the photo's
# size has negative weights, which let a difference grow, and rounds once more. Other edits differ by far more.
ROUNDING = 2
CATALOGUE_KEY = "catalogue-key"


def form(**changes: Any) -> dict[str, Any]:
    """Return the arguments of an edit's post. `changes` replace fields of the form; None leaves a field out."""
    parts = {"image": png(photo()), "mask": png(mask())} | FORM | changes
    files = {name: parts.pop(name) for name in ("image", "mask")}
    return {
        "files": {name: content for name, content in files.items() if content is not None},
        "data": {name: value for name, value in parts.items() if value is not None},
    }


def edit(url: str, headers: dict[str, str] | None = None, **changes: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/images/edits", headers=headers, timeout=PATIENCE_S, **form(**changes))


def decoded(b64_json: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64_json))).convert("RGB"))


def picture(reply: httpx.Response) -> NDArray[np.uint8]:
    return decoded(reply.raise_for_status().json()["data"][0]["b64_json"])


def expected(pipeline: Pipeline, **changes: Any) -> NDArray[np.uint8]:
    """Return the picture that the pipeline makes of the same form."""
    asked = FORM | {"num_garments": 1} | changes
    keypoints = asked.get("keypoints")
    request = EditRequest(
        image=photo(),
        mask=mask(),
        prompt=asked["prompt"],
        category=asked["category"],
        keypoints=keypoints and parse_keypoints(keypoints, SIZE),
        num_garments=asked["num_garments"],
        garment_ids=tuple(asked.get("garment_ids", ())),
        num_chunks=asked.get("num_chunks"),
        template=Template(asked.get("template", "garments")),
        seed=asked["seed"],
        num_inference_steps=asked.get("steps", pipeline.manifest.num_inference_steps),
        guidance_scale=asked.get("guidance_scale", pipeline.manifest.guidance_scale),
        shortcuts=Shortcuts(**{name: asked[name] for name in SHORTCUT_OPTIONS if name in asked}),
    )
    return pipeline(request).image


def same(shown: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> bool:
    """Return whether two pictures are equal but for ROUNDING."""
    return shown.shape == wanted.shape and int(np.abs(shown.astype(int) - wanted).max()) <= ROUNDING


async def until(reached: Callable[[int, int], bool], patience_s: float = PATIENCE_S) -> int:
    """Wait until `reached` holds for the edits in the denoiser and the UNet calls so far; return the calls."""
    denoiser = ray_serve.get_deployment_handle("Denoiser", app.APP_NAME)
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        num_edits, num_calls = await asyncio.to_thread(lambda: denoiser.progress.remote().result())
        if reached(num_edits, num_calls):
            return int(num_calls)
        await asyncio.sleep(0.02)
    pytest.fail("the denoiser never came to where it should")


def empty(num_edits: int, _: int) -> bool:
    return num_edits == 0


def exported() -> str:
    """Return the metrics of this node, as Prometheus would read them."""
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    return httpx.get(
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=PATIENCE_S
    ).text


def total(text: str, name: str, **tags: str) -> float:
    """Return the sum of the series of this name that have these tags."""
    total = 0.0
    for labels, value in re.findall(rf"^ray_{name}{{(.*?)}} (\S+)$", text, re.MULTILINE):
        if all(f'{tag}="{wanted}"' in labels for tag, wanted in tags.items()):
            total += float(value)
    return total
