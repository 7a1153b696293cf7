from pathlib import Path

import pytest

from fashion_rag.demo.world.shop import write_shop
from fashion_rag.preparation.run import ShopFiles
from tests.preparation.knowing import NUM_PAIRS, SEED, KnowingReader


@pytest.fixture(scope="session")
def drawn_shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a drawn shop with four pairs of each category. Copy it before a change."""
    root = tmp_path_factory.mktemp("shop") / "shop"
    write_shop(root, NUM_PAIRS, SEED)
    return root


@pytest.fixture
def shop(drawn_shop: Path) -> ShopFiles:
    return ShopFiles(drawn_shop / "photos", drawn_shop / "garments", drawn_shop / "pairs.csv")


@pytest.fixture
def reader(drawn_shop: Path) -> KnowingReader:
    return KnowingReader.of_shop(drawn_shop)
