"""Tests of windows: which part of a photo they are, and the way from the photo to the window and back."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from fashion_rag.data.window import (
    FILLS,
    MIN_HEIGHT,
    PERSON_SHARE,
    Box,
    box_of,
    box_round,
    crop,
    has_shape,
    mask_out,
    points_in,
    points_out,
    resized,
    visible_part,
    whole,
    widened,
    window_round,
)
from fashion_rag.request import Window

SHAPE = (512, 384)
SIZES = st.tuples(st.integers(16, 3000), st.integers(16, 3000))


@st.composite
def boxes_in_photos(draw: st.DrawFn) -> tuple[Box, tuple[int, int]]:
    height, width = draw(SIZES)
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    bottom, right = draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))
    return Box(top, left, bottom, right), (height, width)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(boxes_in_photos(), st.sampled_from([SHAPE, (64, 48), (96, 72), (48, 64)]), st.floats(0.3, 1))
def test_a_window_has_the_shape_holds_the_box_and_lies_inside_where_it_can(
    box_and_photo: tuple[Box, tuple[int, int]], shape: tuple[int, int], share: float
) -> None:
    box, photo = box_and_photo
    window = window_round(box, photo, shape, share)
    if window == whole(photo):
        # One percent more than half a pixel each side.
        assert abs(window.width - window.height * shape[1] / shape[0]) <= 0.011 * photo[1] + 1
    else:
        assert (
            min(
                abs(window.width - window.height * shape[1] / shape[0]),
                abs(window.height - window.width * shape[0] / shape[1]),
            )
            <= 0.5
        )
    assert window.top <= box.top and box.bottom <= window.top + window.height
    assert window.left <= box.left and box.right <= window.left + window.width
    for start, side, photo_side in zip(window[:2], window[2:], photo, strict=True):
        if side <= photo_side:
            assert 0 <= start <= photo_side - side
        else:
            assert abs(start + side / 2 - photo_side / 2) <= 0.5


@given(boxes_in_photos(), st.floats(0.3, 1))
def test_a_window_is_never_much_larger_than_the_photo(box_and_photo: tuple[Box, tuple[int, int]], share: float) -> None:
    box, photo = box_and_photo
    window = window_round(box, photo, SHAPE, share)
    # The smallest window round the photo touches it on two sides.
    assert window.height <= photo[0] or window.width <= photo[1]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        # The height decides: 450 rows are 0.9 of 500.
        (Box(200, 900, 650, 1000), Window(175, 762, 500, 375)),
        # The width decides: 450 columns are 0.9 of 500.
        (Box(300, 800, 400, 1250), Window(16, 775, 667, 500)),
        # At the left edge of the photo, the window is moved inside.
        (Box(200, 10, 650, 110), Window(175, 0, 500, 375)),
        # A window of 1,000 rows would not fit into the photo, but the person fits into the largest that does.
        (Box(0, 900, 900, 1200), Window(0, 712, 900, 675)),
        # A tiny person gets a window of the fewest rows.
        (Box(500, 500, 510, 504), Window(473, 478, 64, 48)),
    ],
)
def test_the_window_of_a_person_in_a_landscape_photo(box: Box, expected: Window) -> None:
    assert window_round(box, (900, 2000), SHAPE, PERSON_SHARE) == expected


def test_a_person_higher_than_the_largest_window_inside_gets_one_that_reaches_beyond() -> None:
    # Inside a photo of 900 columns, the largest window has 1,200 rows.
    assert window_round(Box(200, 300, 1640, 700), (2000, 900), SHAPE, PERSON_SHARE) == Window(120, -150, 1600, 1200)
    assert window_round(Box(300, 300, 1400, 700), (2000, 900), SHAPE, PERSON_SHARE) == Window(250, 0, 1200, 900)


@given(st.integers(16, 2000), st.floats(FILLS, 1), st.floats(0.05, 1))
def test_a_photo_of_the_shape_that_the_box_fills_is_its_own_window(rows: int, share: float, width: float) -> None:
    photo = (rows * 4, rows * 3)
    box = Box(0, 0, min(int(photo[0] * share) + 1, photo[0]), max(int(photo[1] * width), 1))
    assert window_round(box, photo, SHAPE, PERSON_SHARE) == whole(photo)


def test_a_small_person_in_a_photo_of_the_shape_has_a_window_of_its_own() -> None:
    assert window_round(Box(400, 300, 580, 400), (1024, 768), SHAPE, PERSON_SHARE) == Window(390, 275, 200, 150)


@pytest.mark.parametrize(
    ("photo", "expected"),
    [
        ((1024, 768), Window(0, 0, 1024, 768)),
        ((1024, 770), Window(0, 0, 1024, 770)),
        ((1000, 1000), Window(-166, 0, 1333, 1000)),
        ((1600, 900), Window(0, -150, 1600, 1200)),
    ],
)
def test_without_a_box_the_window_is_the_smallest_round_the_photo(photo: tuple[int, int], expected: Window) -> None:
    assert window_round(None, photo, SHAPE, PERSON_SHARE) == expected


def test_a_window_of_a_small_photo_may_have_fewer_rows_than_the_fewest() -> None:
    window = window_round(Box(10, 10, 14, 12), (40, 60), SHAPE, PERSON_SHARE)
    assert window == Window(0, 0, 40, 30) and window.height < MIN_HEIGHT


def test_a_photo_has_the_shape_within_one_percent_of_its_width() -> None:
    assert all(has_shape((1000, width), SHAPE) for width in (743, 750, 757))
    assert not any(has_shape((1000, width), SHAPE) for width in (742, 758, 1000))


def test_a_window_is_widened_only_for_a_box_that_reaches_out_of_it() -> None:
    window = Window(100, 100, 400, 300)
    assert widened(window, Box(100, 100, 500, 400), (1000, 1000), SHAPE) == window
    wider = widened(window, Box(80, 200, 300, 300), (1000, 1000), SHAPE)
    assert wider == Window(80, 92, 420, 315)


def test_a_window_beyond_the_photo_is_kept_for_a_box_at_the_photos_edge() -> None:
    window = Window(-166, 0, 1333, 1000)
    assert widened(window, Box(0, 0, 1000, 1000), (1000, 1000), SHAPE) == window


def test_boxes() -> None:
    area = np.zeros((8, 9), bool)
    assert box_of(area) is None
    area[2, 3] = area[5, 1] = True
    assert box_of(area) == Box(2, 1, 6, 4)
    assert box_round(None, Box(1, 5, 4, 6), Box(3, 2, 9, 3)) == Box(1, 2, 9, 6)
    assert box_round(None, None) is None


@given(st.integers(-5, 9), st.integers(-5, 9), st.integers(1, 16), st.integers(1, 16))
def test_a_crop_continues_the_photo_at_its_edges(top: int, left: int, height: int, width: int) -> None:
    window = Window(top, left, max(height, 1 - top), max(width, 1 - left))
    photo = noise(10, 12)
    rows = np.arange(window.top, window.top + window.height).clip(0, 9)
    columns = np.arange(window.left, window.left + window.width).clip(0, 11)
    np.testing.assert_array_equal(crop(photo, window), photo[rows][:, columns])
    np.testing.assert_array_equal(crop(photo[..., 0], window), photo[rows][:, columns, 0])


def test_a_crop_inside_the_photo_is_not_copied() -> None:
    photo = noise(100, 100)
    assert np.shares_memory(crop(photo, Window(10, 20, 40, 30)), photo)


@given(SIZES.filter(lambda size: size[0] * size[1] < 200_000), st.sampled_from(list(Image.Resampling)))
def test_the_whole_photo_resized_is_what_pillow_makes_of_it(size: tuple[int, int], how: Image.Resampling) -> None:
    photo = noise(*size)
    expected = np.asarray(Image.fromarray(photo).resize((48, 64), how))
    np.testing.assert_array_equal(np.asarray(resized(photo, whole(size), (64, 48), how)), expected)


def test_a_resized_window_inside_the_photo_sees_nothing_of_the_rest() -> None:
    photo, window = noise(300, 300), Window(40, 50, 128, 96)
    expected = Image.fromarray(photo[40:168, 50:146]).resize((48, 64), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(resized(photo, window, (64, 48), Image.Resampling.BICUBIC)), expected)


@pytest.mark.parametrize(
    "window",
    [Window(-40, 10, 320, 240), Window(20, -35, 256, 192), Window(-100, -60, 400, 300), Window(100, 90, 160, 120)],
)
def test_a_resized_window_beyond_the_photo_is_nearly_the_crop_resized(window: Window) -> None:
    rows, columns = np.mgrid[:200, :180]
    photo = np.dstack([rows, columns, (rows + columns) // 2]).astype(np.uint8)
    expected = Image.fromarray(crop(photo, window)).resize((48, 64), Image.Resampling.BICUBIC)
    seen = np.asarray(resized(photo, window, (64, 48), Image.Resampling.BICUBIC)).astype(int)
    difference = np.abs(seen - np.asarray(expected)).max(axis=2)
    # The photo has one level a pixel. Where it is continued, its outermost pixel is the average of one resized pixel.
    assert difference.max() <= window.height / 64 + 1
    rows = (np.arange(64) + 0.5) * window.height / 64 + window.top
    columns = (np.arange(48) + 0.5) * window.width / 48 + window.left
    margin = 3 * window.height / 64
    amid = ((rows > margin) & (rows < 200 - margin))[:, None] & (columns > margin) & (columns < 180 - margin)
    assert amid.sum() > 300 and difference[amid].max() <= 1


def test_a_long_narrow_photo_is_seen_without_a_picture_of_its_window() -> None:
    photo = np.full((16, 400_000, 3), 9, np.uint8)
    window = window_round(None, (16, 400_000), SHAPE, PERSON_SHARE)
    assert window.height * window.width > 10**11
    assert (np.asarray(resized(photo, window, SHAPE, Image.Resampling.BICUBIC)) == 9).all()
    mask = np.ones(SHAPE, np.uint8)
    assert mask_out(window, mask, (16, 400_000)).all()


@given(boxes_in_photos(), st.sampled_from([SHAPE, (64, 48)]))
def test_points_come_back_from_the_window_where_they_were(
    box_and_photo: tuple[Box, tuple[int, int]], size: tuple[int, int]
) -> None:
    box, photo = box_and_photo
    window = window_round(box, photo, SHAPE, PERSON_SHARE)
    points = np.zeros((18, 2))
    points[3] = (box.left + box.right) / 2, (box.top + box.bottom) / 2
    points[7] = box.right, box.bottom
    np.testing.assert_allclose(points_out(window, points_in(window, points, size), size), points, atol=1e-8)


def test_points_outside_the_window_are_absent_in_it() -> None:
    points = np.zeros((18, 2))
    points[1], points[2], points[3] = (30, 40), (9, 40), (30, 101)
    inside = points_in(Window(20, 10, 80, 60), points, (160, 120))
    assert inside[1].tolist() == [40, 40]
    assert np.count_nonzero(inside) == 2


@given(boxes_in_photos().filter(lambda drawn: drawn[1][0] * drawn[1][1] < 200_000))
def test_a_box_comes_back_from_the_window_where_it_was(box_and_photo: tuple[Box, tuple[int, int]]) -> None:
    box, photo = box_and_photo
    window = window_round(box, photo, SHAPE, PERSON_SHARE)
    scale_y, scale_x = SHAPE[0] / window.height, SHAPE[1] / window.width
    mask = np.zeros(SHAPE, np.uint8)
    top, bottom = round((box.top - window.top) * scale_y), round((box.bottom - window.top) * scale_y)
    left, right = round((box.left - window.left) * scale_x), round((box.right - window.left) * scale_x)
    # What has a pixel or two may vanish between the pixels of the other size.
    assume(min(bottom - top, right - left, *box.size) >= 4)
    mask[top:bottom, left:right] = 1
    photo_mask = mask_out(window, mask, photo)
    assert photo_mask.shape == photo and photo_mask.dtype == np.uint8
    back = box_of(photo_mask != 0)
    assert back is not None
    # Off by at most one pixel, of the photo's or of the frame's, whichever are larger.
    for side, expected, scale in zip(back, box, (scale_y, scale_x) * 2, strict=True):
        assert abs(side - expected) <= 1 + 1 / scale


def test_an_enlarged_mask_has_smooth_edges() -> None:
    rows, columns = np.mgrid[:512, :384]
    mask = (rows + columns < 400).astype(np.uint8)
    photo_mask = mask_out(whole((2048, 1536)), mask, (2048, 1536))
    rows, columns = np.mgrid[:2048, :1536]
    # The true edge is a straight line, and no pixel is wrong that is further from it than half a pixel of the frame.
    wrong = photo_mask != (rows + columns < 1600)
    assert np.abs(rows + columns - 1600)[wrong].max() <= 6
    # Nearest-neighbour enlargement would leave steps of four pixels in the edge.
    ends = photo_mask[100:1400].sum(axis=1).astype(int)
    assert np.abs(np.diff(ends)).max() < 4


def test_a_mask_stays_within_its_window() -> None:
    mask = mask_out(Window(-10, 5, 40, 30), np.ones((512, 384), np.uint8), (50, 60))
    assert box_of(mask != 0) == Box(0, 5, 30, 35)
    assert visible_part(Window(-10, 5, 40, 30), (50, 60)) == Box(0, 5, 30, 35)
