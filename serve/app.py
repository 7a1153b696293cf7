"""The graph: its deployments, how they scale, and how they start. The command line calls `run`.

    serve run serve.app:app bundle=/models/bundle catalogue=/models/catalogue     # on a Ray cluster
    grep REQUEST_ID /tmp/ray/session_latest/logs/serve/*.log                      # what the replicas say of one edit

    ingress ──► denoiser ──► retriever.choose         where the caller names no category
       │            ├──────► conditioner ──► retriever
       │            ├──────► parser                   where the photo is to be read
       │            └──────► VAE.encode
       ├──────────► VAE.decode
       └──────────► parser                            for a mask alone

An arrow points to the stage that is called. The denoiser calls once it has taken an edit on (`preparation.py`).
"""

import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import httpx
import ray
import torch
from pydantic import ValidationError
from ray import serve as ray_serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.context import _get_global_client
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    LoggingConfig,
    ServeDeploySchema,
)

from fashion_rag.bundle import Bundle
from fashion_rag.demo.world.catalogue import ensure_demo_world
from fashion_rag.errors import ArtifactError
from fashion_rag.manifest import DEMO_BUNDLE
from serve import tracing
from serve.autoscaling import LoadPolicy
from serve.conditioner import Conditioner
from serve.config import Config, ServeConfig
from serve.config_file import APP_NAME, Graph, read_graph
from serve.denoiser import Denoiser
from serve.http.auth import API_KEYS, CATALOGUE_KEYS, ApiKeys
from serve.ingress import Ingress
from serve.parser import Parser
from serve.ports import local_url
from serve.retriever import Retriever
from serve.startup_listener import StartupListener
from serve.vae import VAE

DEMO_WORLD = Path("out/world")
LOG_FOLDER = "/tmp/ray/session_latest/logs/serve"
# Far more calls than a stage ever has at once: the ingress and the denoiser refuse edits before.
MAX_CALLS = 1000
# Stages other than the denoiser get another replica for more calls in flight than this, which is about a batch.
TARGET_CALLS = 8
# The share of a GPU for each of the four replicas that run networks on it, so that one GPU holds the graph.
GPU_SHARE = 0.25

# What each deployment loads before it is ready.
LOADS = {
    "Ingress": "the routes",
    "Retriever": "the catalogue and its text encoder",
    "Parser": "the human parser and the pose estimator",
    "Conditioner": "the prompt and garment encoders",
    "VAE": "the VAE",
    "Denoiser": "the UNet",
}
POLL_S = 0.2

RAY_DEFAULTS = {
    # Otherwise Ray would report every start to its makers.
    "RAY_USAGE_STATS_ENABLED": "0",
    # By default, Serve replaces a proxy that takes more than 5 s to start, as it may on a busy machine.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    # Serve replaces a proxy that has failed three checks in a row. With the default period of 10 s, a port would be
    # dead for 30 s. A proxy that is only busy may still take three times the timeout.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "20",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.proxy.middlewares",
}


# Is called with what a start waits for, how many deployments are ready, and how many there are.
Report = Callable[[str, int, int], None]


def no_report(awaited: str, num_ready: int, num_all: int) -> None:
    """Report nothing."""


def build(config: ServeConfig) -> ray_serve.Application:
    """Return the graph, with one replica for each deployment, or as many as its load asks for."""
    runtime = config.runtime
    by_load = AutoscalingPolicy(policy_function=LoadPolicy, policy_kwargs={"target_load": config.target_load})
    retriever = Retriever.options(**_options(config, config.retriever)).bind(runtime, config.catalogue)
    on_gpu = {"num_gpus": config.replica_gpus}
    # It is part of the graph whatever the bundle has, because a graph may be built where its bundle is not.
    parser = Parser.options(**_options(config, config.parser, on_gpu)).bind(runtime)
    conditioner = Conditioner.options(**_options(config, config.conditioner, on_gpu)).bind(runtime, retriever)
    vae = VAE.options(**_options(config, config.vae, on_gpu)).bind(runtime)
    stages = {"retriever": retriever, "parser": parser, "conditioner": conditioner, "vae": vae}
    denoiser = Denoiser.options(**_options(config, config.denoiser, on_gpu, policy=by_load)).bind(runtime, stages)
    return Ingress.options(**_options(config, config.ingress)).bind(config, stages | {"denoiser": denoiser})


def _options(
    config: ServeConfig, settings: Config, resources: Mapping[str, float] | None = None, **scaling: Any
) -> dict[str, Any]:
    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": config.replica_cpus, **(resources or {})},
        "max_ongoing_requests": MAX_CALLS,
        "graceful_shutdown_timeout_s": config.drain_s,
        # Serve notices the death of a replica at the next check, and only then starts another.
        "health_check_period_s": 1.0,
        "user_config": settings.to_args(),
        "logging_config": LoggingConfig(encoding="JSON"),
    }
    if config.max_replicas > 1:
        options["autoscaling_config"] = AutoscalingConfig(
            max_replicas=config.max_replicas,
            target_ongoing_requests=TARGET_CALLS,
            upscale_delay_s=config.upscale_delay_s,
            downscale_delay_s=config.downscale_delay_s,
            **scaling,
        )
    return options


def app(args: dict[str, Any]) -> ray_serve.Application:
    """Return the graph for a Serve config file, which has the fields of ServeConfig as `args`."""
    return build(ServeConfig.from_args(args))


def run(
    bundle: Path | None,
    catalogue: str | Path | None,
    host: str,
    port: int,
    file: Path | None = None,
    listener: StartupListener | None = None,
    progress: Callable[[], AbstractContextManager[Report]] = lambda: nullcontext(no_report),
    traced: bool = False,
    **settings: Any,
) -> None:
    """Serve the graph on this machine until Ctrl-C.

    bundle, catalogue: by default the file's, else the bundle that ships and a catalogue of drawn garments. file: a
    Serve config file whose graph is served; this machine must have the GPUs and labels that it asks for. settings:
    fields of ServeConfig, which go before those of the file. listener: answers on the port until the graph's proxy
    does. progress: is entered while the graph starts. traced: as for `start`. Raises ArtifactError for what cannot be
    served.
    """
    graph = (read_graph(file) if file else Graph({}, [])).changed(settings)
    args = dict(graph.args)
    file_bundle, file_catalogue = args.pop("bundle", DEMO_BUNDLE), args.pop("catalogue", None)
    bundle, catalogue = bundle or Path(file_bundle), catalogue or file_catalogue
    try:
        with progress() as report:
            if catalogue is None:
                report("a catalogue to be drawn", 0, 0)
                catalogue = ensure_demo_world(DEMO_WORLD, bundle)
            try:
                config = local_config(bundle, catalogue, **args)
            except ValidationError as error:
                raise ArtifactError(_faults(error)) from error
            warnings = start(
                config, host, port, deployments=graph.deployments, listener=listener, report=report, traced=traced
            )
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr, flush=True)
        print(f"ready on {local_url(host, port)}; logs in {LOG_FOLDER}; Ctrl-C ends it", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        print("stopping; edits in flight are not finished", file=sys.stderr, flush=True)
    finally:
        stop()


def _faults(error: ValidationError) -> str:
    """Return which settings are wrong, and how, in one line."""
    lines = []
    for fault in error.errors():
        name = ".".join(map(str, fault["loc"]))
        lines.append(f"{name}: {fault['msg']}".lstrip(": "))
    return "; ".join(lines)


def local_config(bundle: Path, catalogue: str | Path, **settings: Any) -> ServeConfig:
    """Return the configuration of a graph on this machine, with its GPU if there is one. Raises as ServeConfig."""
    root = str(catalogue) if "://" in str(catalogue) else str(Path(catalogue).resolve())
    here = {"bundle": str(bundle.resolve()), "catalogue": root}
    gpus = {"replica_gpus": GPU_SHARE} if torch.cuda.is_available() else {}
    return ServeConfig.from_args(here | gpus | settings)


def start(
    config: ServeConfig,
    host: str,
    port: int,
    dashboard: bool = False,
    deployments: Sequence[dict[str, Any]] = (),
    listener: StartupListener | None = None,
    report: Report = no_report,
    traced: bool = False,
) -> list[str]:
    """Start Ray on this machine, and the graph in it; return the graph's warnings when it is ready.

    dashboard: whether to start Ray's dashboard, through which `serve deploy` brings new settings. deployments: the
    options of deployments in a Serve config file. listener: answers on the port until the graph's proxy does. report:
    is called with what the start waits for. traced: whether the spans of requests go to an OTLP collector, as the
    OTEL_* variables say. Raises ArtifactError for what cannot be served.
    """

    def say(awaited: str, num_ready: int = 0) -> None:
        report(awaited, num_ready, len(LOADS))
        if listener:
            listener.awaited = awaited

    say("the bundle and the catalogue to be checked")
    if listener:
        listener.allow(config.allow_origins)
    # What cannot be opened is found here at once, while a replica would try to start again and again.
    bundle = Bundle.open(Path(config.bundle))
    bundle.manifest.check_trained(bundle.path, config.untrained)
    bundle.open_catalogue(config.catalogue)
    ApiKeys.load(config.api_keys, API_KEYS, os.environ)
    ApiKeys.load(config.catalogue_keys, CATALOGUE_KEYS, os.environ)
    # The networks are exported here, where progress can be shown. The replicas find them in the cache.
    number = itertools.count(1)
    config.runtime.open(lambda: say(f"networks to be exported to ONNX, {next(number)} done"))
    for name, value in (RAY_DEFAULTS | (tracing.ENVIRONMENT if traced else {})).items():
        os.environ.setdefault(name, value)
    # Ray and Serve print much at their start. The logs of the replicas are in files.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    say("Ray to start")
    ray.init(address="local", include_dashboard=dashboard, logging_level=logging.ERROR, log_to_driver=False)
    try:
        ray_serve.start(http_options={"host": host, "port": port})
        if listener:
            listener.hand_over()
        _deploy(config, deployments)
        return _wait_until_ready(local_url(host, port), say)
    except BaseException:
        stop()
        raise


def _deploy(config: ServeConfig, deployments: Sequence[dict[str, Any]]) -> None:
    """Deploy the graph on the running Serve, without waiting until it is ready."""
    if deployments:
        client = _get_global_client()
        assert client is not None
        client.deploy_apps(ServeDeploySchema.model_validate(Graph(config.to_args(), list(deployments)).as_config()))
    else:
        target = ray_serve.RunTarget(target=build(config), name=APP_NAME)
        ray_serve.run_many([target], wait_for_applications_running=False)


def _wait_until_ready(url: str, say: Callable[[str, int], None]) -> list[str]:
    """Return the warnings of the graph once all of it answers. Raises ArtifactError where Serve gives up."""
    while True:
        application = ray_serve.status().applications[APP_NAME]
        if application.status == ApplicationStatus.DEPLOY_FAILED:
            raise ArtifactError(f"the graph could not be started: {_cause(application)}; logs in {LOG_FOLDER}")
        if application.status == ApplicationStatus.RUNNING:
            # This request also opens the gate of the proxy, so that the next request passes.
            with suppress(httpx.TransportError):
                reply = httpx.get(f"{url}/readyz", timeout=None, trust_env=False)
                if reply.is_success:
                    warnings: list[str] = reply.json()["warnings"]
                    return warnings
        states = application.deployments
        ready = [name for name in LOADS if name in states and states[name].status == DeploymentStatus.HEALTHY]
        loading = [f"{name} to load {loads}" for name, loads in LOADS.items() if name not in ready]
        say(", ".join(loading) or "all stages to answer", len(ready))
        time.sleep(POLL_S)


def _cause(application: ApplicationStatusOverview) -> str:
    """Return the error of a failed replica: the last line of what Serve reports of its deployment."""
    states = application.deployments.values()
    messages = [state.message for state in states if state.status == DeploymentStatus.DEPLOY_FAILED]
    lines = [line.strip() for line in "\n".join(messages or [application.message]).splitlines()]
    # Pydantic ends its errors with a link to its manual.
    lines = [line for line in lines if line and not line.startswith("For further information")]
    return lines[-1] if lines else "Serve does not say why"


def stop() -> None:
    """End the graph and the Ray that `start` started."""
    # Serve's own shutdown takes longer, and then Ray logs errors because its controller has gone.
    ray.shutdown()
