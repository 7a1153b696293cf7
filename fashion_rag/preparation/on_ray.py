"""Prepares pictures with Ray Data, on one machine or all nodes of a cluster. `fashion-rag prepare` calls it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import ray

from fashion_rag.preparation.pictures import BATCH_SIZE, Outcome, OutputForm, Read, prepare_pictures
from fashion_rag.preparation.planning import Picture


class PreparingWorker:
    """A worker that loads the networks once. It gets pictures as pickles, since a table has no columns for them."""

    def __init__(self, load: Callable[[], Read], form: OutputForm) -> None:
        self.read = load()
        self.form = form

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the pickled outcomes of a batch of pickled pictures, one in each row."""
        outcomes = prepare_pictures([pickle.loads(picture) for picture in batch["picture"]], self.read, self.form)
        return {"outcome": np.array([pickle.dumps(outcome) for outcome in outcomes], dtype=object)}


def on_ray(
    batches: Iterable[Sequence[Picture]],
    load: Callable[[], Read],
    form: OutputForm,
    num_workers: int = 1,
    num_gpus: float = 0,
) -> Iterator[Sequence[Outcome]]:
    """Yield the outcomes of all pictures, prepared by the Ray that this process is connected to. This is a `Compute`.

    batches: the pictures, which Ray may batch in another way.
    load: loads the networks, once in each worker.
    form: every node must be able to read the pictures and to write to its folder.
    num_workers: how many processes prepare pictures.
    num_gpus: how much of a GPU each worker takes.

    If a worker or a node dies, its batches are prepared again.
    """
    rows = [{"picture": pickle.dumps(picture)} for batch in batches for picture in batch]
    data = ray.data.from_items(rows, override_num_blocks=max(1, len(rows) // BATCH_SIZE))
    prepared = data.map_batches(
        PreparingWorker,
        fn_constructor_args=(load, form),
        batch_size=BATCH_SIZE,
        compute=ray.data.ActorPoolStrategy(size=num_workers),
        num_gpus=num_gpus,
    )
    for batch in prepared.iter_batches(batch_size=BATCH_SIZE, batch_format="numpy"):
        yield [pickle.loads(outcome) for outcome in batch["outcome"]]
