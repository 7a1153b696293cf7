"""What the networks see of a photo: its place is known, and the truth moves with the pixels."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import VitPoseImageProcessor

from fashion_rag.data.window import Box
from fashion_rag.demo.model.photo_views import (
    IGNORED,
    crop_labels,
    cut_person,
    letterboxed,
    letterboxed_labels,
    moved_window,
    worn_down,
)
from fashion_rag.request import Window

SIZE = (192, 144)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, shape, np.uint8)


def test_windows_differ_have_the_shape_and_show_most_of_the_person() -> None:
    rng = np.random.default_rng(0)
    box, photo_size = Box(30, 100, 120, 140), (200, 300)
    windows = [moved_window(rng, box, photo_size) for _ in range(40)]
    assert len(set(windows)) > 20
    for window in windows:
        assert window.width == pytest.approx(window.height * 0.75, abs=1)
        assert 88 <= window.height <= 130
        assert window.top >= 0 and window.left >= 0
        assert window.top + window.height <= 200
        shown = min(box.bottom, window.top + window.height) - max(box.top, window.top)
        assert shown >= 0.85 * 90
        assert abs(window.left + window.width / 2 - 120) <= 0.06 * window.height + 1


def test_a_window_at_the_edge_is_moved_into_the_photo_and_a_larger_one_covers_it() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        window = moved_window(rng, Box(0, 0, 90, 40), (200, 300))
        assert window.left == 0
        assert window.top >= 0
        wide = moved_window(rng, Box(10, 0, 90, 100), (90, 100))
        assert wide.top <= 0
        assert wide.top + wide.height >= 90


def test_beyond_the_photo_there_is_no_label() -> None:
    labels = noise(10, 8) % 18
    part = crop_labels(labels, Window(-2, 3, 14, 7))
    assert part.shape == (14, 7)
    np.testing.assert_array_equal(part[2:12, :5], labels[:, 3:])
    assert (part == IGNORED).sum() == 14 * 7 - 10 * 5


@pytest.mark.parametrize(("photo_size", "place"), [((96, 72), (0, 0, 192, 144)), ((72, 96), (42, 0, 108, 144))])
def test_a_letterboxed_photo_keeps_its_shape(photo_size: tuple[int, int], place: tuple[int, ...]) -> None:
    top, left, height, width = place
    pixels = letterboxed(noise(*photo_size, 3), SIZE, None)
    labels = letterboxed_labels(np.full(photo_size, 4, np.uint8), SIZE)
    shown = np.zeros(SIZE, bool)
    shown[top : top + height, left : left + width] = True
    assert not pixels[~shown].any()
    assert pixels[shown].std() > 0.2
    np.testing.assert_array_equal(labels, np.where(shown, 4, 0))


def test_persons_are_cut_out_as_vitpose_cuts_them_out() -> None:
    image, size = noise(90, 140, 3), (128, 96)
    cut = cut_person(image, Box(20, 30, 80, 55), size, None)
    processor = VitPoseImageProcessor(
        size={"height": size[0], "width": size[1]}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    expected = processor(Image.fromarray(image), boxes=[[[30, 20, 25, 60]]], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(torch.from_numpy(cut.pixels).permute(2, 0, 1), expected, rtol=0, atol=1e-5)


def test_points_move_with_the_pixels() -> None:
    image, size = np.full((90, 140, 3), 20, np.uint8), (128, 96)
    image[50, 60] = 255
    cut = cut_person(image, Box(20, 40, 80, 75), size, None)
    x, y = cut.to_map(np.array([60.0, 50.0]), size)
    brightest = np.unravel_index(cut.pixels.sum(axis=2).argmax(), size)
    assert np.abs(np.array(brightest) - (y, x)).max() <= 0.5


def test_wear_changes_pixels_but_not_the_size() -> None:
    image = Image.fromarray(noise(40, 30, 3))
    seen = [worn_down(np.random.default_rng(seed), image) for seed in range(30)]
    assert {(picture.shape, picture.dtype) for picture in seen} == {((40, 30, 3), np.dtype(np.uint8))}
    num_clean = sum(bool((picture == np.asarray(image)).all()) for picture in seen)
    assert 1 <= num_clean <= 20
