"""Reads and writes Serve config files of the graph, which `serve deploy`, KubeRay and `fashion-rag serve` share.

applications:
  - name: fashion-rag
    import_path: serve.app:app
    args: {bundle: /models/bundle, catalogue: /models/catalogue}     # the fields of ServeConfig
    deployments:                                                      # what Serve may change while the graph runs
      - {name: Denoiser, user_config: {max_rows: 16}, autoscaling_config: {max_replicas: 4, ...}}
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel
from ray.serve.schema import DeploymentSchema, ServeApplicationSchema, ServeDeploySchema

from fashion_rag.errors import ArtifactError
from serve.config import ServeConfig

APP_NAME = "fashion-rag"
IMPORT_PATH = "serve.app:app"


class Graph(NamedTuple):
    """The graph in a file: the fields of ServeConfig, and the options of its deployments."""

    args: dict[str, Any]
    deployments: list[dict[str, Any]]

    def changed(self, settings: Mapping[str, Any]) -> "Graph":
        """Return the graph with these fields of ServeConfig in place of its own.

        The settings of a deployment are changed one by one, both in the graph's arguments and in the deployment's
        `user_config`, which would otherwise go before them.
        """
        args = dict(self.args)
        for name, value in settings.items():
            current = args.get(name)
            if isinstance(current, dict) and isinstance(value, dict):
                value = current | value
            args[name] = value
        deployments = []
        for deployment in self.deployments:
            changes = settings.get(deployment["name"].lower(), {})
            if "user_config" in deployment:
                deployment = deployment | {"user_config": deployment["user_config"] | changes}
            deployments.append(deployment)
        return Graph(args, deployments)

    def as_config(self) -> dict[str, Any]:
        """Return the content of a Serve config file, without the options of the cluster."""
        application = {"name": APP_NAME, "import_path": IMPORT_PATH, "args": self.args}
        return {"applications": [application | {"deployments": self.deployments}]}


def read_graph(path: Path) -> Graph:
    """Return the graph in a Serve config file.

    Raises ArtifactError, naming the fault, for a file that holds anything else.
    """
    try:
        return parse_graph(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: no Serve config file of this graph: {error}") from error


def parse_graph(text: str) -> Graph:
    """Return the graph in the text of a Serve config file. Raises ValueError, naming the fault."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"holds {type(content).__name__}; must be a mapping")
    applications = ServeDeploySchema.model_validate(content).applications
    if [application.import_path for application in applications] != [IMPORT_PATH]:
        raise ValueError(f"applications: must be one, with import_path {IMPORT_PATH}")
    (application,) = content["applications"]
    # Serve itself ignores unknown names.
    _refuse_unknown("the file", content, ServeDeploySchema)
    _refuse_unknown("application", application, ServeApplicationSchema)
    for deployment in application.get("deployments", []):
        _refuse_unknown(f"deployment {deployment['name']}", deployment, DeploymentSchema)
    args = application.get("args", {})
    ServeConfig.from_args(args)
    return Graph(args, application.get("deployments", []))


def _refuse_unknown(where: str, content: dict[str, Any], model: type[BaseModel]) -> None:
    """Raise ValueError if the content has a name that the model does not have."""
    if unknown := content.keys() - model.model_fields.keys():
        raise ValueError(f"{where}: does not know {', '.join(sorted(unknown))}")
