"""A real graph on a real Ray, started once for all tests of this folder."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fashion_rag.pipeline import Pipeline
from serve import app
from serve.config import IngressSettings, RetrieverSettings, ServeConfig
from serve.ports import free_port
from tests.serve.client import CATALOGUE_KEY


@pytest.fixture(scope="package")
def config(
    tiny_bundle: Path, tiny_catalogue: Path, onnx_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> ServeConfig:
    """Return the configuration of the graph under test. A test that deploys another one deploys this one again.

    The catalogue is a copy. Tests may change it if they change it back.
    """
    folder = tmp_path_factory.mktemp("served")
    (folder / "keys").write_text(f"{CATALOGUE_KEY}\n")
    return ServeConfig(
        str(tiny_bundle),
        str(shutil.copytree(tiny_catalogue, folder / "catalogue")),
        backend="onnx",
        compiled=str(onnx_folder),
        catalogue_keys=str(folder / "keys"),
        # On a machine with much else to do, the longest edits of these tests take minutes.
        ingress=IngressSettings(deadline_s=3600.0),
        retriever=RetrieverSettings(refresh_s=0.1),
    )


@pytest.fixture(scope="package")
def url(config: ServeConfig) -> Iterator[str]:
    """Yield the URL of the graph of the tiny bundle."""
    port = free_port()
    app.start(config, "127.0.0.1", port, dashboard=True)
    yield f"http://127.0.0.1:{port}"
    app.stop()


@pytest.fixture(scope="package")
def pipeline(tiny_bundle: Path, tiny_catalogue: Path) -> Iterator[Pipeline]:
    threads = torch.get_num_threads()
    # With as many threads as a replica has, because sums may differ in the last digit otherwise.
    torch.set_num_threads(1)
    yield Pipeline.load(tiny_bundle, tiny_catalogue)
    torch.set_num_threads(threads)
