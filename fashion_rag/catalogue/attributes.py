"""The attributes of a catalogue version's garments, and filters by them as rows that a search may return.

A filter reads `{"category": "dresses", "colour": ["red", "blue"], "size": "M"}`: a garment passes if it has, of every
attribute that the filter names, at least one of the values. The catalogue makes one `Filters` when it opens a version.
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
    # The HTTP side reads filters, too, and must not load FAISS.
    from fashion_rag.catalogue.vector_index import Allowed, VectorIndex

Values = str | Sequence[str]
Filter = Mapping[str, Values]

# So many filters are kept, each of at most 0.2 MB for a million garments.
MAX_KEPT = 256


class Attributes:
    """The rows of each value of each attribute. A row may have no, one or several values of an attribute.

    The memory it takes grows with the number of values that rows have, not with the number of different values.
    """

    def __init__(self, of_rows: Sequence[Filter]) -> None:
        growing: defaultdict[tuple[str, str], array[int]] = defaultdict(lambda: array("i"))
        for row, attributes in enumerate(of_rows):
            for name, values in attributes.items():
                for value in _as_values(values):
                    growing[name, value].append(row)
        self._rows: dict[str, dict[str, NDArray[np.int32]]] = {}
        for (name, value), rows in growing.items():
            self._rows.setdefault(name, {})[value] = np.array(rows, np.int32)
        self._num_rows = len(of_rows)

    @property
    def names(self) -> Set[str]:
        """Return the names of the attributes that rows have."""
        return self._rows.keys()

    def mask(self, wanted: Filter) -> NDArray[np.bool_]:
        """Return which rows [N] pass the filter, as booleans.

        All rows pass a filter without attributes. No row passes one with a value that no row has.

        Raises InvalidRequest for an attribute that no row has, and for an attribute without a value.
        """
        passes = np.ones(self._num_rows, bool)
        for name, values in _normalised(wanted):
            if name not in self._rows:
                raise InvalidRequest("attributes", name, f"must name attributes among {', '.join(sorted(self._rows))}")
            has_value = np.zeros(self._num_rows, bool)
            for value in self._rows[name].keys() & set(values):
                has_value[self._rows[name][value]] = True
            passes &= has_value
        return passes


class Filters:
    """The rows that each filter allows in one index. The last filters that were asked for are kept ready."""

    def __init__(self, index: VectorIndex, attributes: Attributes, without: Sequence[int] = ()) -> None:
        """Make the filters of an index and its attributes. without: rows that no filter allows."""
        # The cache is not on a method: that would keep a replaced version in memory until the garbage collector runs.
        self._allowed = lru_cache(MAX_KEPT)(partial(_allow, index, attributes, without))

    def allowed(self, wanted: Filter) -> Allowed:
        """Return the rows that pass the filter, ready for `VectorIndex.search`. Raises as `Attributes.mask`."""
        return self._allowed(_normalised(wanted))


def _allow(
    index: VectorIndex,
    attributes: Attributes,
    without: Sequence[int],
    wanted: tuple[tuple[str, tuple[str, ...]], ...],
) -> Allowed:
    mask = attributes.mask(dict(wanted))
    mask[list(without)] = False
    return index.allow(mask)


def _as_values(values: Values) -> Sequence[str]:
    return (values,) if isinstance(values, str) else values


def _normalised(wanted: Filter) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the filter in a form that is the same for all ways to write it. Raises InvalidRequest for a bad value."""
    normalised = {}
    for name, values in wanted.items():
        alternatives = _as_values(values)
        if not alternatives or not all(isinstance(value, str) for value in alternatives):
            raise InvalidRequest("attributes", {name: values}, "must be a text or a list of at least one")
        normalised[name] = tuple(sorted(set(alternatives)))
    return tuple(sorted(normalised.items()))


def parse_filter(wanted: Sequence[str]) -> dict[str, list[str]]:
    """Return the filter that texts "NAME=VALUE" ask for. Raises InvalidRequest for a text of another form."""
    parsed: defaultdict[str, list[str]] = defaultdict(list)
    for text in wanted:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise InvalidRequest("attributes", text, "must be NAME=VALUE")
        parsed[name].append(value)
    return dict(parsed)
