"""Tests that colours are what their profiles say, and that damaged profiles do no harm."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fashion_rag.data.colour import from_srgb, is_two_way, to_srgb
from fashion_rag.data.image import open_image, open_photo
from tests.profiles import display_p3, linear_grey, one_way_rgb, press

# From the light of Display P3's primaries to that of sRGB's.
P3_TO_SRGB = np.array([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]])
ALL = {"p3": display_p3(), "grey": linear_grey(), "one-way": one_way_rgb(), "press": press()}


def colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)


def converted(pixels: np.ndarray) -> np.ndarray:
    """Return pixels of Display P3 in sRGB, computed from the definitions of the two spaces."""
    levels = pixels / 255
    light = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4) @ P3_TO_SRGB.T
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def test_display_p3_becomes_the_srgb_of_the_textbook() -> None:
    image = to_srgb(Image.fromarray(colours()), display_p3())
    # Where the curve is steep at its start, rounding of a primary is more than a level.
    assert np.abs(np.asarray(image) - converted(colours())).max() <= 3
    assert np.abs(np.asarray(image) - converted(colours())).mean() < 0.5
    assert np.abs(converted(colours()) - colours()).max() > 40
    assert "icc_profile" not in image.info


def test_srgb_survives_the_way_to_a_larger_space_and_back() -> None:
    in_p3 = from_srgb(colours(), display_p3())
    assert np.abs(in_p3.astype(int) - colours()).max() > 20
    back = np.asarray(to_srgb(Image.fromarray(in_p3), display_p3()))
    assert np.abs(back.astype(int) - colours()).max() <= 6
    assert np.abs(back.astype(int) - colours()).mean() < 1


@pytest.mark.parametrize("profile", [None, b"", b"no profile", linear_grey(), press()])
def test_a_profile_that_is_none_for_rgb_changes_nothing(profile: bytes | None) -> None:
    assert not is_two_way(profile)
    assert np.array_equal(np.asarray(to_srgb(Image.fromarray(colours()), profile)), colours())
    assert np.array_equal(from_srgb(colours(), profile), colours())


def test_a_scanners_profile_leads_one_way() -> None:
    assert is_two_way(display_p3()) and not is_two_way(one_way_rgb())
    grey = np.asarray(to_srgb(Image.fromarray(colours()), one_way_rgb()))
    assert np.ptp(grey.astype(int), axis=-1).max() <= 1


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(ALL)), st.sampled_from(["RGB", "L", "CMYK", "RGBA", "LA", "P"]), st.data())
def test_damaged_profiles_do_no_harm(name: str, mode: str, data: st.DataObject) -> None:
    damaged = bytearray(ALL[name][: data.draw(st.integers(1, len(ALL[name])))])
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    content = io.BytesIO()
    image = Image.fromarray(colours()).convert(mode)
    image.save(content, "TIFF", icc_profile=bytes(damaged))
    assert open_image(content.getvalue()).mode == "RGB"
    photo = open_photo(content.getvalue())
    assert from_srgb(photo.pixels, photo.icc_profile).shape == (40, 30, 3)
