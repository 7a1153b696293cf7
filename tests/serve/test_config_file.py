"""Tests Serve config files as operators write them, and what `fashion-rag serve` makes of them, without Ray."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.schema import DeploymentStatus

from fashion_rag.errors import ArtifactError
from serve import app
from serve.config import ServeConfig
from serve.config_file import Graph, parse_graph, read_graph

TEXT = """
proxy_location: EveryNode
applications:
  - name: fashion-rag
    import_path: serve.app:app
    args: {bundle: /b, catalogue: /c, drain_s: 60}
    deployments:
      - {name: Denoiser, user_config: {max_rows: 4}}
"""


def test_a_file_has_arguments_and_deployments(tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text(TEXT)
    graph = read_graph(tmp_path / "serve.yaml")
    assert graph.args == {"bundle": "/b", "catalogue": "/c", "drain_s": 60}
    assert graph.deployments == [{"name": "Denoiser", "user_config": {"max_rows": 4}}]


def test_what_is_deployed_is_read_back(tmp_path: Path) -> None:
    graph = parse_graph(TEXT)
    # JSON is YAML.
    assert parse_graph(str(graph.as_config()).replace("'", '"')) == graph


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (TEXT, "a: [", "is not YAML"),
        (TEXT, "- a", "must be a mapping"),
        ("serve.app:app", "serve.app:run", "must be one, with import_path serve.app:app"),
        ("drain_s: 60", "drain: 60", "drain"),
        ("drain_s: 60", "drain_s: 0", "drain_s: got 0"),
        ("proxy_location", "proxy_place", "the file: does not know proxy_place"),
        ("deployments:", "deployment:", "application: does not know deployment"),
        ("user_config:", "user_confg:", "deployment Denoiser: does not know user_confg"),
        ("EveryNode", "Somewhere", "proxy_location"),
    ],
)
def test_a_fault_in_a_file_is_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in TEXT
    path = tmp_path / "serve.yaml"
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(ArtifactError, match=words) as raised:
        read_graph(path)
    assert str(path) in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no Serve config file"):
        read_graph(tmp_path / "no-such.yaml")


def test_what_is_given_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[ServeConfig, Any]] = []

    def start(config: ServeConfig, host: str, port: int, deployments: Any, **given: Any) -> None:
        started.append((config, deployments))
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "start", start)
    monkeypatch.setattr(app, "stop", lambda: None)
    path = tmp_path / "serve.yaml"
    path.write_text(TEXT)
    app.run(None, None, "127.0.0.1", 8000, path)
    app.run(tmp_path / "bundle", "memory://c", "127.0.0.1", 8000, path, backend="torch")
    (as_told, deployments), (changed, _) = started
    assert (as_told.bundle, as_told.catalogue, as_told.drain_s) == ("/b", "/c", 60)
    assert deployments == [{"name": "Denoiser", "user_config": {"max_rows": 4}}]
    assert not as_told.one_process
    assert (changed.bundle, changed.catalogue) == (str(tmp_path / "bundle"), "memory://c")
    assert (changed.backend, changed.drain_s) == ("torch", 60)


def test_a_setting_that_is_given_leaves_its_neighbours_in_the_file() -> None:
    text = TEXT.replace("drain_s: 60", "drain_s: 60, denoiser: {max_rows: 2, max_waiting: 5}")
    changed = parse_graph(text).changed({"denoiser": {"max_rows": 6}, "ingress": {"deadline_s": 9}, "drain_s": 7})
    assert changed.args == {
        "bundle": "/b",
        "catalogue": "/c",
        "drain_s": 7,
        "denoiser": {"max_rows": 6, "max_waiting": 5},
        "ingress": {"deadline_s": 9},
    }
    # What a deployment has of its own would hide the arguments.
    assert changed.deployments == [{"name": "Denoiser", "user_config": {"max_rows": 6}}]
    assert parse_graph(text).deployments == [{"name": "Denoiser", "user_config": {"max_rows": 4}}]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_threads": 0}, "num_threads: got 0"),
        ({"denoiser": {"max_rows": 1}}, "max_rows: got 1"),
        ({"allow_origins": ["shop.example"]}, "allow_origins: got 'shop.example'"),
        ({"allow_origins": ["https://shop.example/"]}, "without a path"),
    ],
)
def test_a_setting_out_of_its_range_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(app, "stop", lambda: None)
    with pytest.raises(ArtifactError, match=words) as raised:
        app.run(tmp_path, "memory://c", "127.0.0.1", 8000, **settings)
    assert len(str(raised.value).splitlines()) == 1


def test_a_graph_names_the_application_that_the_code_serves() -> None:
    (application,) = Graph({}, []).as_config()["applications"]
    assert (application["name"], application["import_path"]) == ("fashion-rag", "serve.app:app")


def test_the_cause_of_a_failed_start_is_the_replicas_last_word() -> None:
    message = "The deployment failed to start 3 times in a row. Error:\nTraceback:\n  file\nArtifactError: no bundle\n"
    state = SimpleNamespace(status=DeploymentStatus.DEPLOY_FAILED, message=message)
    healthy = SimpleNamespace(status=DeploymentStatus.HEALTHY, message="")
    application: Any = SimpleNamespace(message="the application failed", deployments={"VAE": state, "Ingress": healthy})
    assert app._cause(application) == "ArtifactError: no bundle"
    state.message += "    For further information visit a page\n"
    assert app._cause(application) == "ArtifactError: no bundle"
    application.deployments = {}
    assert app._cause(application) == "the application failed"
