import json
from collections.abc import Iterator

import pytest
import torch

from fashion_rag.data.dresscode import RETRIEVAL_MODEL, DressCode
from fashion_rag.demo.world.layout import write_dresscode
from fashion_rag.training.data import Source


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run each test with one thread, as processes that share a training do; else sums may differ in the last digit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Return three dressed paper dolls of each category, with retrieval files that list the garments backwards."""
    root = tmp_path_factory.mktemp("dolls") / "world"
    write_dresscode(root, num_pairs=3, seed=0, size=(128, 96), phase="train")
    retrieval = root.parent / "retrieval"
    (retrieval / RETRIEVAL_MODEL).mkdir(parents=True)
    people = list(DressCode(root, "train", size=(128, 96)))
    for category in {person.category for person in people}:
        own = [person for person in people if person.category == category]
        names = [str(person.garment_path.relative_to(root)) for person in own][::-1]
        retrieved = {"pred_files": {person.caption: names for person in own}}
        (retrieval / RETRIEVAL_MODEL / f"train_{category}_triplet.json").write_text(json.dumps(retrieved))
    return Source(root, retrieval)
