"""The attributes of a catalogue version's garments, and filters by them as rows that a search may return.

A filter reads `{"category": "dresses", "colour": ["red", "blue"], "size": "M"}`: a garment passes if it has one of the
values of every attribute named. The catalogue makes one `Filters` when it opens a version.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fashion_rag.errors import InvalidRequest

if TYPE_CHECKING:
    # The HTTP side reads filters, too, and does without FAISS.
    from fashion_rag.catalogue.vector_index import Allowed, VectorIndex

Values = str | Sequence[str]
Filter = Mapping[str, Values]

MAX_KEPT = 256  # filters, at most 0.2 MB each for a million garments


class Attributes:
    """The rows of each value of each attribute. A row may have no, one or several values of an attribute.

    What is kept grows with the values that rows have, not with how many different ones there are.
    """

    def __init__(self, of_rows: Sequence[Filter]) -> None:
        rows: defaultdict[str, defaultdict[str, array[int]]] = defaultdict(lambda: defaultdict(lambda: array("i")))
        for row, attributes in enumerate(of_rows):
            for name, values in attributes.items():
                for value in (values,) if isinstance(values, str) else values:
                    rows[name][value].append(row)
        self._rows = {
            name: {value: np.array(found, np.int32) for value, found in by_value.items()}
            for name, by_value in rows.items()
        }
        self._num_rows = len(of_rows)

    @property
    def names(self) -> Set[str]:
        """Return the attributes that rows have."""
        return self._rows.keys()

    def mask(self, wanted: Filter) -> NDArray[np.bool_]:
        """Return which rows [N] pass the filter; all without attributes, and none with a value that no row has.

        Raises InvalidRequest for an attribute that no row has, and for one without a value.
        """
        passes = np.ones(self._num_rows, bool)
        for name, values in _in_order(wanted):
            if name not in self._rows:
                raise InvalidRequest("attributes", name, f"must name attributes among {', '.join(sorted(self._rows))}")
            has_value = np.zeros(self._num_rows, bool)
            for value in self._rows[name].keys() & set(values):
                has_value[self._rows[name][value]] = True
            passes &= has_value
        return passes


class Filters:
    """Filters as the rows that they allow in one index; those met last are kept."""

    def __init__(self, index: VectorIndex, attributes: Attributes, without: Sequence[int] = ()) -> None:
        """Return the without: rows that no filter allows."""
        # Not a method, whose cache would keep a replaced version in memory until the garbage collector comes by.
        self._allowed = lru_cache(MAX_KEPT)(partial(_allow, index, attributes, without))

    def allowed(self, wanted: Filter) -> Allowed:
        """Return the rows that pass the filter, ready for `VectorIndex.search`. Raises as `Attributes.mask`."""
        return self._allowed(_in_order(wanted))


def _allow(
    index: VectorIndex,
    attributes: Attributes,
    without: Sequence[int],
    wanted: tuple[tuple[str, tuple[str, ...]], ...],
) -> Allowed:
    mask = attributes.mask(dict(wanted))
    mask[list(without)] = False
    return index.allow(mask)


def _in_order(wanted: Filter) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the filter in the one form that all ways to write it share."""
    found = {}
    for name, values in wanted.items():
        alternatives = (values,) if isinstance(values, str) else values
        if not alternatives or not all(isinstance(value, str) for value in alternatives):
            raise InvalidRequest("attributes", {name: values}, "must be a text or a list of at least one")
        found[name] = tuple(sorted(set(alternatives)))
    return tuple(sorted(found.items()))


def parse_filter(wanted: Sequence[str]) -> dict[str, list[str]]:
    """Return the filter that texts "NAME=VALUE" ask for. Raises InvalidRequest for one that is none."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for each in wanted:
        name, equals, value = each.partition("=")
        if not (name and equals and value):
            raise InvalidRequest("attributes", each, "must be NAME=VALUE")
        found[name].append(value)
    return dict(found)
