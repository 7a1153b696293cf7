"""Ray Data prepares what one process would. The run on a real Ray is a process of its own, which takes Ray with it."""

import json
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fashion_rag.preparation.on_ray import PreparingWorker
from fashion_rag.preparation.pictures import OutputForm
from fashion_rag.preparation.planning import Picture
from tests.preparation.knowing import NUM_PAIRS, SHAPE, KnowingReader, drawn_pairs

PROJECT = Path(__file__).parents[2]
SCRIPT = """
import dataclasses, functools, json, logging, sys
from pathlib import Path
import ray
from fashion_rag.preparation.on_ray import on_ray
from fashion_rag.preparation.pictures import OutputForm
from fashion_rag.preparation.run import Networks, ShopFiles, prepare
from tests.preparation.knowing import NUM_PAIRS, SHAPE, KnowingReader, no_category
from tests.preparation.test_on_ray import Dying

shop, out, memory = map(Path, sys.argv[1:])
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
calls = []
prepared = prepare(
    ShopFiles(shop / "photos", shop / "garments", shop / "pairs.csv"),
    Networks(functools.partial(Dying, shop, memory), "knowing", no_category),
    OutputForm(out, SHAPE, 1024),
    compute=functools.partial(on_ray, num_workers=1),
    progress=lambda *call: calls.append(call),
)
ray.shutdown()
print(json.dumps({"made": prepared.num_made, "refusals": len(prepared.refusals), "calls": calls}))
"""


class Dying:
    """A reader that ends its process the first time it is called."""

    def __init__(self, shop: Path, memory: Path) -> None:
        self.reader = KnowingReader.of_shop(shop)
        self.memory = memory

    def __call__(self, photos):
        if not self.memory.exists():
            self.memory.touch()
            os._exit(1)
        return self.reader(photos)


def files_in(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_worker_prepares_what_it_is_sent(drawn_shop: Path, tmp_path: Path) -> None:
    pair = drawn_pairs()[0]
    pictures = [
        Picture("photo", "1", pair.category, drawn_shop / "photos" / pair.photo_name),
        Picture("garment", "2", pair.category, drawn_shop / "garments" / pair.garment_name),
        Picture("garment", "3", pair.category, drawn_shop / "pairs.csv"),
    ]
    for name in ("images", "label_maps", "keypoints", "outcomes"):
        (tmp_path / pair.category / name).mkdir(parents=True)
    worker = PreparingWorker(partial(KnowingReader.of_shop, drawn_shop), OutputForm(tmp_path, SHAPE, 1024))
    batch = {"picture": np.array([pickle.dumps(picture) for picture in pictures], object)}
    outcomes = [pickle.loads(pickled) for pickled in worker(batch)["outcome"]]
    assert [outcome.picture for outcome in outcomes] == pictures
    assert [outcome.fault is None for outcome in outcomes] == [True, True, False]
    names = {path.name for path in (tmp_path / pair.category).rglob("*") if path.is_file()}
    assert names == {"1_0.jpg", "1_4.png", "1_2.json", "2_1.jpg", "1_0.json", "2_1.json", "3_1.json"}


@pytest.mark.slow
def test_ray_prepares_what_one_process_prepares_though_a_worker_dies(
    drawn_shop: Path, prepared_data: Path, tmp_path: Path
) -> None:
    memory = tmp_path / "has-died"
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, drawn_shop, tmp_path / "ray", memory],
        cwd=PROJECT,
        # Ray's workers know neither the folder of this process nor the paths of pytest.
        env={**os.environ, "PYTHONPATH": str(PROJECT), "RAY_DATA_DISABLE_PROGRESS_BARS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    report = json.loads(run.stdout.splitlines()[-1])
    assert memory.exists()
    assert (report["made"], report["refusals"]) == (6 * NUM_PAIRS, 0)
    assert report["calls"][-1] == ["preparing pictures", 6 * NUM_PAIRS, 6 * NUM_PAIRS]
    assert files_in(tmp_path / "ray") == files_in(prepared_data)
