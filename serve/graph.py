"""The graph of deployments, and how they scale.

    ingress ──► denoiser ──► retriever.choose         where the caller names no category
       │            ├──────► conditioner ──► retriever
       │            ├──────► parser                   where the photo is to be read
       │            └──────► VAE.encode
       ├──────────► VAE.decode
       └──────────► parser                            for a mask alone

Where the bundle's student is served, it has denoisers of its own, which are called like the others. An arrow points to
the stage that is called. The denoiser calls once it has taken an edit on (`preparation.py`).

`app.py` imports this module only in the processes that deploy the graph, because the deployments bring PyTorch along.
"""

from collections.abc import Mapping
from typing import Any

from ray import serve as ray_serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.schema import LoggingConfig

from serve.autoscaling import LoadPolicy
from serve.conditioner import Conditioner
from serve.config import STUDENT_DENOISER, Config, ServeConfig, StagesSettings
from serve.denoiser import Denoiser
from serve.handles import StageHandle
from serve.ingress import Ingress
from serve.parser import Parser
from serve.retriever import Retriever
from serve.stages import Stages
from serve.vae import VAE

# Far more calls than a stage ever has at once: the ingress and the denoiser refuse edits before.
MAX_CALLS = 1000
# Stages other than the denoiser get another replica for more calls in flight than this, which is about a batch.
TARGET_CALLS = 8


def build(config: ServeConfig) -> ray_serve.Application:
    """Return the graph, with one replica for each deployment, or as many as its load asks for."""
    on_gpu = {"num_gpus": config.replica_gpus}
    by_load = AutoscalingPolicy(policy_function=LoadPolicy, policy_kwargs={"target_load": config.target_load})
    stages = _in_one_process(config, on_gpu) if config.one_process else _apart(config, on_gpu)
    denoiser_options = _options(config, config.denoiser, on_gpu, policy=by_load)
    denoisers: dict[str, Any] = {"denoiser": Denoiser.options(**denoiser_options).bind(config.runtime, stages)}
    if config.student:
        apart = Denoiser.options(name="StudentDenoiser", **denoiser_options)
        denoisers[STUDENT_DENOISER] = apart.bind(config.runtime, stages, student=True)
    return Ingress.options(**_options(config, config.ingress)).bind(config, stages | denoisers)


def _apart(config: ServeConfig, on_gpu: Mapping[str, float]) -> dict[str, Any]:
    """Return the stages that prepare and finish edits by name, each with replicas of its own."""
    runtime = config.runtime
    retriever = Retriever.options(**_options(config, config.retriever)).bind(runtime, config.catalogue)
    # It is part of the graph whatever the bundle has, because a graph may be built where its bundle is not.
    parser = Parser.options(**_options(config, config.parser, on_gpu)).bind(runtime)
    conditioner = Conditioner.options(**_options(config, config.conditioner, on_gpu)).bind(runtime, retriever)
    vae = VAE.options(**_options(config, config.vae, on_gpu)).bind(runtime)
    return {"retriever": retriever, "parser": parser, "conditioner": conditioner, "vae": vae}


def _in_one_process(config: ServeConfig, on_gpu: Mapping[str, float]) -> dict[str, Any]:
    """Return the same stages, all with the same replicas, which take as many calls as they would together."""
    settings = StagesSettings(config.retriever, config.parser, config.conditioner, config.vae)
    names = settings.to_args()
    options = _options(config, settings, on_gpu) | {"max_ongoing_requests": len(names) * MAX_CALLS}
    together = Stages.options(**options).bind(config.runtime, config.catalogue)
    return {name: StageHandle(together, name) for name in names}


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
