"""The deployment of the HTTP side: its routes, and who may use them.

    curl -F image=@person.jpg -F mask=@mask.png -F prompt="red striped shirt" -F category=upper_body \\
         http://127.0.0.1:8000/v1/images/edits | jq -r .data[0].b64_json | base64 -d > edited.png

Where this replica has as many edits as it may, an edit is refused before its body is read, and again once the body is
here. Where the denoiser has as many, it is refused before any stage has worked for it.
"""

import asyncio
import logging
import mimetypes
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import Query, Request, Response
from fastapi.responses import JSONResponse
from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle

from fashion_rag.artifacts import MANIFEST_FILE, wait_for
from fashion_rag.catalogue.attributes import parse_filter
from fashion_rag.catalogue.garments import MAX_STORED_SIDE
from fashion_rag.data.image import open_image
from fashion_rag.errors import ArtifactError, FashionRAGError, InvalidRequest, NotFound
from fashion_rag.manifest import Manifest, has_parser
from serve import metrics, tracing
from serve.calls import answer
from serve.config import STUDENT_DENOISER, IngressSettings, ServeConfig
from serve.edits import EditRunner
from serve.http.admission import Admission
from serve.http.auth import API_KEYS, CATALOGUE_KEYS, ApiKeys, Forbidden
from serve.http.documents import (
    ASKING,
    EDIT_RESPONSES,
    PICTURE_RESPONSES,
    READING,
    READY_RESPONSES,
    DocumentedAPI,
    errors,
    form_document,
)
from serve.http.edit_requests import edit_requests, garment_picture, mask_request
from serve.http.errors import add_handlers
from serve.http.forms import EditForm, GarmentForm, MaskForm, PictureForm
from serve.http.mask_reply import MaskReply
from serve.http.multipart import Form, read_form
from serve.http.outcomes import counted, edit_counted, not_found_unless_known
from serve.http.queries import SearchQuery, SimilarQuery
from serve.http.replies import (
    EditReply,
    GarmentFound,
    GarmentList,
    Model,
    ModelList,
    Readiness,
    edit_reply,
)
from serve.http.streaming import PacedResponse
from serve.masks import MaskFinder
from serve.memory import give_back_large_blocks
from serve.proxy.cors import ORIGINS_HEADER
from serve.proxy.replay import MAX_BODY_BYTES
from serve.readiness import READY_TIMEOUT_S, deadline_warnings, is_answering
from serve.tracing import Kind

# How long a route that makes no edit waits for a stage.
ASK_S = 30.0

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

logger = logging.getLogger("ray.serve")
# FastAPI would make spans of its own, beside those of Serve instead of within them.
api = DocumentedAPI(title="Fashion-RAG", redirect_slashes=False, telemetry={"tracing": False})
add_handlers(api)


def _get(path: str, **options: Any) -> Callable[[Endpoint], Endpoint]:
    """Make a method the route of GET, and of HEAD, which answers the same without a body."""

    def route(endpoint: Endpoint) -> Endpoint:
        api.head(path, include_in_schema=False)(endpoint)
        return api.get(path, **options)(endpoint)

    return route


@ray_serve.deployment
@ray_serve.ingress(api)
class Ingress:
    """The HTTP side of the graph. Several replicas may run, and each counts the edits that it has admitted."""

    def __init__(self, config: ServeConfig, stages: dict[str, DeploymentHandle]) -> None:
        give_back_large_blocks()
        self.config = config
        wait_for(config.runtime.missing_bundle, config.wait_s)
        self.manifest = Manifest.read(Path(config.bundle) / MANIFEST_FILE)
        self.manifest.check_trained(Path(config.bundle), config.untrained)
        if not config.student:
            self.manifest = replace(self.manifest, student=None)
        self._load_keys()
        self.keys_error = ""
        self.warned = False
        self.admission = Admission(config.ingress)
        self.stages = stages
        self.retriever, self.conditioner = stages["retriever"], stages["conditioner"]
        self.finds_masks, shape = has_parser(Path(config.bundle)), self.manifest.image_size
        student = stages.get(STUDENT_DENOISER)
        self.edits = EditRunner(
            stages["denoiser"].options(stream=True),
            stages["vae"],
            shape,
            self.finds_masks,
            student_denoiser=None if student is None else student.options(stream=True),
        )
        self.masks = MaskFinder(stages["parser"], stages["retriever"], shape)
        self.created = int(time.time())

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take on new IngressSettings."""
        self.admission.settings = IngressSettings.from_args(user_config)

    def _load_keys(self) -> None:
        self.keys = ApiKeys.load(self.config.api_keys, API_KEYS, os.environ)
        self.editors = ApiKeys.load(self.config.catalogue_keys, CATALOGUE_KEYS, os.environ)

    def check_health(self) -> None:
        """Read the files of keys again. Serve calls this every second.

        Where the files cannot be used, the keys stay as they are, and the error is logged once.
        """
        keys_error = ""
        try:
            self._load_keys()
        except ArtifactError as error:
            keys_error = str(error)
        if keys_error and keys_error != self.keys_error:
            logger.error("the API keys stay as they are: %s", keys_error)
        self.keys_error = keys_error

    def _key_name(self, http: Request) -> str | None:
        """Return the name of the caller's API key, or None where there are no keys. Raises Unauthorized."""
        return self.keys.check(http.headers.get("authorization")) if self.keys else None

    def _editor_name(self, http: Request) -> str:
        """Return the name of the caller's catalogue key. Raises Forbidden, or Unauthorized."""
        if self.editors is None:
            raise Forbidden("this server lets nobody change its catalogue; start it with catalogue keys")
        return self.editors.check(http.headers.get("authorization"))

    async def _form(self, http: Request, kind: type[Form], key_name: str | None) -> Form:
        """Return the form in a request's body. Raises Overloaded before it is read where too much is under way."""
        with self.admission.upload(key_name), tracing.span("read form", Kind.HTTP):
            return await read_form(http, MAX_BODY_BYTES, kind, self.admission.settings)

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
            held.enter_context(edit_counted(arrived))
            form = await self._form(http, EditForm, key_name)
            settings, request_id = self.admission.settings, http.headers["x-request-id"]
            max_pictures = min(settings.max_edits, settings.max_edits_per_key)
            if form.n > max_pictures:
                # This is no Overloaded, because to send it again later would not help.
                rule = f"must be at most {max_pictures} on this server"
                raise InvalidRequest("n", form.n, rule, "unsupported_value")
            held.enter_context(self.admission.hold(key_name, form.n))
            with tracing.span("open pictures", Kind.IMAGE):
                requests = await asyncio.to_thread(
                    edit_requests, form, self.manifest, settings, request_id, arrived, self.finds_masks
                )
            user = form.safety_identifier or form.user
            logger.info("edit from key %s for user %r: seed %d", key_name, user, requests[0].seed)
            if form.stream:
                events = self.edits.events(form, requests[0], arrived, held.pop_all())
                # The edit is accepted, or refused with a status that says why, before the response begins.
                await anext(events)
                return PacedResponse(events, "text/event-stream", {"cache-control": "no-store"})
            photos = await self.edits.edit_all(requests)
            with tracing.span("write reply", Kind.HTTP):
                reply = await asyncio.to_thread(
                    edit_reply,
                    form,
                    pictures=[photo.image for photo in photos],
                    seeds=[request.seed for request in requests],
                    garments=photos[0].garments,
                    found=photos[0].found,
                    timings_s=photos[0].timings_s,
                    icc_profile=requests[0].icc_profile,
                )
                for photo in photos:
                    self.edits.answer_times.record(photo)
                return JSONResponse(reply.model_dump())

    @api.post("/v1/images/masks", responses=errors(*READING), openapi_extra=form_document(MaskForm))
    async def mask(self, http: Request) -> MaskReply:
        """Return the mask that an edit of a photo would have, and what is seen in the photo."""
        arrived = time.time()
        key_name = self._key_name(http)
        with counted(metrics.masks()):
            if not self.finds_masks:
                rule = "cannot be read here: the bundle that is served has no human parser"
                raise InvalidRequest("image", "a photo", rule, "unsupported_value")
            form = await self._form(http, MaskForm, key_name)
            with self.admission.hold(key_name, 1):
                settings, request_id = self.admission.settings, http.headers["x-request-id"]
                request = await asyncio.to_thread(mask_request, form, settings, request_id, arrived)
                return await self.masks.reply(request, has_words=form.prompt is not None)

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
        with self.admission.hold(key_name, 1):
            picture = await asyncio.to_thread(open_image, form.image, max_pixels=self.admission.settings.max_pixels)
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
        with self.admission.hold(editor_name, 1):
            row, jpeg = await asyncio.to_thread(garment_picture, form, self.admission.settings.max_pixels)
            deadline_unix_s = time.time() + ASK_S
            words = await answer("condition", lambda: self.conditioner.invert.remote(jpeg), deadline_unix_s)
            return await self._ask("add", row, jpeg, words)

    @api.delete("/v1/garments/{garment_id}", status_code=204, responses=errors(403, 404, *ASKING))
    async def delete_garment(self, http: Request, garment_id: str) -> None:
        """Take a garment out of the catalogue. Needs a key of the catalogue."""
        self._editor_name(http)
        with not_found_unless_known(garment_id):
            await self._ask("delete", garment_id)

    @_get("/v1/garments/{garment_id}", responses=errors(404, *ASKING))
    async def garment(self, http: Request, garment_id: str) -> GarmentFound:
        """Return a garment of the catalogue."""
        self._key_name(http)
        with not_found_unless_known(garment_id):
            return await self._ask("garment", garment_id)

    @_get("/v1/garments/{garment_id}/image", response_class=Response, responses=PICTURE_RESPONSES)
    async def garment_image(self, http: Request, garment_id: str) -> Response:
        """Return the picture of a garment in the catalogue."""
        self._key_name(http)
        with not_found_unless_known(garment_id):
            name, content = await self._ask("picture_file", garment_id)
        return Response(content, media_type=mimetypes.guess_type(name)[0])

    @_get("/v1/garments/{garment_id}/similar", responses=errors(400, 404, *ASKING))
    async def similar(self, http: Request, garment_id: str, query: Annotated[SimilarQuery, Query()]) -> GarmentList:
        """Return the garments that are most like a garment of the catalogue, best first."""
        self._key_name(http)
        wanted = query.filter()
        with not_found_unless_known(garment_id):
            await self._ask("garment", garment_id)
        return GarmentList(data=await self._ask("similar", garment_id, query.limit, wanted))

    async def _ask(self, method: str, *args: Any) -> Any:
        """Return what the retriever's method of this name answers."""
        return await answer("retrieve", lambda: getattr(self.retriever, method).remote(*args), time.time() + ASK_S)

    @_get("/v1/models", responses=errors(401, 500))
    async def models(self, http: Request) -> ModelList:
        """Return a list of the one bundle that is served."""
        self._key_name(http)
        return ModelList(data=[self._model()])

    # A name may have a slash, as the names of models on hubs do.
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
        """Answer as long as this process lives."""
        return {"status": "alive"}

    @_get("/readyz", responses=READY_RESPONSES)
    async def readyz(self, response: Response) -> Readiness:
        """Return which stages answer, and the files that the others may wait for; with 503 unless all answer."""
        response.headers[ORIGINS_HEADER] = " ".join(self.config.allow_origins)
        answers = await asyncio.gather(*map(is_answering, self.stages.values()))
        missing: list[str] = []
        warnings: list[str] = []
        if all(answers):
            warnings = await self._warnings()
        else:
            response.status_code = 503
            missing = await asyncio.to_thread(self.config.missing)
        return Readiness(stages=dict(zip(self.stages, answers, strict=True)), missing=missing, warnings=warnings)

    async def _warnings(self) -> list[str]:
        """Return what an operator should change. A warning is also logged when it first holds."""
        steps, scale = self.manifest.num_inference_steps, self.manifest.guidance_scale
        alone_s = self.stages["denoiser"].alone_s
        try:
            edit_s = await answer("denoise", lambda: alone_s.remote(steps, scale), time.time() + READY_TIMEOUT_S)
        except FashionRAGError:
            return []
        warnings = deadline_warnings(edit_s, steps, self.admission.settings.deadline_s)
        if warnings and not self.warned:
            logger.warning(warnings[0])
        self.warned = bool(warnings)
        return warnings
