"""Sheets of pictures in rows and columns, for people to look at. The evaluation and the preparation make them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

CELL = (256, 192)
GAP, TITLE_HEIGHT, CAPTION_HEIGHT = 12, 32, 28
PAPER, INK = (255, 255, 255), (30, 30, 36)


class SheetRow(NamedTuple):
    """A row of a sheet: a picture for each column, None where there is none, and a line of text below them."""

    pictures: Sequence[Image.Image | None]
    caption: str


def sheet(titles: Sequence[str], rows: Sequence[SheetRow]) -> Image.Image:
    """Return the rows below each other as one picture, with the titles of the columns above them."""
    height, width = CELL
    row_height = height + CAPTION_HEIGHT + GAP
    size = GAP + len(titles) * (width + GAP), TITLE_HEIGHT + len(rows) * row_height
    canvas = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    for column, title in enumerate(titles):
        draw.text((GAP + column * (width + GAP), GAP), title, INK, font)
    for number, row in enumerate(rows):
        top = TITLE_HEIGHT + number * row_height
        for column, picture in enumerate(row.pictures):
            if picture is not None:
                cell = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
                canvas.paste(cell, (GAP + column * (width + GAP), top))
        draw.text((GAP, top + height + 6), row.caption, INK, font)
    return canvas
