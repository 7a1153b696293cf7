"""A real graph on a real Ray, started once for all tests of this folder."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fashion_rag.pipeline import Pipeline
from serve import app
from serve.config import IngressSettings, ServeConfig


@pytest.fixture(scope="package")
def config(tiny_bundle: Path, tiny_catalogue: Path, onnx_folder: Path) -> ServeConfig:
    """What the graph under test runs with; a test that puts another in its place puts this one back."""
    # On a machine with much else to do, the longest edits of these tests take minutes.
    ingress = IngressSettings(deadline_s=3600.0)
    return ServeConfig(
        str(tiny_bundle), str(tiny_catalogue), backend="onnx", compiled=str(onnx_folder), ingress=ingress
    )


@pytest.fixture(scope="package")
def url(config: ServeConfig) -> Iterator[str]:
    """Where the graph of the tiny bundle answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app.start(config, "127.0.0.1", port, dashboard=True)
    yield f"http://127.0.0.1:{port}"
    app.stop()


@pytest.fixture(scope="package")
def pipeline(tiny_bundle: Path, tiny_catalogue: Path) -> Iterator[Pipeline]:
    threads = torch.get_num_threads()
    # As many as a replica has: sums may differ in the last digit otherwise.
    torch.set_num_threads(1)
    yield Pipeline.load(tiny_bundle, tiny_catalogue)
    torch.set_num_threads(threads)
