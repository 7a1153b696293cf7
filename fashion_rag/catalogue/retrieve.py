"""Which garments of a catalogue an edit is conditioned on. Called by the pipeline and by the retriever's replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fashion_rag.catalogue.attributes import Values
from fashion_rag.catalogue.catalogue import Catalogue, GarmentQuery, Match
from fashion_rag.errors import InvalidRequest
from fashion_rag.request import EditRequest, Template


def retrieve(catalogue: Catalogue | None, request: EditRequest) -> list[Match]:
    """Return the garments to condition on, best first: those that the request names, else the nearest to its text.

    The request's category must be known. Raises InvalidRequest for an unknown garment, for a search that no garment can
    meet, and for a request that needs a catalogue where there is none.
    """
    return retrieve_many(catalogue, [request])[0]


def retrieve_many(catalogue: Catalogue | None, requests: Sequence[EditRequest]) -> list[list[Match]]:
    """Return the garments of each request. All requests are searched for together.

    Raises InvalidRequest as `retrieve`, for the first request that cannot be met.
    """
    matches: list[list[Match]] = [[] for _ in requests]
    queries: dict[int, GarmentQuery] = {}
    for row, request in enumerate(requests):
        if request.template is Template.CAPTION or not (request.garment_ids or request.num_garments):
            continue
        if catalogue is None:
            raise InvalidRequest("num_garments", request.num_garments, "must be 0 where no catalogue is loaded")
        if request.garment_ids:
            matches[row] = [Match(catalogue.get(garment_id), None) for garment_id in request.garment_ids]
        else:
            assert request.category is not None, "garments are searched in a known category"
            queries[row] = GarmentQuery(request.search_text, request.category, request.num_garments, request.attributes)
    if catalogue is not None and queries:
        for row, nearest in zip(queries, catalogue.search_many(list(queries.values())), strict=True):
            if not nearest:
                raise _nothing_found(catalogue, queries[row])
            matches[row] = nearest
    return matches


def _nothing_found(catalogue: Catalogue, query: GarmentQuery) -> InvalidRequest:
    """Return the error for a query that no garment passes; it names the filter that is at fault."""
    unless = "unless num_garments=0"
    if query.attributes and catalogue.search_many([replace(query, k=1, attributes={})])[0]:
        wanted = []
        for name, values in query.attributes.items():
            wanted += [f"{name}={value}" for value in _texts(values)]
        rule = f"must be of a garment in the category {query.category}, {unless}; no garment there passes"
        return InvalidRequest("attributes", ", ".join(wanted), rule)
    return InvalidRequest("category", query.category, f"must have garments in the catalogue, {unless}")


def _texts(values: Values) -> Sequence[str]:
    return (values,) if isinstance(values, str) else values
