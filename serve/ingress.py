"""The HTTP side: the routes, who may enter, and the order in which an edit's stages are asked.

    curl -F image=@person.jpg -F mask=@mask.png -F prompt="red striped shirt" -F category=upper_body \\
         http://127.0.0.1:8000/v1/images/edits | jq -r .data[0].b64_json | base64 -d > edited.png

An edit is refused before its body is read where this replica has as many as it may, and before any stage has worked
for it where the denoiser has. Once the denoiser has taken it on, it is finished, unless the caller leaves or its
deadline comes.
"""

import asyncio
import logging
import mimetypes
import os
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import ray
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from fashion_rag.artifacts import MANIFEST_FILE, wait_for
from fashion_rag.catalogue.attributes import parse_filter
from fashion_rag.catalogue.store import MAX_STORED_SIDE
from fashion_rag.config import Manifest
from fashion_rag.data.finish import finish
from fashion_rag.data.image import open_image
from fashion_rag.errors import ArtifactError, InvalidRequest
from fashion_rag.request import MAX_PROMPT_CHARS, EditRequest
from serve import metrics
from serve.auth import API_KEYS, CATALOGUE_KEYS, ApiKeys, Forbidden
from serve.calls import answer, stream
from serve.config import IngressSettings, ServeConfig
from serve.door import Door
from serve.errors import add_handlers, error_reply, explained
from serve.proxy import MAX_BODY_BYTES
from serve.schemas import (
    MAX_FILTERS,
    MAX_FOUND,
    EditForm,
    EditReply,
    GarmentForm,
    GarmentFound,
    GarmentList,
    Model,
    ModelList,
    PictureForm,
    Readiness,
    edit_completed,
    edit_reply,
    form_document,
    partial_image,
    sse,
)
from serve.stages import Denoised, Edited, Job, Partial, Prepared
from serve.uploads import edit_requests, garment_picture, read_form

READY_TIMEOUT_S = 5.0
# For what is no edit.
ASK_S = 30.0

Limit = Annotated[int, Query(ge=1, le=MAX_FOUND)]
Attributes = Annotated[Sequence[str], Query(max_length=MAX_FILTERS, description="NAME=VALUE that garments must have.")]

logger = logging.getLogger("ray.serve")
api = FastAPI(title="Fashion-RAG")
add_handlers(api)


async def _answers(stage: DeploymentHandle) -> bool:
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            await stage.ping.remote()
    except (TimeoutError, RayError, RayServeException):
        return False
    return True


def _preview_steps(num_previews: int, num_steps: int) -> frozenset[int]:
    """After which steps, counted from 1, so many previews are shown: evenly spread, and none at the end."""
    steps = (round(number * num_steps / (num_previews + 1)) for number in range(1, num_previews + 1))
    return frozenset(step for step in steps if 0 < step < num_steps)


def _partial_event(form: EditForm, request: EditRequest, partial: Partial, index: int) -> bytes:
    pixels = finish(request, partial.preview)
    return sse("image_edit.partial_image", partial_image(form, pixels, index, partial.step, partial.num_steps))


def _last_event(form: EditForm, request: EditRequest, edited: Edited) -> bytes:
    event = edit_completed(form, edited.image, edited.garments, request.seed, edited.timings_s)
    return sse("image_edit.completed", event)


@contextmanager
def _found(garment_id: str) -> Iterator[None]:
    """Makes a 404 of what the block says of an id that the catalogue has not."""
    try:
        yield
    except InvalidRequest as error:
        raise HTTPException(404, f"no garment in the catalogue has the id {garment_id!r}") from error


@contextmanager
def _counted(arrived: float) -> Iterator[None]:
    """Counts how the edit in the block ends."""
    try:
        yield
    except BaseException as error:
        metrics.edits().inc(tags={"status": str(explained(error)[1])})
        raise
    metrics.edits().inc(tags={"status": "200"})
    metrics.edit_seconds().observe(time.time() - arrived)


@ray_serve.deployment
@ray_serve.ingress(api)
class Ingress:
    """The HTTP side of the graph. Several replicas may run; each counts the edits that it has let in."""

    def __init__(self, config: ServeConfig, stages: dict[str, DeploymentHandle]) -> None:
        self.config = config
        wait_for(config.runtime.missing_bundle, config.wait_s)
        self.manifest = Manifest.read(Path(config.bundle) / MANIFEST_FILE)
        self._load_keys()
        self.complaint = ""
        self.door = Door(config.ingress)
        self.stages = stages
        self.retriever, self.conditioner, self.vae = stages["retriever"], stages["conditioner"], stages["vae"]
        self.denoiser = stages["denoiser"].options(stream=True)
        self.created = int(time.time())

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take on new IngressSettings."""
        self.door.settings = IngressSettings.from_args(user_config)

    def _load_keys(self) -> None:
        self.keys = ApiKeys.load(self.config.api_keys, API_KEYS, os.environ)
        self.editors = ApiKeys.load(self.config.catalogue_keys, CATALOGUE_KEYS, os.environ)

    def check_health(self) -> None:
        """Takes on files of keys that have changed: Serve calls every second. Where they are no good, the old stay."""
        complaint = ""
        try:
            self._load_keys()
        except ArtifactError as error:
            complaint = str(error)
        if complaint and complaint != self.complaint:
            logger.error("the API keys stay as they are: %s", complaint)
        self.complaint = complaint

    def _key_name(self, http: Request) -> str | None:
        return self.keys.check(http.headers.get("authorization")) if self.keys else None

    def _editor_name(self, http: Request) -> str:
        if self.editors is None:
            raise Forbidden("this server lets nobody change its catalogue; start it with catalogue keys")
        return self.editors.check(http.headers.get("authorization"))

    @api.post("/v1/images/edits", response_model=EditReply, openapi_extra=form_document(EditForm))
    async def edit(self, http: Request) -> Response:
        """The photo with the garment changed: as JSON, or with stream=true as server-sent events."""
        arrived = time.time()
        key_name = self._key_name(http)
        with ExitStack() as held:
            held.enter_context(_counted(arrived))
            held.enter_context(self.door.hold(key_name, 1))
            form = await read_form(http, MAX_BODY_BYTES, EditForm)
            settings, request_id = self.door.settings, http.headers["x-request-id"]
            if form.n > (most := min(settings.max_edits, settings.max_edits_per_key)):
                # To come back later would not help.
                raise InvalidRequest("n", form.n, f"must be at most {most} on this server")
            held.enter_context(self.door.hold(key_name, form.n - 1))
            requests = await asyncio.to_thread(edit_requests, form, self.manifest, settings, request_id, arrived)
            logger.info("edit from key %s for user %r: seed %d", key_name, form.user, requests[0].seed)
            if form.stream:
                events = self._events(form, requests[0], arrived, held.pop_all())
                # As far as the acceptance: who is refused still gets a status that says so.
                await anext(events)
                return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
            edited = await self._all(requests)
            reply = await asyncio.to_thread(
                edit_reply,
                form,
                [one.image for one in edited],
                [request.seed for request in requests],
                edited[0].garments,
                edited[0].timings_s,
            )
            return JSONResponse(reply.model_dump())

    async def _all(self, requests: Sequence[EditRequest]) -> list[Edited]:
        """All edits finished, or, where one fails, its error and the others cancelled."""

        async def finished(request: EditRequest) -> Edited:
            async with aclosing(self._edit(request, frozenset())) as items:
                *_, edited = [item async for item in items]
                assert isinstance(edited, Edited)
                return edited

        tasks = [asyncio.create_task(finished(request)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _events(
        self, form: EditForm, request: EditRequest, arrived: float, held: ExitStack
    ) -> AsyncGenerator[bytes, None]:
        """Yield nothing (b"") once the edit is accepted, then its events. Gives `held` back at the end."""
        accepted, index = False, 0
        steps = _preview_steps(form.partial_images, request.num_inference_steps)
        try:
            with held:
                async with aclosing(self._edit(request, steps)) as items:
                    async for item in items:
                        if isinstance(item, Prepared):
                            accepted = True
                            yield b""
                        elif isinstance(item, Partial):
                            if index == 0:
                                metrics.first_preview_seconds().observe(time.time() - arrived)
                            yield await asyncio.to_thread(_partial_event, form, request, item, index)
                            index += 1
                        else:
                            yield await asyncio.to_thread(_last_event, form, request, item)
        except Exception as error:
            # Once the status has been sent, any error can only be an event.
            if not accepted:
                raise
            yield sse("error", error_reply(error, explained(error)[1], request.request_id))

    async def _edit(
        self, request: EditRequest, preview_steps: frozenset[int]
    ) -> AsyncGenerator[Prepared | Partial | Edited, None]:
        """Yields once that the edit is accepted, then each of its previews, then what has become of it."""
        # Once into shared memory; the stages read from there.
        shared = await asyncio.to_thread(ray.put, request)
        steps, scale = request.num_inference_steps, request.guidance_scale
        job = Job(request.request_id, shared, steps, scale, request.shortcuts, request.deadline, preview_steps)
        prepared, reached = False, 0
        async with aclosing(stream("denoise", lambda: self.denoiser.denoise.remote(job), request.deadline)) as items:
            async for item in items:
                # After the death of a replica, everything comes again.
                if isinstance(item, Prepared) and not prepared:
                    prepared = True
                    yield item
                elif isinstance(item, Partial) and item.step > reached:
                    reached = item.step
                    yield item
                elif isinstance(item, Denoised):
                    # The last item; to leave the loop here would cancel the call.
                    denoised = item
        yield await answer("decode", lambda: self.vae.decode.remote(shared, denoised), request.deadline)

    @api.get("/v1/garments/search")
    async def search(
        self,
        http: Request,
        q: Annotated[str, Query(min_length=1, max_length=MAX_PROMPT_CHARS)],
        category: str,
        limit: Limit = 10,
        attribute: Attributes = (),
    ) -> GarmentList:
        """The garments of a category that are most like a text, best first."""
        self._key_name(http)
        return GarmentList(data=await self._ask("search", q, category, limit, parse_filter(attribute)))

    @api.post("/v1/garments/search", openapi_extra=form_document(PictureForm))
    async def search_by_picture(self, http: Request) -> GarmentList:
        """The garments of a category that are most like a picture, best first."""
        with self.door.hold(self._key_name(http), 1):
            form = await read_form(http, MAX_BODY_BYTES, PictureForm)
            picture = await asyncio.to_thread(open_image, form.image, max_pixels=self.door.settings.max_pixels)
            picture.thumbnail((MAX_STORED_SIDE, MAX_STORED_SIDE))
            wanted = parse_filter(form.attributes)
            return GarmentList(data=await self._ask("search", picture, form.category, form.limit, wanted))

    @api.post("/v1/garments", status_code=201, openapi_extra=form_document(GarmentForm))
    async def add_garment(self, http: Request) -> GarmentFound:
        """Put a garment into the catalogue, or in the place of one with its id. Needs a key of the catalogue."""
        with self.door.hold(self._editor_name(http), 1):
            form = await read_form(http, MAX_BODY_BYTES, GarmentForm)
            row, jpeg = await asyncio.to_thread(garment_picture, form, self.door.settings.max_pixels)
            deadline = time.time() + ASK_S
            words = await answer("condition", lambda: self.conditioner.invert.remote(jpeg), deadline)
            return await self._ask("add", row, jpeg, words)

    @api.delete("/v1/garments/{garment_id}", status_code=204)
    async def delete_garment(self, http: Request, garment_id: str) -> None:
        """Take a garment out of the catalogue. Needs a key of the catalogue."""
        self._editor_name(http)
        with _found(garment_id):
            await self._ask("delete", garment_id)

    @api.get("/v1/garments/{garment_id}")
    async def garment(self, http: Request, garment_id: str) -> GarmentFound:
        """A garment of the catalogue."""
        self._key_name(http)
        with _found(garment_id):
            return await self._ask("garment", garment_id)

    @api.get("/v1/garments/{garment_id}/image")
    async def garment_image(self, http: Request, garment_id: str) -> Response:
        """The picture of a garment in the catalogue."""
        self._key_name(http)
        with _found(garment_id):
            name, content = await self._ask("picture_file", garment_id)
        return Response(content, media_type=mimetypes.guess_type(name)[0])

    @api.get("/v1/garments/{garment_id}/similar")
    async def similar(
        self, http: Request, garment_id: str, limit: Limit = 10, attribute: Attributes = ()
    ) -> GarmentList:
        """The garments that are most like one, best first."""
        self._key_name(http)
        wanted = parse_filter(attribute)
        with _found(garment_id):
            await self._ask("garment", garment_id)
        return GarmentList(data=await self._ask("similar", garment_id, limit, wanted))

    async def _ask(self, method: str, *args: Any) -> Any:
        return await answer("retrieve", lambda: getattr(self.retriever, method).remote(*args), time.time() + ASK_S)

    @api.get("/v1/models")
    async def models(self, http: Request) -> ModelList:
        """The bundle that is served."""
        self._key_name(http)
        model = Model(id=self.manifest.name, created=self.created, owned_by="fashion-rag")
        return ModelList(data=[model])

    @api.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        """That this process answers."""
        return {"status": "alive"}

    @api.get("/readyz")
    async def readyz(self, response: Response) -> Readiness:
        """Which stages answer, and the files that those which do not may be waiting for; 503 unless all answer."""
        answers = await asyncio.gather(*map(_answers, self.stages.values()))
        if all(answers):
            missing = []
        else:
            response.status_code = 503
            missing = await asyncio.to_thread(self.config.missing)
        return Readiness(stages=dict(zip(self.stages, answers, strict=True)), missing=missing)
