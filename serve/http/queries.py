"""The query parameters of the routes, which callers write after the ? of an address. The ingress uses them."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fashion_rag.catalogue.attributes import parse_filter
from fashion_rag.request import MAX_PROMPT_CHARS
from serve.http.forms import MAX_FILTERS, MAX_FOUND, Attribute, Category


class SimilarQuery(BaseModel):
    """The query of GET /v1/garments/ID/similar. Any other parameter is refused, and an empty one counts as left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: int = Field(10, ge=1, le=MAX_FOUND, description="How many garments.")
    attributes: list[Attribute] = Field([], max_length=MAX_FILTERS, description="NAME=VALUE that they must have.")
    attribute: list[Attribute] = Field(
        [],
        max_length=MAX_FILTERS,
        description="An older name of `attributes`.",
        json_schema_extra={"deprecated": True},
    )

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value not in ("", [""])}

    def filter(self) -> dict[str, list[str]]:
        """Return the filter that the query asks for. Raises InvalidRequest for an attribute that is not NAME=VALUE."""
        return parse_filter([*self.attributes, *self.attribute])


class SearchQuery(SimilarQuery):
    """The query of GET /v1/garments/search."""

    q: str = Field(min_length=1, max_length=MAX_PROMPT_CHARS, description="What to look for, in words.")
    category: Category
