"""Tests of the way of an edit from its photo to the model and back: windows, and whole photos as they always were."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fashion_rag.data.colour import from_srgb, to_srgb
from fashion_rag.data.finish import finish
from fashion_rag.data.image import paste_outside, to_tensor
from fashion_rag.data.pose import heat_maps, scale_keypoints
from fashion_rag.data.prepare import prepare
from fashion_rag.data.window import visible_part, whole
from fashion_rag.manifest import Manifest
from fashion_rag.request import CompleteRequest, Window
from tests.profiles import display_p3

MANIFEST = Manifest("toy", image_size=(64, 48), pose_sigma=3.0)
SIDES = st.integers(16, 200)


def request(size: tuple[int, int], window: Window, seed: int = 0, **changes: Any) -> CompleteRequest:
    """Return a request with a photo of noise, key points in and outside of it, and a mask in its window."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    top, left, bottom, right = visible_part(window, size)
    rows, columns = np.sort(rng.integers((top, left), (bottom, right), (2, 2)), axis=0).T
    mask[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = 255
    options: dict[str, Any] = {
        "image": rng.integers(0, 256, (*size, 3), dtype=np.uint8),
        "mask": mask,
        "window": window,
        "keypoints": rng.uniform(-20, max(size) + 20, (18, 2)) * rng.integers(0, 2, (18, 1)),
        "prompt": "a red top",
        "category": "upper_body",
    }
    return CompleteRequest(**options | changes)


@st.composite
def windows(draw: st.DrawFn) -> tuple[tuple[int, int], Window]:
    """Return the size of a photo, and a window that shows some of it and may reach beyond."""
    height, width = draw(SIDES), draw(SIDES)
    top, left = draw(st.integers(-60, height - 8)), draw(st.integers(-60, width - 8))
    rows = draw(st.integers(max(8, 8 - top), 300))
    columns = draw(st.integers(max(8, 8 - left), 300))
    return (height, width), Window(top, left, rows, columns)


@settings(deadline=None)
@given(SIDES, SIDES, st.integers(0, 1000), st.booleans())
def test_a_whole_photo_is_prepared_as_it_was_before_there_were_windows(
    height: int, width: int, seed: int, has_profile: bool
) -> None:
    asked = request((height, width), whole((height, width)), seed, icc_profile=display_p3() if has_profile else None)
    size = MANIFEST.image_size
    photo = Image.fromarray(asked.image).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    mask = Image.fromarray((asked.mask != 0).astype(np.uint8)).resize((size[1], size[0]), Image.Resampling.NEAREST)
    assert asked.keypoints is not None
    keypoints = scale_keypoints(asked.keypoints, (height, width), size)
    prepared = prepare(asked, MANIFEST)
    assert torch.equal(prepared.image, to_tensor(to_srgb(photo, asked.icc_profile), size)[None])
    assert torch.equal(prepared.mask, torch.from_numpy(np.array(mask)).float()[None, None])
    assert torch.equal(prepared.pose_map, heat_maps(keypoints, size, MANIFEST.pose_sigma)[None])


@settings(deadline=None)
@given(SIDES, SIDES, st.integers(0, 1000), st.booleans())
def test_a_whole_photo_is_finished_as_it_was_before_there_were_windows(
    height: int, width: int, seed: int, has_profile: bool
) -> None:
    asked = request((height, width), whole((height, width)), seed, icc_profile=display_p3() if has_profile else None)
    picture = np.random.default_rng(1).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    expected = paste_outside(
        asked.image, asked.mask, from_srgb(picture, asked.icc_profile), feather_px=min(height, width) // 128
    )
    np.testing.assert_array_equal(finish(asked, picture), expected)


@settings(deadline=None)
@given(windows())
def test_nothing_outside_the_mask_changes(size_and_window: tuple[tuple[int, int], Window]) -> None:
    asked = request(*size_and_window)
    before = asked.image.copy()
    edited = finish(asked, np.full((64, 48, 3), 77, np.uint8))
    inside = asked.mask != 0
    np.testing.assert_array_equal(edited[~inside], before[~inside])
    np.testing.assert_array_equal(asked.image, before)
    assert (edited[inside] == 77).all() or min(visible_part(asked.window, asked.mask.shape).size) >= 128


@settings(deadline=None)
@given(windows())
def test_what_the_model_leaves_alone_comes_back_where_it_was(
    size_and_window: tuple[tuple[int, int], Window],
) -> None:
    size, window = size_and_window
    rows, columns = np.mgrid[: size[0], : size[1]]
    image = np.dstack([rows, columns, 255 - rows]).astype(np.uint8)
    asked = request(size, window, image=image)
    seen = (prepare(asked, MANIFEST).image[0].permute(1, 2, 0).numpy() + 1) * 127.5
    edited = finish(asked, seen.round().astype(np.uint8)).astype(int)
    # One level is one pixel of the photo. A pixel of the model has at most so many, and at the edge of the photo it is
    # filled with its own average.
    off = max(window.height / 64, window.width / 48) + 2
    assert np.abs(edited - image).max() <= off
    far = asked.mask.astype(bool)
    margin = int(2 * off) + 1
    top, left, bottom, right = visible_part(window, size)
    far[: top + margin], far[bottom - margin :] = False, False
    far[:, : left + margin], far[:, right - margin :] = False, False
    assert not far.any() or np.abs(edited - image)[far].max() <= 2


def test_the_model_sees_the_window_and_nothing_else() -> None:
    asked = request((300, 400), Window(40, 100, 128, 96), mask=np.ones((300, 400), np.uint8))
    assert asked.keypoints is not None
    cut = CompleteRequest(
        image=np.ascontiguousarray(asked.image[40:168, 100:196]),
        mask=np.ones((128, 96), np.uint8),
        window=whole((128, 96)),
        keypoints=np.zeros((18, 2)),
        prompt="a red top",
        category="upper_body",
    )
    assert torch.equal(prepare(asked, MANIFEST).image, prepare(cut, MANIFEST).image)


def test_the_pose_of_a_window_has_the_points_that_are_in_it() -> None:
    keypoints = np.zeros((18, 2))
    keypoints[1], keypoints[2] = (148, 104), (90, 104)
    pose_map = prepare(request((300, 400), Window(40, 100, 128, 96), keypoints=keypoints), MANIFEST).pose_map[0]
    peak = int(pose_map[1].flatten().argmax())
    assert (peak // 48, peak % 48) == (32, 24)
    assert not pose_map[2].any()


def test_only_the_window_of_a_large_photo_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    from_array = Image.fromarray

    def counting(pixels: Any, *arguments: Any) -> Image.Image:
        copied.append(pixels.nbytes)
        return from_array(pixels, *arguments)

    asked = request((3000, 4000), Window(100, 200, 128, 96), image=np.zeros((3000, 4000, 3), np.uint8))
    monkeypatch.setattr(Image, "fromarray", counting)
    prepare(asked, MANIFEST)
    assert max(copied) == 128 * 96 * 3


def test_beyond_the_photo_photo_and_mask_are_continued() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    image[-4:], image[:, -4:] = 255, 255
    mask = np.zeros((100, 100), np.uint8)
    mask[50:, 60:] = 1
    prepared = prepare(request((100, 100), Window(0, 25, 200, 150), image=image, mask=mask), MANIFEST)
    assert (prepared.image[0, :, 33:, :] > 0.9).all() and (prepared.image[0, :, :20, :20] == -1).all()
    assert prepared.mask[0, 0].nonzero().amin(0).tolist() == [16, 11]
    assert prepared.mask[0, 0, 16:, 12:].all()


def test_the_seam_is_as_wide_as_the_window_asks_for() -> None:
    mask = np.zeros((900, 900), np.uint8)
    mask[300:400, 200:300] = 1
    image = np.zeros((900, 900, 3), np.uint8)
    asked = request((900, 900), Window(100, 100, 512, 384), image=image, mask=mask)
    row = finish(asked, np.full((64, 48, 3), 200, np.uint8))[350, 198:206, 0]
    assert row.tolist() == [0, 0, 50, 100, 150, 200, 200, 200]


def test_a_window_of_a_long_photo_takes_no_memory_of_its_size() -> None:
    size = (16, 100_000)
    window = Window(-66_659, 0, 133_333, 100_000)
    asked = request(size, window, image=np.full((*size, 3), 7, np.uint8), mask=np.ones(size, np.uint8))
    assert prepare(asked, MANIFEST).image.unique().numel() == 1
    assert finish(asked, np.full((64, 48, 3), 9, np.uint8)).shape == (*size, 3)
