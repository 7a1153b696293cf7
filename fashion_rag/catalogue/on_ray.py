"""Encodes garments with Ray Data, on one machine or all nodes of a cluster. `fashion-rag index build` calls it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import ray

from fashion_rag.catalogue.garment_encoding import BATCH_SIZE, EncodedGarment, Encoders, Skipped, encode
from fashion_rag.catalogue.garments import Garment
from fashion_rag.catalogue.storage import Root


class EncodingWorker:
    """A worker that loads the encoders once. It gets garments as pickles, since a table has no columns for them."""

    def __init__(self, load: Callable[[], Encoders], root: Root) -> None:
        self.encoders = load()
        self.root = root

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the pickled outcomes of a batch of pickled garments, one in each row."""
        outcomes = encode([pickle.loads(garment) for garment in batch["garment"]], self.encoders, self.root)
        return {"outcome": np.array([pickle.dumps(outcome) for outcome in outcomes], dtype=object)}


def on_ray(
    batches: Iterable[Sequence[Garment]],
    load: Callable[[], Encoders],
    root: Root,
    num_workers: int = 1,
    num_gpus: float = 0,
) -> Iterator[Sequence[EncodedGarment | Skipped]]:
    """Yield the outcomes of all garments, encoded by the Ray that this process is connected to. This is a `Compute`.

    batches: the garments, which Ray may batch in another way.
    load: loads the encoders, once in each worker.
    root: where the pictures go; every node must be able to write to it.
    num_workers: how many processes encode.
    num_gpus: how much of a GPU each worker takes.

    If a worker or a node dies, its batches are encoded again.
    """
    rows = [{"garment": pickle.dumps(garment)} for batch in batches for garment in batch]
    data = ray.data.from_items(rows, override_num_blocks=max(1, len(rows) // BATCH_SIZE))
    encoded = data.map_batches(
        EncodingWorker,
        fn_constructor_args=(load, root),
        batch_size=BATCH_SIZE,
        compute=ray.data.ActorPoolStrategy(size=num_workers),
        num_gpus=num_gpus,
    )
    for batch in encoded.iter_batches(batch_size=BATCH_SIZE, batch_format="numpy"):
        yield [pickle.loads(outcome) for outcome in batch["outcome"]]
