"""The HTTP side: the routes, who may enter, and the order in which an edit's stages are asked.

    curl -F image=@person.jpg -F mask=@mask.png -F prompt="red striped shirt" -F category=upper_body \\
         http://127.0.0.1:8000/v1/images/edits | jq -r .data[0].b64_json | base64 -d > edited.png

An edit is refused before its body is read, and again once the body is here, where this replica has as many as it may;
and before any stage has worked for it where the denoiser has. Once the denoiser has taken it on, it is finished, unless
the caller leaves or its deadline comes.
"""

import asyncio
import logging
import math
import mimetypes
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import ray
from fastapi import Query, Request, Response
from fastapi.responses import JSONResponse
from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from fashion_rag.artifacts import MANIFEST_FILE, wait_for
from fashion_rag.catalogue.attributes import parse_filter
from fashion_rag.catalogue.garments import MAX_STORED_SIDE
from fashion_rag.data.finish import finish
from fashion_rag.data.image import open_image
from fashion_rag.errors import ArtifactError, FashionRAGError, InvalidRequest, NotFound
from fashion_rag.manifest import Manifest
from fashion_rag.request import EditRequest
from serve import metrics
from serve.auth import API_KEYS, CATALOGUE_KEYS, ApiKeys, Forbidden
from serve.calls import answer, stream
from serve.config import IngressSettings, ServeConfig
from serve.cors import ORIGINS_HEADER
from serve.documents import (
    ASKING,
    EDIT_RESPONSES,
    PICTURE_RESPONSES,
    READING,
    READY_RESPONSES,
    DocumentedAPI,
    errors,
    form_document,
)
from serve.door import Door
from serve.errors import add_handlers, error_reply, explained
from serve.memory import give_back_large_blocks
from serve.messages import Denoised, Edited, Job, Partial, Prepared
from serve.proxy import MAX_BODY_BYTES
from serve.queries import SearchQuery, SimilarQuery
from serve.schemas import (
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
    partial_image,
    sse,
)
from serve.streaming import PacedResponse, newest
from serve.uploads import Form, edit_requests, garment_picture, read_form

READY_TIMEOUT_S = 5.0
# For what is no edit.
ASK_S = 30.0
# How much longer than its denoising an edit takes: the stages before and after it, and steps slower than at the start.
SPARE = 1.2

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

T = TypeVar("T")

logger = logging.getLogger("ray.serve")
api = DocumentedAPI(title="Fashion-RAG", redirect_slashes=False)
add_handlers(api)


def _get(path: str, **options: Any) -> Callable[[Endpoint], Endpoint]:
    """Make a method the route of GET, and of HEAD, which answers the same without a body."""

    def route(endpoint: Endpoint) -> Endpoint:
        api.head(path, include_in_schema=False)(endpoint)
        return api.get(path, **options)(endpoint)

    return route


async def _answers(stage: DeploymentHandle) -> bool:
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            await stage.ping.remote()
    except (TimeoutError, RayError, RayServeException):
        return False
    return True


def _preview_steps(num_previews: int, num_steps: int) -> frozenset[int]:
    """Return the after which steps, counted from 1, so many previews are shown: evenly spread, and none at the end."""
    steps = (round(number * num_steps / (num_previews + 1)) for number in range(1, num_previews + 1))
    return frozenset(step for step in steps if 0 < step < num_steps)


def _partial_event(form: EditForm, request: EditRequest, partial: Partial, index: int) -> bytes:
    pixels = finish(request, partial.preview)
    event = partial_image(form, pixels, index, partial.step, partial.num_steps, request.icc_profile)
    return sse("image_edit.partial_image", event)


def _last_event(form: EditForm, request: EditRequest, edited: Edited) -> bytes:
    event = edit_completed(form, edited.image, edited.garments, request.seed, edited.timings_s, request.icc_profile)
    return sse("image_edit.completed", event)


def _is_preview(item: Prepared | Partial | Edited) -> bool:
    return isinstance(item, Partial)


async def _while_held(held: ExitStack, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """Yield the items, and give `held` back after the last."""
    with held:
        async with aclosing(items):
            async for item in items:
                yield item


@contextmanager
def _found(garment_id: str) -> Iterator[None]:
    """Raise NotFound where the block raises InvalidRequest for an id that the catalogue does not have."""
    try:
        yield
    except InvalidRequest as error:
        raise NotFound("garment_id", f"no garment in the catalogue has the id {garment_id!r}") from error


@contextmanager
def _counted(arrived: float) -> Iterator[None]:
    """Count how the edit in the block ends."""
    try:
        yield
    except BaseException as error:
        metrics.edits().inc(tags={"status": str(explained(error)[1])})
        raise
    metrics.edits().inc(tags={"status": "200"})
    metrics.edit_seconds().observe(time.time() - arrived)


def deadline_warnings(edit_s: float, num_steps: int, deadline_s: float) -> list[str]:
    """Return a line where an edit of the bundle's default steps, which takes `edit_s` alone, has no time to finish."""
    if SPARE * edit_s <= deadline_s:
        return []
    enough_s = math.ceil(2 * edit_s / 10) * 10
    takes = f"an edit with the bundle's {num_steps} steps takes {edit_s:.0f} s here when it is alone"
    return [f"{takes}, but deadline_s allows {deadline_s:g} s: raise ingress.deadline_s and drain_s to {enough_s}"]


@ray_serve.deployment
@ray_serve.ingress(api)
class Ingress:
    """The HTTP side of the graph. Several replicas may run; each counts the edits that it has let in."""

    def __init__(self, config: ServeConfig, stages: dict[str, DeploymentHandle]) -> None:
        give_back_large_blocks()
        self.config = config
        wait_for(config.runtime.missing_bundle, config.wait_s)
        self.manifest = Manifest.read(Path(config.bundle) / MANIFEST_FILE)
        self._load_keys()
        self.complaint = ""
        self.warned = False
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
        """Take on files of keys that have changed: Serve calls every second. Where they are no good, the old stay."""
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

    async def _form(self, http: Request, kind: type[Form], key_name: str | None) -> Form:
        """Return the form in a request's body, which is refused unread where too much is going on."""
        with self.door.upload(key_name):
            return await read_form(http, MAX_BODY_BYTES, kind, self.door.settings)

    @api.post(
        "/v1/images/edits",
        response_model=EditReply,
        responses=EDIT_RESPONSES,
        openapi_extra=form_document(EditForm),
    )
    async def edit(self, http: Request) -> Response:
        """Return the photo with the garment changed: as JSON, or with stream=true as server-sent events."""
        arrived = time.time()
        key_name = self._key_name(http)
        with ExitStack() as held:
            held.enter_context(_counted(arrived))
            form = await self._form(http, EditForm, key_name)
            settings, request_id = self.door.settings, http.headers["x-request-id"]
            if form.n > (most := min(settings.max_edits, settings.max_edits_per_key)):
                # To come back later would not help.
                raise InvalidRequest("n", form.n, f"must be at most {most} on this server", "unsupported_value")
            held.enter_context(self.door.hold(key_name, form.n))
            requests = await asyncio.to_thread(edit_requests, form, self.manifest, settings, request_id, arrived)
            user = form.safety_identifier or form.user
            logger.info("edit from key %s for user %r: seed %d", key_name, user, requests[0].seed)
            if form.stream:
                events = self._events(form, requests[0], arrived, held.pop_all())
                # As far as the acceptance: who is refused still gets a status that says so.
                await anext(events)
                return PacedResponse(events, "text/event-stream", {"cache-control": "no-store"})
            edited = await self._all(requests)
            reply = await asyncio.to_thread(
                edit_reply,
                form,
                [one.image for one in edited],
                [request.seed for request in requests],
                edited[0].garments,
                edited[0].timings_s,
                requests[0].icc_profile,
            )
            return JSONResponse(reply.model_dump())

    async def _all(self, requests: Sequence[EditRequest]) -> list[Edited]:
        """Return all edits finished, or, where one fails, its error and the others cancelled."""

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
        """Yield nothing (b"") once the edit is accepted, then its events, without previews that have grown old.

        Gives `held` back when the edit is done, whether or not its events have been fetched.
        """
        accepted, index = False, 0
        steps = _preview_steps(form.partial_images, request.num_inference_steps)
        try:
            async with aclosing(newest(_while_held(held, self._edit(request, steps)), may_skip=_is_preview)) as items:
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
        """Yield once that the edit is accepted, then each of its previews, then what has become of it."""
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

    @_get("/v1/garments/search", responses=errors(400, *ASKING))
    async def search(self, http: Request, query: Annotated[SearchQuery, Query()]) -> GarmentList:
        """Return the garments of a category that are most like a text, best first."""
        self._key_name(http)
        return GarmentList(data=await self._ask("search", query.q, query.category, query.limit, query.filter()))

    @api.post("/v1/garments/search", responses=errors(*READING), openapi_extra=form_document(PictureForm))
    async def search_by_picture(self, http: Request) -> GarmentList:
        """Return the garments of a category that are most like a picture, best first."""
        key_name = self._key_name(http)
        form = await self._form(http, PictureForm, key_name)
        with self.door.hold(key_name, 1):
            picture = await asyncio.to_thread(open_image, form.image, max_pixels=self.door.settings.max_pixels)
            picture.thumbnail((MAX_STORED_SIDE, MAX_STORED_SIDE))
            wanted = parse_filter(form.attributes)
            return GarmentList(data=await self._ask("search", picture, form.category, form.limit, wanted))

    @api.post(
        "/v1/garments", status_code=201, responses=errors(403, *READING), openapi_extra=form_document(GarmentForm)
    )
    async def add_garment(self, http: Request) -> GarmentFound:
        """Put a garment into the catalogue, or in the place of one with its id. Needs a key of the catalogue."""
        editor_name = self._editor_name(http)
        form = await self._form(http, GarmentForm, editor_name)
        with self.door.hold(editor_name, 1):
            row, jpeg = await asyncio.to_thread(garment_picture, form, self.door.settings.max_pixels)
            deadline = time.time() + ASK_S
            words = await answer("condition", lambda: self.conditioner.invert.remote(jpeg), deadline)
            return await self._ask("add", row, jpeg, words)

    @api.delete("/v1/garments/{garment_id}", status_code=204, responses=errors(403, 404, *ASKING))
    async def delete_garment(self, http: Request, garment_id: str) -> None:
        """Take a garment out of the catalogue. Needs a key of the catalogue."""
        self._editor_name(http)
        with _found(garment_id):
            await self._ask("delete", garment_id)

    @_get("/v1/garments/{garment_id}", responses=errors(404, *ASKING))
    async def garment(self, http: Request, garment_id: str) -> GarmentFound:
        """Return a garment of the catalogue."""
        self._key_name(http)
        with _found(garment_id):
            return await self._ask("garment", garment_id)

    @_get("/v1/garments/{garment_id}/image", response_class=Response, responses=PICTURE_RESPONSES)
    async def garment_image(self, http: Request, garment_id: str) -> Response:
        """Return the picture of a garment in the catalogue."""
        self._key_name(http)
        with _found(garment_id):
            name, content = await self._ask("picture_file", garment_id)
        return Response(content, media_type=mimetypes.guess_type(name)[0])

    @_get("/v1/garments/{garment_id}/similar", responses=errors(400, 404, *ASKING))
    async def similar(self, http: Request, garment_id: str, query: Annotated[SimilarQuery, Query()]) -> GarmentList:
        """Return the garments that are most like one, best first."""
        self._key_name(http)
        wanted = query.filter()
        with _found(garment_id):
            await self._ask("garment", garment_id)
        return GarmentList(data=await self._ask("similar", garment_id, query.limit, wanted))

    async def _ask(self, method: str, *args: Any) -> Any:
        return await answer("retrieve", lambda: getattr(self.retriever, method).remote(*args), time.time() + ASK_S)

    @_get("/v1/models", responses=errors(401, 500))
    async def models(self, http: Request) -> ModelList:
        """Return a list of the one bundle that is served."""
        self._key_name(http)
        return ModelList(data=[self._model()])

    # A name may have a slash, as those of hubs do.
    @_get("/v1/models/{model:path}", responses=errors(401, 404, 500))
    async def model(self, http: Request, model: str) -> Model:
        """Return the bundle of this name, if it is the one that is served."""
        self._key_name(http)
        if model != self.manifest.name:
            raise NotFound("model", f"no model of the name {model!r} is served", "model_not_found")
        return self._model()

    def _model(self) -> Model:
        return Model(id=self.manifest.name, created=self.created, owned_by="fashion-rag")

    @_get("/healthz")
    async def healthz(self) -> dict[str, str]:
        """Return that this process answers."""
        return {"status": "alive"}

    @_get("/readyz", responses=READY_RESPONSES)
    async def readyz(self, response: Response) -> Readiness:
        """Return which stages answer, and the files that the others may be waiting for; 503 unless all answer."""
        response.headers[ORIGINS_HEADER] = " ".join(self.config.allow_origins)
        answers = await asyncio.gather(*map(_answers, self.stages.values()))
        missing: list[str] = []
        warnings: list[str] = []
        if all(answers):
            warnings = await self._warnings()
        else:
            response.status_code = 503
            missing = await asyncio.to_thread(self.config.missing)
        return Readiness(stages=dict(zip(self.stages, answers, strict=True)), missing=missing, warnings=warnings)

    async def _warnings(self) -> list[str]:
        """Return what an operator should change; each is also logged when it first holds."""
        steps, scale = self.manifest.num_inference_steps, self.manifest.guidance_scale
        ask = self.stages["denoiser"].alone_s
        try:
            edit_s = await answer("denoise", lambda: ask.remote(steps, scale), time.time() + READY_TIMEOUT_S)
        except FashionRAGError:
            return []
        warnings = deadline_warnings(edit_s, steps, self.door.settings.deadline_s)
        if warnings and not self.warned:
            logger.warning(warnings[0])
        self.warned = bool(warnings)
        return warnings
