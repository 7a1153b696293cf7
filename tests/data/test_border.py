"""Borders of garment pictures."""

import numpy as np
import pytest
from PIL import Image

from fashion_rag.data.border import with_border

SHAPE = (64, 48)


@pytest.mark.parametrize("size", [(200, 200), (300, 100), (100, 300), (150, 17)])
def test_a_border_in_the_background_colour_gives_the_shape_and_leaves_the_picture(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, (10, 200, 30))
    picture.paste((250, 0, 0), (size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2))
    # A few pixels at the edge, such as a label or the hem of a garment, do not change the colour.
    picture.paste((0, 0, 0), (0, 0, 3, 3))
    bordered = with_border(picture, SHAPE)
    assert bordered.width / bordered.height == pytest.approx(0.75, rel=0.01)
    left, top = (bordered.width - size[0]) // 2, (bordered.height - size[1]) // 2
    pixels = np.asarray(bordered).copy()
    inside = pixels[top : top + size[1], left : left + size[0]]
    assert np.array_equal(inside, np.asarray(picture))
    inside[:] = (10, 200, 30)
    assert (pixels == (10, 200, 30)).all()
    assert bordered.width == size[0] or bordered.height == size[1]


@pytest.mark.parametrize("size", [(75, 100), (76, 101), (1, 1)])
def test_a_picture_of_the_shape_is_returned_as_it_is(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size)
    assert (with_border(picture, SHAPE) is picture) == (size != (1, 1))
