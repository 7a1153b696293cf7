"""What edits the samples of an evaluation, several at a time: the pipeline here, or a server. `edits` calls it."""

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
from fashion_rag.request import EditRequest

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
        """Each request's edit, in their order; `garments`, where given, stand in for retrieval."""

    def garment_picture(self, garment_id: str) -> Image.Image:
        """The RGB picture of a garment that retrieval found."""


@torch.inference_mode()
def edit_together(
    pipeline: Pipeline, requests: Sequence[EditRequest], words: Sequence[Tensor | None]
) -> NDArray[np.uint8]:
    """The decoded pictures, uint8 [B, H, W, 3], of requests that share steps, guidance and shortcuts, not yet put back.

    words: each request's pseudo-words [n, P, D], or None. Within the rounding of float32 each is what it is alone.
    """
    encoded = encode(pipeline.vae, requests, pipeline.manifest, pipeline.device)
    latents = torch.cat([latents for latents, _ in encoded])
    people = [person for _, person in encoded]
    person = Person(
        torch.cat([one.mask for one in people]),
        torch.cat([one.masked_image_latents for one in people]),
        torch.cat([one.pose_map for one in people]),
    )
    read = condition(pipeline.prompt_encoder, requests, words)
    conditioning = Conditioning(
        torch.cat([one.prompt_embeds for one in read]), torch.cat([one.negative_prompt_embeds for one in read])
    )
    first = requests[0]
    steps, scale, shortcuts = first.num_inference_steps, first.guidance_scale, first.shortcuts
    *_, latents = denoise(pipeline.unet, pipeline.sampler, latents, person, conditioning, steps, scale, shortcuts)
    return decode(pipeline.vae, latents)


@dataclass(frozen=True)
class PipelineEditor:
    """Edits here, all requests of a call in one batch."""

    pipeline: Pipeline

    @torch.inference_mode()
    def edit(self, requests: Sequence[EditRequest], garments: Sequence[Sequence[Garment]] | None) -> list[Edited]:
        """As `Editor.edit`. Raises InvalidRequest for what cannot be edited."""
        pipeline = self.pipeline
        if garments is None:
            found = retrieve_many(pipeline.catalogue, requests)
            garments = [[match.garment for match in matches] for matches in found]
        words = [pseudo_words(pipeline.garment_encoder, worn) for worn in garments]
        pictures = edit_together(pipeline, requests, words)
        return [
            Edited(finish(request, picture), tuple(garment.id for garment in worn))
            for request, picture, worn in zip(requests, pictures, garments, strict=True)
        ]

    def garment_picture(self, garment_id: str) -> Image.Image:
        """As `Editor.garment_picture`, from the catalogue."""
        if self.pipeline.catalogue is None:
            raise InvalidRequest("catalogue", None, "must be the one that the edits were made with")
        return self.pipeline.catalogue.get(garment_id).image()


@dataclass(frozen=True)
class ServerEditor:
    """Asks a server that has this project's HTTP interface, for all edits of a call at once.

    client: knows the server's URL, and the key that it may ask for. Garments that stand in for retrieval are asked for
    by id, so the server's catalogue must have them. Raises InvalidRequest if the server does not answer or refuses.
    """

    client: httpx.Client

    def edit(self, requests: Sequence[EditRequest], garments: Sequence[Sequence[Garment]] | None) -> list[Edited]:
        """As `Editor.edit`."""
        given: Sequence[Sequence[Garment]] = [()] * len(requests) if garments is None else garments
        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(self._edit, requests, given))

    def garment_picture(self, garment_id: str) -> Image.Image:
        """As `Editor.garment_picture`."""
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
        files = {"image": _png(request.image), "mask": _png(request.mask * np.uint8(255))}
        reply = self._answer(partial(self.client.post, "/v1/images/edits", data=fields, files=files)).json()
        picture = open_image(base64.b64decode(reply["data"][0]["b64_json"]))
        return Edited(np.asarray(picture), tuple(garment["id"] for garment in reply["garments"]))

    def _answer(self, ask: partial[httpx.Response]) -> httpx.Response:
        """The reply to a request that is repeated while the server is busy."""
        url = str(self.client.base_url)
        for _ in range(MAX_TRIES):
            try:
                reply = ask()
            except httpx.HTTPError as error:
                raise InvalidRequest("server", url, f"must answer: {error!r}") from error
            if reply.status_code not in BUSY:
                break
            time.sleep(float(reply.headers.get("retry-after", 1)))
        if reply.status_code != 200:
            raise InvalidRequest("server", url, f"must answer; it said {reply.status_code}: {reply.text[:300]}")
        return reply


def _png(pixels: NDArray[np.uint8]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()
