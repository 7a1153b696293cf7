"""How the graph starts: on this machine with `run`, which the command line calls, and on a cluster with `app`.

    serve run serve.app:app bundle=/models/bundle catalogue=/models/catalogue     # on a Ray cluster
    grep REQUEST_ID /tmp/ray/session_latest/logs/serve/*.log                      # what the replicas say of one edit

The process of the command line waits here as long as the server runs. So this module does not import `graph.py`, which
would bring PyTorch along: the processes that deploy the graph do (`starter.py`, or Serve's own).
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import ray
from pydantic import ValidationError
from ray import serve as ray_serve
from ray.serve.schema import (  # type: ignore[attr-defined]
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
)

from fashion_rag.artifacts import MANIFEST_FILE
from fashion_rag.errors import ArtifactError
from fashion_rag.manifest import DEMO_BUNDLE, Manifest, has_student
from serve import tracing
from serve.config import ServeConfig
from serve.config_file import APP_NAME, Graph, read_graph
from serve.http.auth import API_KEYS, CATALOGUE_KEYS, ApiKeys
from serve.ports import local_url
from serve.starter import Starter
from serve.startup_listener import StartupListener

DEMO_WORLD = Path("out/world")
LOG_FOLDER = "/tmp/ray/session_latest/logs/serve"
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
# The same, where stages share a process.
LOADS_IN_ONE_PROCESS = {
    "Ingress": "the routes",
    "Stages": "the catalogue, the encoders, the VAE and what reads photos",
    "Denoiser": "the UNet",
}
# One of these is there where the system has a driver of a GPU. To ask PyTorch for GPUs, it must be imported.
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
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


def app(args: dict[str, Any]) -> ray_serve.Application:
    """Return the graph for a Serve config file, which has the fields of ServeConfig as `args`."""
    # Imported here, because it brings PyTorch along.
    from serve.graph import build

    return build(ServeConfig.from_args(args))


def run(
    bundle: Path | None,
    catalogue: str | Path | None,
    host: str,
    port: int,
    file: Path | None = None,
    listener: StartupListener | None = None,
    progress: Callable[[], AbstractContextManager[Report]] = lambda: nullcontext(no_report),
    starter: Starter | None = None,
    traced: bool = False,
    **settings: Any,
) -> None:
    """Serve the graph on this machine until Ctrl-C.

    bundle, catalogue: by default the file's, else the bundle that ships and a catalogue of drawn garments. file: a
    Serve config file whose graph is served; this machine must have the GPUs and labels that it asks for. settings:
    fields of ServeConfig, which go before those of the file. listener: answers on the port until the graph's proxy
    does. progress: is entered while the graph starts. starter: a process that is already there for the start. traced:
    as for `start`. Raises ArtifactError for what cannot be served.
    """
    graph = (read_graph(file) if file else Graph({}, [])).changed(settings)
    args = dict(graph.args)
    file_bundle, file_catalogue = args.pop("bundle", DEMO_BUNDLE), args.pop("catalogue", None)
    bundle, catalogue = bundle or Path(file_bundle), catalogue or file_catalogue
    try:
        with progress() as report, starter or Starter() as starter:
            if catalogue is None:
                catalogue = starter.do("draw_catalogue", DEMO_WORLD, bundle, say=lambda awaited: report(awaited, 0, 0))
            if graph.deployments:
                # They may be options of any stage, which then must be a deployment.
                args.setdefault("one_process", False)
            try:
                config = local_config(bundle, catalogue, **args)
            except ValidationError as error:
                raise ArtifactError(_faults(error)) from error
            warnings = start(
                config,
                host,
                port,
                deployments=graph.deployments,
                listener=listener,
                report=report,
                starter=starter,
                traced=traced,
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
    """Return the configuration of a graph on this machine, with its GPU if there is one. Raises as ServeConfig.

    Where the stages have one replica each and compute on the CPU, they share a process. A student is served if the
    bundle has one.
    """
    root = str(catalogue) if "://" in str(catalogue) else str(Path(catalogue).resolve())
    here = {"bundle": str(bundle.resolve()), "catalogue": root}
    gpus = {"replica_gpus": GPU_SHARE} if _has_gpu() else {}
    config = ServeConfig.from_args(here | gpus | settings)
    if "student" not in settings:
        config = replace(config, student=has_student(bundle))
    if "one_process" not in settings:
        config = replace(config, one_process=config.max_replicas == 1 and config.replica_gpus == 0)
    return config


def _has_gpu() -> bool:
    """Return whether PyTorch finds a GPU on this machine."""
    if not any(map(os.path.exists, GPU_DRIVERS)):
        return False
    # Imported here, because it takes seconds.
    import torch

    return torch.cuda.is_available()


def start(
    config: ServeConfig,
    host: str,
    port: int,
    dashboard: bool = False,
    deployments: Sequence[dict[str, Any]] = (),
    listener: StartupListener | None = None,
    report: Report = no_report,
    starter: Starter | None = None,
    traced: bool = False,
) -> list[str]:
    """Start Ray on this machine, and the graph in it; return the graph's warnings when it is ready.

    dashboard: whether to start Ray's dashboard, through which `serve deploy` brings new settings. deployments: the
    options of deployments in a Serve config file. listener: answers on the port until the graph's proxy does. report:
    is called with what the start waits for. starter: a process that is already there for the start, and ends with it.
    traced: whether the spans of requests go to an OTLP collector, as the OTEL_* variables say. Raises ArtifactError for
    what cannot be served.
    """
    loads = LOADS_IN_ONE_PROCESS if config.one_process else LOADS
    if config.student:
        loads = loads | {"StudentDenoiser": "the student"}

    def say(awaited: str, num_ready: int = 0) -> None:
        report(awaited, num_ready, len(loads))
        if listener:
            listener.awaited = awaited

    say("the bundle and the catalogue to be checked")
    if listener:
        listener.allow(config.allow_origins)
    path = Path(config.bundle)
    Manifest.read(path / MANIFEST_FILE).check_trained(path, config.untrained)
    ApiKeys.load(config.api_keys, API_KEYS, os.environ)
    ApiKeys.load(config.catalogue_keys, CATALOGUE_KEYS, os.environ)
    for name, value in (RAY_DEFAULTS | (tracing.ENVIRONMENT if traced else {})).items():
        os.environ.setdefault(name, value)
    # Ray and Serve print much at their start. The logs of the replicas are in files.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        with starter or Starter() as starter:
            starter.begin("check", config)
            say("Ray to start")
            ray.init(address="local", include_dashboard=dashboard, logging_level=logging.ERROR, log_to_driver=False)
            ray_serve.start(http_options={"host": host, "port": port})
            if listener:
                listener.hand_over()
            say("the bundle and the catalogue to be checked")
            starter.result(say)
            starter.do("deploy", ray.get_runtime_context().gcs_address, config, deployments, say=say)
        return _wait_until_ready(local_url(host, port), loads, say)
    except BaseException:
        stop()
        raise


def _wait_until_ready(url: str, loads: Mapping[str, str], say: Callable[[str, int], None]) -> list[str]:
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
        ready = [name for name in loads if name in states and states[name].status == DeploymentStatus.HEALTHY]
        loading = [f"{name} to load {loaded}" for name, loaded in loads.items() if name not in ready]
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
