"""The tasks of a start that need PyTorch: files are checked, networks are exported, and the graph is deployed.

They run in the process of `serve.starter`. `say` is called with what a task waits for.
"""

import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import serve as ray_serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

# Imported with this module, while Ray starts, because all tasks need it.
from export import backend  # noqa: F401
from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.catalogue import Catalogue
from fashion_rag.catalogue.garments import INVERSION
from fashion_rag.demo.world.catalogue import ensure_demo_world
from serve.config import ServeConfig
from serve.config_file import APP_NAME, Graph
from serve.graph import build

Say = Callable[[str], None]


def draw_catalogue(say: Say, folder: Path, bundle: Path) -> Path:
    """Return the folder of a catalogue of drawn garments. Arguments and errors as for `ensure_demo_world`."""
    say("a catalogue to be drawn")
    return ensure_demo_world(folder, bundle)


def check(say: Say, config: ServeConfig) -> None:
    """Raise ArtifactError for files that cannot be served, and export the networks where they are missing.

    The replicas would try to start again and again. They find what is exported here in the user's cache.
    """
    bundle = Bundle.open(Path(config.bundle))
    fingerprints = bundle.fingerprints()
    bundle.check_catalogue(config.catalogue, fingerprints)
    Catalogue.open(config.catalogue, inversion=fingerprints[INVERSION])
    number = itertools.count(1)
    config.runtime.open(lambda: say(f"networks to be exported to ONNX, {next(number)} done"))


def deploy(say: Say, address: str, config: ServeConfig, deployments: Sequence[dict[str, Any]]) -> None:
    """Deploy the graph on the Ray at `address`, on which Serve runs, without waiting until it is ready.

    deployments: the options of deployments in a Serve config file.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    if deployments:
        client = _get_global_client()
        assert client is not None
        client.deploy_apps(ServeDeploySchema.model_validate(Graph(config.to_args(), list(deployments)).as_config()))
    else:
        target = ray_serve.RunTarget(target=build(config), name=APP_NAME)
        ray_serve.run_many([target], wait_for_applications_running=False)
    ray.shutdown()
