import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden data, which is not part of the repository."""
    folder = Path(os.environ.get("FASHION_RAG_GOLDEN", REPOSITORY / "../shared/golden")).resolve()
    if not (folder / "manifest.json").is_file():
        pytest.skip(f"no golden data in {folder}; set FASHION_RAG_GOLDEN")
    return folder
