"""The category of an edit, from its named garments or else from its words. The pipeline and the retriever call it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fashion_rag.catalogue.catalogue import Catalogue
from fashion_rag.catalogue.retrieval_encoder import RetrievalEncoder
from fashion_rag.errors import InvalidRequest
from fashion_rag.person.completion import CategoryChoice
from fashion_rag.request import CATEGORIES, EditRequest

# English words for the garments of each category. Each stands for its plural with an s, too.
WORDS = {
    "dresses": "dress dresses sundress sundresses gown frock jumpsuit romper playsuit",
    "lower_body": "trouser pant slacks jean shorts legging jogger chino culotte skirt miniskirt",
    "upper_body": "shirt tshirt tee top blouse tunic polo sweater pullover jumper cardigan hoodie sweatshirt vest "
    "waistcoat jacket blazer coat",
}
PHRASE_ENDS = re.compile(r"[,.;:!?]|\b(?:and|or|with)\b")
# What sentences are compared with, where words do not decide. The details help to tell short skirts from dresses: they
# took the demo's training captions from 95 to 99.7 % right.
SENTENCES = {
    "dresses": (
        "a dress",
        "a summer dress with straps",
        "a shift dress with short sleeves",
        "a gown",
        "an evening gown with long sleeves",
        "a jumpsuit",
    ),
    "lower_body": (
        "trousers with long legs",
        "pants",
        "jeans",
        "shorts with short legs",
        "a knee length skirt",
        "a long skirt",
    ),
    "upper_body": (
        "a t-shirt with short sleeves",
        "a shirt with a collar and long sleeves",
        "a sweater with long sleeves",
        "a hoodie with a hood",
        "a tank top without sleeves",
        "a blouse",
        "a jacket",
    ),
}
# Cosines are divided by this number before the softmax.
TEMPERATURE = 0.05
# The category that fits best must be ahead of the next one by this share.
MARGIN = 0.2


def named_category(text: str) -> str | None:
    """Return the category whose garments a text names, None if it names garments of no category or of several.

    A phrase names the last garment in it: "shirt dress" is a dress, and "dress shirt" is a shirt.
    """
    category_of: dict[str, str] = {}
    for category, words in WORDS.items():
        category_of.update(dict.fromkeys(words.split(), category))
    named = set()
    for phrase in PHRASE_ENDS.split(text.lower()):
        for word in reversed(re.findall("[a-z]+", phrase)):
            garment_of = category_of.get(word) or category_of.get(word.removesuffix("s"))
            if garment_of is not None:
                named.add(garment_of)
                break
    return named.pop() if len(named) == 1 else None


class CategoryChooser:
    """Chooses categories by comparing sentences with a few sentences for each category."""

    def __init__(self, encoder: RetrievalEncoder) -> None:
        self.encoder = encoder

    def choose(self, catalogue: Catalogue | None, requests: Sequence[EditRequest]) -> list[CategoryChoice]:
        """Return the category of each request: its own, else that of the garments it names, else that of its words.

        A text that names garments of one category only decides with confidence 1. All other texts are encoded together.
        Without a catalogue, garments that are named do not decide.
        Raises InvalidRequest if a request's words fit two categories about as well, naming the candidates, if a garment
        that it names is unknown, or if its garments are of two categories.
        """
        choices: dict[int, CategoryChoice] = {}
        texts: dict[int, str] = {}
        for row, request in enumerate(requests):
            if request.category is not None:
                choices[row] = CategoryChoice(request.category)
            elif request.garment_ids and catalogue is not None:
                choices[row] = CategoryChoice(_category_of_garments(catalogue, request.garment_ids))
            elif named := named_category(request.prompt):
                choices[row] = CategoryChoice(named, 1.0)
            else:
                texts[row] = request.prompt
        if texts:
            for row, fits in zip(texts, self.likeness(list(texts.values())), strict=True):
                choices[row] = best_fit(fits)
        return [choices[row] for row in range(len(requests))]

    def likeness(self, texts: list[str]) -> NDArray[np.float64]:
        """Return how well each text fits each of CATEGORIES, [N, 3], as shares of 1.

        It is the softmax of the cosines over all sentences, summed for each category, as if each had as many sentences.
        """
        vectors = self.encoder.encode_texts(texts).astype(np.float64)
        weights = []
        for sentences in self._sentences:
            # Cosines are at most 1, so that no exponential overflows.
            weights.append(np.exp((vectors @ sentences.T - 1) / TEMPERATURE).mean(axis=1))
        fits = np.stack(weights, axis=1)
        shares: NDArray[np.float64] = fits / fits.sum(axis=1, keepdims=True)
        return shares

    @cached_property
    def _sentences(self) -> list[NDArray[np.float64]]:
        """Return the vectors of the sentences of each category, in the order of CATEGORIES."""
        return [self.encoder.encode_texts(list(SENTENCES[name])).astype(np.float64) for name in CATEGORIES]


def _category_of_garments(catalogue: Catalogue, garment_ids: Sequence[str]) -> str:
    """Return the category that all these garments are of. Raises InvalidRequest if there is none."""
    first, *others = [catalogue.get(garment_id) for garment_id in garment_ids]
    for garment in others:
        if garment.category != first.category:
            rule = f"must be of one category; {first.id} is of {first.category} and {garment.id} of {garment.category}"
            raise InvalidRequest("garment_ids", ", ".join(garment_ids), rule)
    return first.category


def best_fit(fits: NDArray[np.float64]) -> CategoryChoice:
    """Return the category with the largest share, out of one for each of CATEGORIES, [3].

    Raises InvalidRequest, naming the two best, unless the best is ahead of the next one by MARGIN.
    """
    order = np.argsort(-fits, kind="stable")
    (first, share), (second, next_share) = ((CATEGORIES[number], float(fits[number])) for number in order[:2])
    if share - next_share < MARGIN:
        rule = f"must be given, as the words fit {first} ({share:.2f}) and {second} ({next_share:.2f}) about as well"
        raise InvalidRequest("category", None, rule, "missing_required_parameter")
    return CategoryChoice(first, share)
