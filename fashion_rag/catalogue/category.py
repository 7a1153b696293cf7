"""The category of an edit, from its named garments or else from its words. The pipeline and the retriever call it."""

from __future__ import annotations

from collections.abc import Sequence

from fashion_rag.catalogue.catalogue import Catalogue
from fashion_rag.catalogue.retrieval_encoder import RetrievalEncoder
from fashion_rag.person.completion import CategoryChoice
from fashion_rag.request import EditRequest


class CategoryChooser:
    """Chooses categories by comparing sentences with a few sentences for each category."""

    def __init__(self, encoder: RetrievalEncoder) -> None:
        self.encoder = encoder

    def choose(self, catalogue: Catalogue | None, requests: Sequence[EditRequest]) -> list[CategoryChoice]:
        """Return the category of each request: its own, else that of the garments it names, else that of its words.

        Raises InvalidRequest if a request's words fit two categories about as well, naming the candidates, if a garment
        that it names is unknown, or if its garments are of two categories.
        """
        raise NotImplementedError
