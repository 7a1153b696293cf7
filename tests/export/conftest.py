from pathlib import Path

import pytest

from export.to_onnx import export_onnx
from fashion_rag.bundle import Bundle


@pytest.fixture(scope="session")
def onnx_folder(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The networks of `tiny_bundle` as ONNX files. Shared: copy it before changing anything in it."""
    folder = tmp_path_factory.mktemp("onnx") / "tiny"
    export_onnx(Bundle.open(tiny_bundle), folder)
    return folder
