"""The claim: the words of a shopper say which category they ask for, and words that do not are refused.

Each sentence gets its category from the garments that it names, else from the retrieval encoder; and from the encoder
alone, to show what naming garments is worth. The sentences are captions of drawn garments, which the demo's encoder has
seen or not seen, and those of a folder, where one is given: a file noun_chunks.json with sentences by category.

    python -m benchmarks.categories FOLDER --out benchmarks/results/categories.json
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from fashion_rag.artifacts import read_config
from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.category import MARGIN, CategoryChooser, best_fit, category_from_words
from fashion_rag.demo.model.cases import sample_split
from fashion_rag.demo.world.attributes import chunks
from fashion_rag.errors import InvalidRequest
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.provenance import provenance, write_result
from fashion_rag.request import CATEGORIES

SENTENCES_FILE = "noun_chunks.json"
OUTCOMES = ("right", "wrong", "refused")


def captions(count: int, seed: int, held_out: bool) -> dict[str, list[str]]:
    """Return `count` captions of drawn garments for each category, which training may have seen or has not."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for category in CATEGORIES:
        garments = [sample_split(rng, category, held_out) for _ in range(count)]
        drawn[category] = [", ".join(chunks(garment)) for garment in garments]
    return drawn


def measure(chooser: CategoryChooser, sentences: Mapping[str, Sequence[str]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the shares of OUTCOMES by way and category. sentences: by the category that they ask for."""
    shares: dict[str, dict[str, dict[str, float]]] = {"words, then encoder": {}, "encoder alone": {}}
    for category, texts in sentences.items():
        from_encoder = [_best_fit(fits) for fits in chooser.likeness(list(texts))]
        from_both = []
        for text, answer in zip(texts, from_encoder, strict=True):
            from_both.append(_answer(text, answer))
        shares["words, then encoder"][category] = _shares(from_both, category)
        shares["encoder alone"][category] = _shares(from_encoder, category)
    return shares


def _answer(text: str, from_encoder: str | None) -> str | None:
    """Return the category that the words name, else the encoder's, None if the words are refused."""
    try:
        return category_from_words(text) or from_encoder
    except InvalidRequest:
        return None


def _best_fit(fits: np.ndarray) -> str | None:
    """Return the category that fits best, None if the chooser refuses to say."""
    try:
        return best_fit(fits).category
    except InvalidRequest:
        return None


def _shares(answers: Sequence[str | None], category: str) -> dict[str, float]:
    right, refused = answers.count(category), answers.count(None)
    counts = (right, len(answers) - right - refused, refused)
    return {outcome: count / len(answers) for outcome, count in zip(OUTCOMES, counts, strict=True)}


def main(
    folder: Annotated[Path | None, typer.Argument(help=f"Folder with {SENTENCES_FILE}.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    bundle: Annotated[Path, typer.Option(help="Model bundle.")] = DEMO_BUNDLE,
    count: Annotated[int, typer.Option(help="Captions of each category and split.")] = 300,
) -> None:
    """Measure how often sentences get the right category."""
    torch.set_num_threads(1)
    chooser = CategoryChooser(Bundle.open(bundle).load_retrieval_encoder())
    sources: dict[str, Mapping[str, Sequence[str]]] = {
        "captions seen in training": captions(count, 1, False),
        "held-out captions": captions(count, 2, True),
    }
    if folder is not None:
        sources["sentences of the folder"] = read_config(folder / SENTENCES_FILE)
    table = Table("sentences", "way", "category", *OUTCOMES, title=f"Margin {MARGIN}, bundle {bundle.name}")
    measured = {}
    for name, sentences in sources.items():
        measured[name] = measure(chooser, sentences)
        for way, categories in measured[name].items():
            for category, shares in categories.items():
                table.add_row(name, way, category, *(f"{100 * share:.1f} %" for share in shares.values()))
    Console().print(table)
    if out is not None:
        write_result(out, {"from": provenance(), "margin": MARGIN, "count": count, "shares": measured})


if __name__ == "__main__":
    typer.run(main)
