import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from export.to_onnx import export_onnx
from fashion_rag.bundle import Bundle
from tests.golden.golden import Golden
from tests.tiny import add_tiny_student, make_tiny_bundle, make_tiny_catalogue

REPOSITORY = Path(__file__).parents[1]

# How long an example takes says something about the machine and its other work, and nothing about the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def golden() -> Golden:
    """Return the golden data, which are not part of the repository; without them the test is skipped."""
    folder = Path(os.environ.get("FASHION_RAG_GOLDEN", REPOSITORY / "../shared/golden")).resolve()
    if not (folder / "manifest.json").is_file():
        pytest.skip(f"no golden data in {folder}; set FASHION_RAG_GOLDEN")
    return Golden(folder)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of toy size with random weights. Shared: copy it before changing anything in it."""
    return make_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture(scope="session")
def tiny_person_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return `tiny_bundle` with a human parser and a pose estimator, also of random weights. Shared like it."""
    return make_tiny_bundle(tmp_path_factory.mktemp("tiny-person") / "bundle", person=True)


@pytest.fixture(scope="session")
def tiny_student_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Path:
    """Return `tiny_bundle` with a student of its UNet. Shared like it."""
    return add_tiny_student(tmp_path_factory.mktemp("tiny-student") / "bundle", tiny_bundle)


@pytest.fixture(scope="session")
def tiny_catalogue(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Path:
    """Return a catalogue of twelve coloured garments, built with the encoder of `tiny_bundle`. Shared like it."""
    return make_tiny_catalogue(tmp_path_factory.mktemp("tiny") / "catalogue", tiny_bundle)


@pytest.fixture(scope="session")
def onnx_folder(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the networks of `tiny_bundle` as ONNX files. Shared: copy it before changing anything in it."""
    folder = tmp_path_factory.mktemp("onnx") / "tiny"
    export_onnx(Bundle.open(tiny_bundle), folder)
    return folder
