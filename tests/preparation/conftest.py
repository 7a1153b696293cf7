import shutil
from pathlib import Path

import pytest

from fashion_rag.demo.world.shop import write_shop
from fashion_rag.preparation.pictures import OutputForm
from fashion_rag.preparation.run import ShopFiles, prepare
from tests.preparation.knowing import NUM_PAIRS, SEED, SHAPE, KnowingReader


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


@pytest.fixture(scope="session")
def prepared_data(drawn_shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the data set that is prepared of the drawn shop. Copy it before a change."""
    root = tmp_path_factory.mktemp("prepared") / "data"
    shop = ShopFiles(drawn_shop / "photos", drawn_shop / "garments", drawn_shop / "pairs.csv")
    prepare(shop, KnowingReader.of_shop(drawn_shop).networks(), OutputForm(root, SHAPE, 1024))
    return root


@pytest.fixture
def own_data(prepared_data: Path, tmp_path: Path) -> Path:
    """Return a copy of the prepared data set, which a test may change."""
    return Path(shutil.copytree(prepared_data, tmp_path / "own-data"))
