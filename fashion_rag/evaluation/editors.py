"""Edits the samples of an evaluation, several at a time, with the pipeline or a server. `edits` calls it."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Protocol
from urllib.parse import quote

import httpx
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fashion_rag.catalogue.garments import Garment
from fashion_rag.catalogue.retrieve import retrieve_many
from fashion_rag.data.finish import finish
from fashion_rag.data.image import open_image
from fashion_rag.errors import InvalidRequest
from fashion_rag.pipeline import (
    Conditioning,
    Person,
    Pipeline,
    condition,
    decode,
    denoise,
    encode,
    pseudo_words,
)
from fashion_rag.request import CompleteRequest, EditRequest

# A server that has no room says so and when to come back.
BUSY = (429, 503)
MAX_TRIES = 100


@dataclass(frozen=True, eq=False)
class Edited:
    """An edited photo, uint8 [H, W, 3] at its own size, and the ids of the garments in it, best first."""

    picture: NDArray[np.uint8]
    garment_ids: tuple[str, ...]


class Editor(Protocol):
    """What an evaluation needs to have photos edited."""

    def edit(self, requests: Sequence[EditRequest], garments: Sequence[Sequence[Garment]] | None) -> list[Edited]:
        """Return the edit of each request in order. The garments of each, where given, stand in for retrieval."""

    def garment_picture(self, garment_id: str) -> Image.Image:
        """Return the RGB picture of a garment that retrieval found."""


@torch.inference_mode()
def edit_together(
    pipeline: Pipeline, requests: Sequence[CompleteRequest], words: Sequence[Tensor | None]
) -> NDArray[np.uint8]:
    """Return the decoded pictures [B, H, W, 3], uint8, of requests that share steps, guidance and shortcuts.

    The pictures are not yet put back into the photos. Each equals that of the request alone, within the rounding of
    float32. words: the pseudo-words [n, P, D] of each request, or None.
    """
    encoded = encode(pipeline.vae, requests, pipeline.manifest, pipeline.device)
    latents = torch.cat([latents for latents, _ in encoded])
    people = [person for _, person in encoded]
    person = Person(
        mask=torch.cat([person.mask for person in people]),
        masked_image_latents=torch.cat([person.masked_image_latents for person in people]),
        pose_map=torch.cat([person.pose_map for person in people]),
    )
    conditionings = condition(pipeline.prompt_encoder, requests, words)
    conditioning = Conditioning(
        prompt_embeds=torch.cat([prompt.prompt_embeds for prompt in conditionings]),
        negative_prompt_embeds=torch.cat([prompt.negative_prompt_embeds for prompt in conditionings]),
    )
    first = requests[0]
    steps, scale, shortcuts = first.num_inference_steps, first.guidance_scale, first.shortcuts
    *_, latents = denoise(*pipeline.denoiser(shortcuts), latents, person, conditioning, steps, scale, shortcuts)
    return decode(pipeline.vae, latents)


@dataclass(frozen=True)
class PipelineEditor:
    """Edits with a pipeline of this process, all requests of a call in one batch."""

    pipeline: Pipeline

    @torch.inference_mode()
    def edit(self, requests: Sequence[EditRequest], garments: Sequence[Sequence[Garment]] | None) -> list[Edited]:
        """Return the edits as `Editor.edit`. Raises InvalidRequest for a request that cannot be edited."""
        pipeline = self.pipeline
        complete = [completed.request for completed in pipeline.complete(requests, garments)]
        if garments is None:
            garments = []
            for matches in retrieve_many(pipeline.catalogue, complete):
                garments.append([match.garment for match in matches])
        words = [pseudo_words(pipeline.garment_encoder, worn) for worn in garments]
        pictures = edit_together(pipeline, complete, words)
        return [
            Edited(finish(request, picture), tuple(garment.id for garment in worn))
            for request, picture, worn in zip(complete, pictures, garments, strict=True)
        ]

    def garment_picture(self, garment_id: str) -> Image.Image:
        """Return the picture of a garment of the pipeline's catalogue."""
        if self.pipeline.catalogue is None:
            raise InvalidRequest("catalogue", None, "must be the one that the edits were made with")
        return self.pipeline.catalogue.get(garment_id).image()


@dataclass(frozen=True)
class ServerEditor:
    """Edits with a server that has this project's HTTP interface, all requests of a call at once.

    client: knows the server's URL and an API key. Garments that stand in for retrieval are sent by id, so the server's
    catalogue must have them. The methods raise InvalidRequest if the server does not answer or refuses; its field is
    "image" if the server says that the photo is at fault, else "server".
    """

    client: httpx.Client

    def edit(self, requests: Sequence[EditRequest], garments: Sequence[Sequence[Garment]] | None) -> list[Edited]:
        """Return the edits as `Editor.edit`."""
        given: Sequence[Sequence[Garment]] = [()] * len(requests) if garments is None else garments
        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(self._edit, requests, given))

    def garment_picture(self, garment_id: str) -> Image.Image:
        """Return the picture of a garment of the server's catalogue."""
        reply = self._answer(partial(self.client.get, f"/v1/garments/{quote(garment_id, safe='')}/image"))
        return open_image(reply.content)

    def _edit(self, request: EditRequest, garments: Sequence[Garment]) -> Edited:
        fields = {
            "prompt": request.prompt,
            "category": request.category,
            "num_garments": request.num_garments,
            "garment_ids": [garment.id for garment in garments],
            "template": request.template.value,
            "seed": request.seed,
            "steps": request.num_inference_steps,
            "guidance_scale": request.guidance_scale,
        } | asdict(request.shortcuts)
        if request.keypoints is not None:
            fields["keypoints"] = json.dumps(request.keypoints.tolist())
        files = {"image": _png(request.image)}
        if request.mask is None:
            fields["mask_type"] = request.mask_type
        else:
            files["mask"] = _png(request.mask * np.uint8(255))
        reply = self._answer(partial(self.client.post, "/v1/images/edits", data=fields, files=files)).json()
        picture = open_image(base64.b64decode(reply["data"][0]["b64_json"]))
        return Edited(np.asarray(picture), tuple(garment["id"] for garment in reply["garments"]))

    def _answer(self, ask: partial[httpx.Response]) -> httpx.Response:
        """Return the reply to a request, which is repeated while the server is busy."""
        url = str(self.client.base_url)
        for _ in range(MAX_TRIES):
            try:
                reply = ask()
            except httpx.HTTPError as error:
                raise InvalidRequest("server", url, f"must answer: {error!r}") from error
            if reply.status_code not in BUSY:
                break
            time.sleep(float(reply.headers.get("retry-after", 1)))
        if reply.status_code == 400 and reply.json()["error"]["param"] == "image":
            raise InvalidRequest("image", "a photo", reply.json()["error"]["message"])
        if reply.status_code != 200:
            raise InvalidRequest("server", url, f"must answer; it said {reply.status_code}: {reply.text[:300]}")
        return reply


def _png(pixels: NDArray[np.uint8]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()
