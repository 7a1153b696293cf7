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
    "upper_body": "shirt tshirt tee top blouse tunic polo sweater pullover turtleneck jumper cardigan hoodie "
    "sweatshirt vest waistcoat jacket blazer coat cami camisole tank bodysuit",
}
# A phrase ends where one of these begins another garment.
PHRASE_ENDS = re.compile(r"[,.;:!?&+/]|\b(?:and|or|with|without|over|under|underneath|to|for|on|instead|not)\b")
# Words for the cut of a garment. A text without garments says something about the category only if it has one of these.
CUT = re.compile(
    r"\b(?:sleeve|\w*neck|collar|lapel|strap|halter|shoulder|hood|button|zip|waist|hip|leg|knee|ankle|hem|length|flare)"
)
# Things to wear that are of no category.
ACCESSORIES = re.compile(
    r"\b(?:shoe|boot|sneaker|sandal|hat|bag|handbag|backpack|scarf|scarve|sock|glove|necklace|bracelet|glasses)s?\b"
)
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


def category_from_words(text: str) -> str | None:
    """Return the category whose garments a text names, None if it names no garment but says how one is cut.

    A phrase names the last garment in it: "shirt dress" is a dress, and "dress shirt" is a shirt.
    Raises InvalidRequest if the text names garments of several categories, or says nothing about any.
    """
    named = _named_categories(text.lower())
    if len(named) > 1:
        raise _must_be_given(f"as the words name garments of {' and of '.join(named)}")
    if not named and (ACCESSORIES.search(text.lower()) or not CUT.search(text.lower())):
        raise _must_be_given("as the words name no dress, nor a garment of the upper or lower body, in English")
    return named[0] if named else None


def _named_categories(text: str) -> list[str]:
    """Return the categories of the garments that a text in small letters names, in the order of CATEGORIES."""
    category_of: dict[str, str] = {}
    for category, words in WORDS.items():
        category_of.update(dict.fromkeys(words.split(), category))
    named = set()
    for phrase in PHRASE_ENDS.split(text):
        for word in reversed(re.findall("[a-z]+", phrase)):
            garment_of = category_of.get(word) or category_of.get(word.removesuffix("s"))
            if garment_of is not None:
                named.add(garment_of)
                break
    return [category for category in CATEGORIES if category in named]


def _must_be_given(reason: str) -> InvalidRequest:
    return InvalidRequest("category", None, f"must be given, {reason}", "missing_required_parameter")


class CategoryChooser:
    """Chooses categories by comparing sentences with a few sentences for each category."""

    def __init__(self, encoder: RetrievalEncoder) -> None:
        self.encoder = encoder

    def choose(self, catalogue: Catalogue | None, requests: Sequence[EditRequest]) -> list[CategoryChoice]:
        """Return the category of each request: its own, else that of the garments it names, else that of its words.

        A text that names garments of one category only decides with confidence 1. All other texts are encoded together.
        Without a catalogue, garments that are named do not decide.
        Raises InvalidRequest if a request's words name garments of several categories or fit two about as well, naming
        them, or if they say nothing about a garment; if a garment of `garment_ids` is unknown, or if they are of two
        categories.
        """
        choices: dict[int, CategoryChoice] = {}
        texts: dict[int, str] = {}
        for row, request in enumerate(requests):
            if request.category is not None:
                choices[row] = CategoryChoice(request.category)
            elif request.garment_ids and catalogue is not None:
                choices[row] = CategoryChoice(_category_of_garments(catalogue, request.garment_ids))
            elif named := category_from_words(request.prompt):
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
        raise _must_be_given(f"as the words fit {first} ({share:.2f}) and {second} ({next_share:.2f}) about as well")
    return CategoryChoice(first, share)
