import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.golden.golden import Golden

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def golden() -> Golden:
    """The golden data, which are not part of the repository."""
    folder = Path(os.environ.get("FASHION_RAG_GOLDEN", REPOSITORY / "../shared/golden")).resolve()
    if not (folder / "manifest.json").is_file():
        pytest.skip(f"no golden data in {folder}; set FASHION_RAG_GOLDEN")
    return Golden(folder)


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield
