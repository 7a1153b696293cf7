"""How many rows of a UNet call a step takes: the unit in which work is planned, scheduled and timed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Rows(NamedTuple):
    """The rows of a step: `deep` ones run the whole UNet, `shallow` ones its outermost layers alone."""

    deep: int
    shallow: int = 0

    @property
    def total(self) -> int:
        """Return the number of rows of both kinds."""
        return self.deep + self.shallow


def sum_rows(several: Iterable[Rows]) -> Rows:
    """Return the rows of a step that several edits share."""
    deep = shallow = 0
    for rows in several:
        deep += rows.deep
        shallow += rows.shallow
    return Rows(deep, shallow)
