"""Sheets of pictures."""

import numpy as np
from PIL import Image

from fashion_rag.data.sheet import CELL, GAP, PAPER, TITLE_HEIGHT, SheetRow, sheet


def test_pictures_stand_in_their_rows_and_columns_and_a_missing_one_is_blank() -> None:
    red, blue = Image.new("RGB", (30, 40), "red"), Image.new("L", (30, 40), 7)
    drawn = sheet(["first", "second"], [SheetRow([red, blue], "a"), SheetRow([None, red], "b")])
    row_height = (drawn.height - TITLE_HEIGHT) // 2

    def cell(row: int, column: int) -> np.ndarray:
        left, top = GAP + column * (CELL[1] + GAP), TITLE_HEIGHT + row * row_height
        return np.asarray(drawn.crop((left, top, left + CELL[1], top + CELL[0])))

    assert (cell(0, 0) == (255, 0, 0)).all() and (cell(0, 1) == 7).all()
    assert (cell(1, 0) == PAPER).all() and (cell(1, 1) == (255, 0, 0)).all()
