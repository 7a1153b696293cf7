"""Tests of uploaded masks: every row of the table in `uploaded_mask`."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from fashion_rag.data.image import open_mask
from fashion_rag.errors import InvalidRequest

HEIGHT, WIDTH = 200, 150
WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (200, 30, 40)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


def spot(bottom: int = 120) -> np.ndarray:
    """Return a map that is True for a part in the middle, which ends at the row `bottom`."""
    part = np.zeros((HEIGHT, WIDTH), bool)
    part[50:bottom, 40:110] = True
    return part


def drawn(part: np.ndarray, colour: Any, beneath: Any = BLACK) -> Image.Image:
    """Return a picture of one colour where `part` says, and transparent elsewhere, with a colour beneath."""
    pixels = np.where(part[..., None], (*colour, 255), (*beneath, 0)).astype(np.uint8)
    return Image.fromarray(pixels)


def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def with_hole(pixels: np.ndarray, hole: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([pixels, np.where(hole, 0, 255).astype(np.uint8)]))


def test_in_an_opaque_mask_white_marks() -> None:
    grey = Image.fromarray(np.where(spot(), 255, 0).astype(np.uint8))
    for mode in ("1", "L", "P", "RGB", "LA", "RGBA"):
        np.testing.assert_array_equal(open_mask(encoded(grey.convert(mode))), spot())


@pytest.mark.parametrize("beneath", [BLACK, WHITE, RED])
@pytest.mark.parametrize("bottom", [120, HEIGHT])
def test_white_strokes_on_a_transparent_canvas_mark(beneath: Any, bottom: int) -> None:
    np.testing.assert_array_equal(open_mask(encoded(drawn(spot(bottom), WHITE, beneath))), spot(bottom))


def test_white_strokes_mark_in_grey_and_palette_pictures() -> None:
    grey = drawn(spot(), WHITE).convert("LA")
    np.testing.assert_array_equal(open_mask(encoded(grey)), spot())
    palette = Image.fromarray(spot().astype(np.uint8), "P")
    palette.putpalette([*BLACK, *WHITE])
    np.testing.assert_array_equal(open_mask(encoded(palette, transparency=0)), spot())
    np.testing.assert_array_equal(open_mask(encoded(palette, "GIF", transparency=0)), spot())


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_the_soft_edges_of_strokes_are_cut_at_one_half(strength: float) -> None:
    alpha = Image.fromarray(np.where(spot(), 255, 0).astype(np.uint8)).filter(ImageFilter.GaussianBlur(3))
    alpha = alpha.point(lambda level: round(level * strength))
    # Some tools let the colour fade to black along with the alpha; white strokes are still recognised.
    for colour in (Image.new("L", alpha.size, 255), alpha.point(lambda level: round(level / strength))):
        mask = open_mask(encoded(Image.merge("LA", (colour, alpha)).convert("RGBA")))
        np.testing.assert_array_equal(mask, np.asarray(alpha) >= 128)


def test_white_on_black_marks_whatever_is_transparent_beside_it() -> None:
    pixels = np.where(spot()[..., None], WHITE, BLACK).astype(np.uint8)
    hole = np.zeros_like(spot())
    hole[150:] = True
    np.testing.assert_array_equal(open_mask(encoded(with_hole(pixels, hole))), spot())
    hole = np.zeros_like(spot())
    hole[:20, :20] = hole[60:80, 50:60] = True
    np.testing.assert_array_equal(open_mask(encoded(with_hole(pixels, hole))), spot() & ~hole)


@pytest.mark.parametrize("bottom", [120, HEIGHT])
def test_the_hole_in_a_copy_of_the_photo_marks(bottom: int) -> None:
    np.testing.assert_array_equal(open_mask(encoded(with_hole(photo(), spot(bottom)))), spot(bottom))
    # The part to repaint may also be everything but the person.
    np.testing.assert_array_equal(open_mask(encoded(with_hole(photo(), ~spot(bottom)))), ~spot(bottom))


def test_the_hole_in_a_photo_before_a_white_wall_marks() -> None:
    wall = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    wall[30:180, 50:90] = photo()[30:180, 50:90] // 2
    wall[20:30, 55:85] = 0
    hole = np.zeros_like(spot())
    hole[60:120, 45:95] = True
    np.testing.assert_array_equal(open_mask(encoded(with_hole(wall, hole))), hole)


@pytest.mark.parametrize("colour", [WHITE, BLACK, RED])
@pytest.mark.parametrize("beneath", [BLACK, WHITE])
@pytest.mark.parametrize("bottom", [120, HEIGHT])
def test_the_hole_in_a_canvas_of_one_colour_marks(colour: Any, beneath: Any, bottom: int) -> None:
    np.testing.assert_array_equal(open_mask(encoded(drawn(~spot(bottom), colour, beneath))), spot(bottom))


def test_a_soft_hole_is_cut_at_one_half() -> None:
    alpha = Image.fromarray(np.where(spot(), 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(3))
    image = Image.fromarray(photo())
    image.putalpha(alpha)
    np.testing.assert_array_equal(open_mask(encoded(image)), np.asarray(alpha) < 128)


@pytest.mark.parametrize(
    ("part", "colour", "seen"),
    [
        (spot(), BLACK, "a single colour and transparency"),
        (spot(), RED, "a single colour and transparency"),
        (np.arange(HEIGHT)[:, None].repeat(WIDTH, 1) < 100, WHITE, "white and transparency"),
        (np.arange(HEIGHT)[:, None].repeat(WIDTH, 1) < 100, BLACK, "a single colour and transparency"),
        (np.zeros_like(spot()), WHITE, "transparent everywhere"),
    ],
)
def test_a_mask_that_may_mean_either_part_is_refused(part: np.ndarray, colour: Any, seen: str) -> None:
    with pytest.raises(InvalidRequest, match=f"selection: got .*{seen}.*white where to repaint on opaque black"):
        open_mask(encoded(drawn(part, colour)), field="selection")


@pytest.mark.parametrize("colour", [WHITE, BLACK, RED])
def test_a_mask_that_is_translucent_and_nowhere_transparent_marks_nothing(colour: Any) -> None:
    alpha = np.where(spot(), 140, 255).astype(np.uint8)
    image = Image.new("RGB", (WIDTH, HEIGHT), colour)
    image.putalpha(Image.fromarray(alpha))
    with pytest.raises(InvalidRequest, match="nothing marked"):
        open_mask(encoded(image))


# Masks of many levels


@st.composite
def drawn_masks(draw: st.DrawFn) -> Image.Image:
    """Return a mask of one to three shapes that have at least a sixth of the sides, and perhaps a thin line."""
    width, height = draw(st.integers(60, 700)), draw(st.integers(60, 700))
    image = Image.new("L", (width, height))
    canvas = ImageDraw.Draw(image)
    for _ in range(draw(st.integers(1, 3))):
        left, top = draw(st.integers(0, width * 5 // 6)), draw(st.integers(0, height * 5 // 6))
        box = (left, top, left + draw(st.integers(width // 6, width)), top + draw(st.integers(height // 6, height)))
        canvas.ellipse(box, 255) if draw(st.booleans()) else canvas.rectangle(box, 255)
    if draw(st.booleans()):
        canvas.line([(0, draw(st.integers(0, height))), (width, draw(st.integers(0, height)))], 255, 1)
    return image.point(lambda level: 255 - level) if draw(st.booleans()) else image


@settings(deadline=None)
@given(drawn_masks(), st.floats(0, 0.03), st.sampled_from([None, 10, 40, 90]))
def test_soft_edges_and_compression_are_cut_at_one_half(image: Image.Image, blur: float, quality: int | None) -> None:
    soft = image.filter(ImageFilter.GaussianBlur(blur * min(image.size)))
    data = encoded(soft) if quality is None else encoded(soft, "JPEG", quality=quality)
    with Image.open(io.BytesIO(data)) as stored:
        expected = np.asarray(stored.convert("L")) >= 128
    if expected.any():
        np.testing.assert_array_equal(open_mask(data), expected)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(60, 500), st.integers(60, 500), st.floats(1, 40))
def test_a_grey_picture_is_refused(seed: int, width: int, height: int, roughness: float) -> None:
    size = (max(2, int(width / roughness)), max(2, int(height / roughness)))
    coarse = np.random.default_rng(seed).integers(0, 256, size[::-1], dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    assume((np.asarray(picture) >= 128).any())
    # So few coarse pixels may happen to look like a mask with very soft edges.
    assume(coarse.size >= 100)
    with pytest.raises(InvalidRequest, match=r"selection: got 'a picture in many levels of grey.*soft edges at most"):
        open_mask(encoded(picture), field="selection")


def test_a_photo_and_a_gradient_are_refused() -> None:
    gradient = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
    for pixels in (photo(), photo() // 2, 127 + photo() // 2, gradient):
        for format in ("PNG", "JPEG"):
            with pytest.raises(InvalidRequest, match="many levels of grey"):
                open_mask(encoded(Image.fromarray(pixels), format))


@pytest.mark.parametrize("level", [128, 200])
def test_a_mask_of_one_grey_is_refused(level: int) -> None:
    with pytest.raises(InvalidRequest, match="levels of grey"):
        open_mask(encoded(Image.new("L", (40, 30), level)))
    assert open_mask(encoded(Image.new("L", (40, 30), 255))).all()


@pytest.mark.parametrize(("black", "white"), [(0, 255), (0, 160), (100, 200), (127, 128)])
def test_any_two_levels_are_black_and_white(black: int, white: int) -> None:
    mask = Image.fromarray(np.where(spot(), white, black).astype(np.uint8))
    np.testing.assert_array_equal(open_mask(encoded(mask)), spot())


def test_thin_lines_and_single_pixels_are_marked_in_large_masks() -> None:
    pixels = np.zeros((3000, 2000), np.uint8)
    pixels[::50] = 255
    pixels[7, 7] = 255
    np.testing.assert_array_equal(open_mask(encoded(Image.fromarray(pixels))), pixels == 255)
