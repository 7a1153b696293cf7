"""What the networks see of a photo: its place is known, and the truth moves with the pixels."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import VitPoseImageProcessor

from fashion_rag.demo.model.photo_views import (
    IGNORED,
    View,
    crop,
    crop_labels,
    cut_person,
    letterbox_size,
    letterboxed,
    letterboxed_labels,
    window_round,
    worn_down,
)

SIZE = (192, 144)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, shape, np.uint8)


def test_a_window_has_the_shape_and_holds_the_person() -> None:
    view = window_round((30, 100, 90, 40), (200, 300), None)
    assert (view.height, view.width) == (100, 75)
    assert (view.top, view.left) == (25, 82)
    # At the edge it is moved into the photo.
    assert window_round((0, 0, 90, 40), (200, 300), None) == View(0, 0, 100, 75)
    # Where it cannot fit, it covers the photo.
    wide = window_round((10, 0, 80, 100), (90, 100), None)
    assert wide.top <= 0
    assert wide.top + wide.height >= 90
    rng = np.random.default_rng(0)
    assert len({window_round((30, 100, 90, 40), (200, 300), rng) for _ in range(10)}) > 5


def test_beyond_the_photo_its_edge_goes_on_and_has_no_label() -> None:
    image, labels = noise(10, 8, 3), noise(10, 8) % 18
    view = View(-2, 3, 14, 7)
    part, part_labels = crop(image, view), crop_labels(labels, view)
    np.testing.assert_array_equal(part[2:12, :5], image[:, 3:])
    np.testing.assert_array_equal(part[0, :5], image[0, 3:])
    np.testing.assert_array_equal(part[13, 6], image[9, 7])
    np.testing.assert_array_equal(part_labels[2:12, :5], labels[:, 3:])
    assert (part_labels == IGNORED).sum() == 14 * 7 - 10 * 5


@pytest.mark.parametrize(("photo_size", "place"), [((96, 72), (0, 0, 192, 144)), ((72, 96), (42, 0, 108, 144))])
def test_a_letterboxed_photo_keeps_its_shape(photo_size: tuple[int, int], place: tuple[int, ...]) -> None:
    top, left, height, width = place
    assert letterbox_size(photo_size, SIZE) == View(*place)
    pixels = letterboxed(noise(*photo_size, 3), SIZE, None)
    labels = letterboxed_labels(np.full(photo_size, 4, np.uint8), SIZE)
    shown = np.zeros(SIZE, bool)
    shown[top : top + height, left : left + width] = True
    assert not pixels[~shown].any()
    assert pixels[shown].std() > 0.2
    np.testing.assert_array_equal(labels, np.where(shown, 4, 0))


def test_persons_are_cut_out_as_vitpose_cuts_them_out() -> None:
    image, size = noise(90, 140, 3), (128, 96)
    box = (20, 30, 60, 25)
    cut = cut_person(image, box, size, None)
    processor = VitPoseImageProcessor(
        size={"height": size[0], "width": size[1]}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    expected = processor(Image.fromarray(image), boxes=[[[30, 20, 25, 60]]], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(torch.from_numpy(cut.pixels).permute(2, 0, 1), expected, rtol=0, atol=1e-5)


def test_points_move_with_the_pixels() -> None:
    image, size = np.full((90, 140, 3), 20, np.uint8), (128, 96)
    image[50, 60] = 255
    cut = cut_person(image, (20, 40, 60, 35), size, None)
    x, y = cut.to_map(np.array([60.0, 50.0]), size)
    brightest = np.unravel_index(cut.pixels.sum(axis=2).argmax(), size)
    assert np.abs(np.array(brightest) - (y, x)).max() <= 0.5


def test_wear_changes_pixels_but_not_the_size() -> None:
    image = Image.fromarray(noise(40, 30, 3))
    seen = [worn_down(np.random.default_rng(seed), image) for seed in range(30)]
    assert {(picture.shape, picture.dtype) for picture in seen} == {((40, 30, 3), np.dtype(np.uint8))}
    num_clean = sum(bool((picture == np.asarray(image)).all()) for picture in seen)
    assert 1 <= num_clean <= 20
