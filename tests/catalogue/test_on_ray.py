"""Ray Data encodes what one process would. The run on a real Ray is a process of its own, which takes Ray with it."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fashion_rag.catalogue.garment_encoding import EncodedGarment, Encoders, Part, encode
from fashion_rag.catalogue.garments import Garment
from fashion_rag.catalogue.on_ray import EncodingWorker
from fashion_rag.catalogue.storage import Root
from fashion_rag.catalogue.versions import live
from tests.catalogue.toy import Colours, load, made, painted

PROJECT = Path(__file__).parents[2]
SCRIPT = """
import functools, json, logging, sys
from pathlib import Path
import ray
from fashion_rag.catalogue.on_ray import on_ray
from fashion_rag.catalogue.garments import garments_in
from tests.catalogue.test_on_ray import dying
from tests.catalogue.toy import made

root, pictures, memory = map(Path, sys.argv[1:])
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
calls = []
built = made(
    root,
    garments_in(pictures),
    load=functools.partial(dying, memory),
    compute=functools.partial(on_ray, num_workers=1),
    progress=lambda *call: calls.append(call),
)
ray.shutdown()
print(json.dumps({"encoded": built.num_encoded, "skipped": built.skipped, "calls": calls}))
"""


class Dying(Colours):
    """A stand-in for the retrieval encoder that ends its process in its second batch, once."""

    def __init__(self, memory: Path) -> None:
        super().__init__()
        self.memory = memory
        self.num_batches = 0

    def encode_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        self.num_batches += 1
        if self.num_batches == 2 and not self.memory.exists():
            self.memory.touch()
            os._exit(1)
        return super().encode_images(images)


def dying(memory: Path) -> Encoders:
    retrieval: Any = Dying(memory)
    return replace(load(), retrieval=retrieval)


def test_a_worker_gives_what_encode_gives(tmp_path: Path) -> None:
    garments = painted(tmp_path / "pictures", {"a": "red", "b": "blue"})
    garments.insert(1, Garment("gone", "dresses", "", tmp_path / "gone.jpg"))
    root = Root.at(tmp_path / "catalogue")
    batch = {"garment": np.array([pickle.dumps(garment) for garment in garments], object)}
    outcomes = [pickle.loads(pickled) for pickled in EncodingWorker(load, root)(batch)["outcome"]]
    for outcome, expected in zip(outcomes, encode(garments, load(), root), strict=True):
        assert type(outcome) is type(expected)
        assert outcome[0] == expected[0]
        if isinstance(outcome, EncodedGarment) and isinstance(expected, EncodedGarment):
            assert np.array_equal(outcome.vector, expected.vector)
            assert np.array_equal(outcome.pseudo_words, expected.pseudo_words)


@pytest.mark.slow
def test_ray_builds_what_one_process_builds_though_a_worker_dies(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    colours = {f"g{number:03}": ("red", "lime", "blue")[number % 3] for number in range(70)}
    garments = painted(pictures, colours)
    (pictures / "dresses" / "g007.png").write_bytes(b"no picture")
    memory = tmp_path / "has-died"
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "ray", pictures, memory],
        cwd=PROJECT,
        # Ray's workers know neither the folder of this process nor the paths of pytest.
        env={**os.environ, "PYTHONPATH": str(PROJECT), "RAY_DATA_DISABLE_PROGRESS_BARS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    report = json.loads(run.stdout.splitlines()[-1])
    built = made(tmp_path / "here", garments)
    assert report["encoded"] == built.num_encoded == 69
    assert report["skipped"] == [list(skipped) for skipped in built.skipped]
    assert [garment_id for garment_id, _ in report["skipped"]] == ["g007"]
    assert report["calls"][-1] == [70, 70]
    assert memory.exists()
    ours, theirs = (Part(root / live(Root.at(root)).folder) for root in (tmp_path / "here", tmp_path / "ray"))
    assert list(ours.garments) == list(theirs.garments)
    assert np.array_equal(ours.vectors, theirs.vectors)
    assert np.array_equal(ours.pseudo_words, theirs.pseudo_words)
    assert all((tmp_path / "ray" / row.image).is_file() for row in theirs.garments)
