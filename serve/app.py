"""The graph, its HTTP routes and the one table of errors. The command line calls `run`; a cluster, `serve.app:app`.

    curl -F image=@person.jpg -F mask=@mask.png -F prompt="red striped shirt" -F category=upper_body \\
         http://127.0.0.1:8000/v1/images/edits | jq -r .data[0].b64_json | base64 -d > edited.png
    serve run serve.app:app bundle=/models/bundle catalogue=/models/catalogue     # on a Ray cluster
    grep REQUEST_ID /tmp/ray/session_latest/logs/serve/*.log                      # what the stages say of one edit

An edit goes retriever -> conditioner, with VAE.encode beside them, then denoiser -> VAE.decode. The ingress hands each
stage the promise of the one before: tensors travel from replica to replica, and only the picture comes back here.
"""

import asyncio
import logging
import mimetypes
import os
import threading
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import ray
from fastapi import FastAPI, Form, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray import serve as ray_serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.index import Catalogue
from fashion_rag.errors import ArtifactError, DeadlineExceeded, FashionRAGError, InvalidRequest, Overloaded
from fashion_rag.request import EditRequest
from serve.conditioner import Conditioner
from serve.config import ServeConfig
from serve.denoiser import Denoiser
from serve.retriever import Retriever
from serve.schemas import EditForm, EditReply, edit_reply, edit_request
from serve.stages import Edited
from serve.vae import VAE

APP_NAME = "fashion-rag"
DEMO_WORLD = Path("out/world")
LOG_FOLDER = "/tmp/ray/session_latest/logs/serve"
MAX_BODY_BYTES = 64 * 1024 * 1024
READY_TIMEOUT_S = 5.0
RESTART_S = 3
# Checks must reach a stage, and refusals leave the ingress, when both are as full as they may be.
SPARE_REQUESTS = 32

RAY_DEFAULTS = {
    # Ray would tell its makers of every start.
    "RAY_USAGE_STATS_ENABLED": "0",
    # After 5 s, the default, Serve kills a proxy that a busy machine is still importing, and starts another.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}

STATUS: dict[type[Exception], int] = {
    InvalidRequest: 400,
    Overloaded: 503,
    DeadlineExceeded: 504,
    ArtifactError: 500,
}

logger = logging.getLogger("ray.serve")
api = FastAPI(title="Fashion-RAG")


class BodyLimit:
    """Ends the reading of a request's body at `max_bytes`, whether or not it told its length."""

    def __init__(self, inner: ASGIApp, max_bytes: int) -> None:
        self.inner = inner
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_bytes:
                # Any other type of error FastAPI takes for a form that cannot be parsed.
                raise HTTPException(413, f"body: must have at most {self.max_bytes} bytes")
            return message

        await self.inner(scope, counted, send)


api.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)


@api.exception_handler(FashionRAGError)
@api.exception_handler(RequestValidationError)
@api.exception_handler(StarletteHTTPException)
@api.exception_handler(RayError)
@api.exception_handler(Exception)
async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """The reply to any error: {"error": {"type", "field", "message"}} under the status in STATUS."""
    error = _unwrapped(error)
    if isinstance(error, StarletteHTTPException):
        status, message = error.status_code, str(error.detail)
    else:
        status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)
        message = str(error)
    name = type(error).__name__ if isinstance(error, FashionRAGError) else HTTPStatus(status).phrase.replace(" ", "")
    if status == 500:
        # What went wrong inside, paths among it, is for the operator.
        logger.error("edit failed", exc_info=error)
        message = f"the server failed; its log has the cause under request id {request.headers.get('x-request-id')}"
    headers = {"retry-after": str(round(error.retry_after_s))} if isinstance(error, Overloaded) else {}
    body = {"type": name, "field": getattr(error, "field", None), "message": message}
    return JSONResponse({"error": body}, status, headers)


def _unwrapped(error: Exception) -> Exception:
    """The error in this project's words, if it has some for it."""
    if isinstance(error, RayTaskError):
        # Raised in a replica.
        error = error.cause
    if isinstance(error, RayActorError):
        return Overloaded("a stage of the graph is restarting", RESTART_S)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        value = first["input"] if isinstance(first["input"], str) else None
        return InvalidRequest(".".join(map(str, first["loc"][1:])) or "body", value, first["msg"])
    return error


async def _answers(stage: DeploymentHandle) -> bool:
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            await stage.ping.remote()
    except (TimeoutError, RayError):
        return False
    return True


@ray_serve.deployment
@ray_serve.ingress(api)
class Ingress:
    """The HTTP side. It counts the edits in flight and refuses more than `max_edits`, so no stage needs a limit."""

    def __init__(
        self,
        config: ServeConfig,
        retriever: DeploymentHandle,
        conditioner: DeploymentHandle,
        denoiser: DeploymentHandle,
        vae: DeploymentHandle,
    ) -> None:
        self.config = config
        self.manifest = Bundle.open(Path(config.bundle)).manifest
        self.retriever = retriever
        self.conditioner = conditioner
        self.denoiser = denoiser
        self.vae = vae
        self.num_edits = 0

    @api.post("/v1/images/edits")
    async def edit(self, http: Request, form: Annotated[EditForm, Form(media_type="multipart/form-data")]) -> EditReply:
        """The photo with the garment changed, as a PNG in base64, with the garments that were used."""
        if self.num_edits >= self.config.max_edits:
            raise Overloaded(f"{self.num_edits} edits are in flight, as many as may be", self.config.retry_after_s)
        self.num_edits += 1
        try:
            image, mask = await form.image.read(), await form.mask.read()
            request = await asyncio.to_thread(
                edit_request, form, image, mask, self.manifest, self.config.max_pixels, http.headers["x-request-id"]
            )
            edited = await self._run_stages(request)
            return await asyncio.to_thread(edit_reply, edited.image, edited.garments, request.seed, edited.timings_s)
        finally:
            self.num_edits -= 1

    async def _run_stages(self, request: EditRequest) -> Edited:
        # Once into shared memory; every stage reads from there.
        shared = await asyncio.to_thread(ray.put, request)
        retrieved = self.retriever.retrieve.remote(shared)
        conditioned = self.conditioner.condition.remote(shared, retrieved)
        encoded = self.vae.encode.remote(shared)
        denoised = self.denoiser.denoise.remote(shared, conditioned, encoded)
        edited = self.vae.decode.remote(shared, denoised)
        try:
            async with asyncio.timeout(self.config.deadline_s):
                return await edited
        except BaseException as error:
            # One stage has failed, or the caller or the time has gone: the others need not go on.
            for response in (retrieved, conditioned, encoded, denoised, edited):
                response.cancel()
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(f"the edit took more than {self.config.deadline_s} s") from error
            raise

    @api.get("/v1/garments/{garment_id}/image")
    async def garment_image(self, garment_id: str) -> Response:
        """The picture of a garment in the catalogue."""
        try:
            name, content = await self.retriever.picture.remote(garment_id)
        except InvalidRequest as error:
            raise HTTPException(404, f"no garment in the catalogue has the id {garment_id!r}") from error
        return Response(content, media_type=mimetypes.guess_type(name)[0])

    @api.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        """That this process answers."""
        return {"status": "alive"}

    @api.get("/readyz")
    async def readyz(self, response: Response) -> dict[str, bool]:
        """Which stages answer; 503 unless all do."""
        stages = {
            "retriever": self.retriever,
            "conditioner": self.conditioner,
            "denoiser": self.denoiser,
            "vae": self.vae,
        }
        ready = dict(zip(stages, await asyncio.gather(*map(_answers, stages.values())), strict=True))
        response.status_code = 200 if all(ready.values()) else 503
        return ready


def build(config: ServeConfig) -> ray_serve.Application:
    """The graph, one replica a deployment."""
    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": config.replica_cpus},
        "max_ongoing_requests": config.max_edits + SPARE_REQUESTS,
    }
    threads = config.num_threads
    return Ingress.options(**options).bind(
        config,
        Retriever.options(**options).bind(config.bundle, config.catalogue, threads),
        Conditioner.options(**options).bind(config.bundle, threads),
        Denoiser.options(**options).bind(config.bundle, threads),
        VAE.options(**options).bind(config.bundle, threads),
    )


def app(args: dict[str, Any]) -> ray_serve.Application:
    """The graph, for a Serve config file: `import_path: serve.app:app`, with the fields of ServeConfig as `args`."""
    return build(ServeConfig.from_args(args))


def run(bundle: str, catalogue: str | None, host: str = "127.0.0.1", port: int = 8000, blocking: bool = True) -> None:
    """Serve the graph on this machine, with a Ray of its own; until Ctrl-C where `blocking`, else until `stop`.

    Without a catalogue, paper dolls' garments are drawn and served. Raises ArtifactError for what cannot be served.
    """
    if catalogue is None:
        # Here, because the showcase in turn calls this module.
        from serve.showcase import ensure_demo_world

        catalogue = str(ensure_demo_world(DEMO_WORLD, Path(bundle)))
    # Found out here at once; a replica would try to start again and again.
    Catalogue.open(Path(catalogue), Bundle.open(Path(bundle)).load_retrieval_encoder())
    config = ServeConfig(str(Path(bundle).resolve()), str(Path(catalogue).resolve()))
    for name, value in RAY_DEFAULTS.items():
        os.environ.setdefault(name, value)
    # Ray and Serve greet at length. What the replicas log is in files.
    logger.setLevel(logging.WARNING)
    ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        ray_serve.start(http_options={"host": host, "port": port})
        ray_serve.run(build(config), name=APP_NAME)
        if blocking:
            print(f"ready on http://{host}:{port}; logs in {LOG_FOLDER}; Ctrl-C ends it", flush=True)
            threading.Event().wait()
    except BaseException as error:
        stop()
        if not isinstance(error, KeyboardInterrupt):
            raise


def stop() -> None:
    """End the graph and the Ray that `run` started."""
    # Serve's own shutdown takes longer and ends in complaints of Ray that its controller has gone.
    ray.shutdown()
