"""Tests of what is found for a request, and that what the caller gives wins."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from fashion_rag.data.window import MASK_SHARE, PERSON_SHARE, Box, box_of, points_in, whole, window_round
from fashion_rag.errors import InvalidRequest
from fashion_rag.person import completion
from fashion_rag.person.completion import CategoryChoice, Found, complete, find, wants_reading
from fashion_rag.person.reading import PhotoReading
from fashion_rag.request import CompleteRequest, EditRequest, Window

SHAPE = (64, 48)
SIZE = (400, 600)
WINDOW = Window(20, 150, 360, 270)
CHOICE = CategoryChoice("upper_body", 0.8)


@pytest.fixture(autouse=True)
def worn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Have the upper garment and the trousers repainted, and return what the rule is called with."""
    asked: list[tuple[Any, ...]] = []

    def rule(label_map: Any, keypoints: Any, category: str, mask_type: str) -> Any:
        asked.append((label_map, keypoints, category, mask_type))
        return (label_map == {"upper_body": 4, "lower_body": 6, "dresses": 7}[category]).astype(np.uint8)

    monkeypatch.setattr(completion, "worn_mask", rule)
    return asked


def photo(size: tuple[int, int] = SIZE) -> Any:
    return np.zeros((*size, 3), np.uint8)


def mask(box: Box, size: tuple[int, int] = SIZE) -> Any:
    area = np.zeros(size, np.uint8)
    area[box.top : box.bottom, box.left : box.right] = 255
    return area


def points(*xy: tuple[float, float]) -> Any:
    keypoints = np.zeros((18, 2))
    for number, point in enumerate(xy):
        keypoints[number] = point
    return keypoints


def asked(**options: Any) -> EditRequest:
    return EditRequest(**{"image": photo(), "prompt": "a red top"} | options)


def reading(**changes: Any) -> PhotoReading:
    """Return a person with face, upper garment and arms, whose garment is in the photo's rows 90 to 200."""
    label_map = np.zeros((512, 384), np.uint8)
    label_map[40:100, 160:220] = 11
    label_map[100:256, 128:256] = 4
    label_map[100:300, 256:280] = 15
    options: dict[str, Any] = {
        "window": WINDOW,
        "label_map": label_map,
        "keypoints": points((285, 80), (285, 100)),
        "num_persons": 1,
    }
    return PhotoReading(**options | changes)


def nobody() -> PhotoReading:
    return reading(label_map=np.zeros((512, 384), np.uint8), keypoints=points(), num_persons=0, window=whole(SIZE))


# Windows of requests with a mask


@pytest.mark.parametrize("size", [(64, 48), (1024, 768), (1000, 757)])
def test_a_photo_of_the_models_shape_is_its_own_window_without_a_reading(size: tuple[int, int]) -> None:
    request = asked(image=photo(size), mask=mask(Box(1, 2, 4, 6), size), keypoints=points((3, 3)))
    assert find(request, CHOICE, SHAPE, None).window == whole(size)


def test_without_a_reading_the_window_is_round_the_mask_and_the_points() -> None:
    box = Box(100, 200, 200, 260)
    only_mask = find(asked(mask=mask(box)), CHOICE, SHAPE, None)
    assert only_mask.window == window_round(box, SIZE, SHAPE, MASK_SHARE)
    with_points = find(asked(mask=mask(box), keypoints=points((230, 60), (250, 330))), CHOICE, SHAPE, None)
    assert with_points.window == window_round(Box(60, 200, 331, 260), SIZE, SHAPE, PERSON_SHARE)


def test_points_that_are_absent_or_outside_the_photo_have_no_part_in_the_window() -> None:
    box = Box(100, 200, 200, 260)
    given = points((230, 60), (0, 0), (-40, 100), (700, 100), (250, 150))
    found = find(asked(mask=mask(box), keypoints=given), CHOICE, SHAPE, None)
    assert found.window == window_round(Box(60, 200, 200, 260), SIZE, SHAPE, PERSON_SHARE)
    absent = find(asked(mask=mask(box), keypoints=points()), CHOICE, SHAPE, None)
    assert absent.window == window_round(box, SIZE, SHAPE, MASK_SHARE)


def test_with_a_reading_the_window_is_the_readings_and_wide_enough_for_the_mask() -> None:
    inside = find(asked(mask=mask(Box(100, 200, 200, 300))), CHOICE, SHAPE, reading())
    assert inside.window == WINDOW and inside.mask is None
    wider = find(asked(mask=mask(Box(100, 100, 200, 300))), CHOICE, SHAPE, reading())
    assert wider.window != WINDOW
    assert wider.window.left <= 100 and wider.window.left + wider.window.width >= 420


def test_the_requests_own_window_wins() -> None:
    own = Window(90, 190, 160, 120)
    given = mask(Box(100, 200, 200, 300))
    for read in (None, reading()):
        assert find(asked(mask=given, window=own), CHOICE, SHAPE, read).window == own


def test_a_window_that_does_not_hold_the_mask_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"window: got \(90, 190, 64, 48\).*\(100, 200, 200, 300\)") as refused:
        find(asked(mask=mask(Box(100, 200, 200, 300)), window=Window(90, 190, 64, 48)), CHOICE, SHAPE, None)
    assert refused.value.field == "window"


# Key points


def test_given_points_win_and_read_points_stand_in_for_them() -> None:
    given, own = mask(Box(100, 250, 200, 300)), points((1, 2))
    assert find(asked(mask=given, keypoints=own), CHOICE, SHAPE, reading()).keypoints is own
    read = reading()
    assert find(asked(mask=given), CHOICE, SHAPE, read).keypoints is read.keypoints


@pytest.mark.parametrize("read", [None, nobody(), reading(keypoints=None), reading(keypoints=points())])
def test_points_that_nobody_knows_stay_unknown(read: PhotoReading | None) -> None:
    assert find(asked(mask=mask(Box(100, 250, 200, 300))), CHOICE, SHAPE, read).keypoints is None


def test_a_mask_on_somebody_else_takes_nothing_from_the_person_who_was_read() -> None:
    elsewhere = Box(100, 480, 200, 560)
    found = find(asked(mask=mask(elsewhere)), CHOICE, SHAPE, reading(num_persons=2))
    assert found.keypoints is None and found.warnings == ()
    assert found.window == window_round(elsewhere, SIZE, SHAPE, MASK_SHARE)


# Found masks


def test_a_mask_is_found_for_the_category_in_the_readings_frame(worn: list[tuple[Any, ...]]) -> None:
    found = find(asked(mask_type="mask"), CHOICE, SHAPE, reading())
    ((label_map, keypoints, category, mask_type),) = worn
    assert (category, mask_type) == ("upper_body", "mask")
    np.testing.assert_array_equal(label_map, reading().label_map)
    np.testing.assert_allclose(keypoints, points_in(WINDOW, points((285, 80), (285, 100)), (512, 384)))
    assert found.window == WINDOW and found.choice == CHOICE and found.warnings == ()
    np.testing.assert_array_equal(found.mask, reading().label_map == 4)


def test_the_callers_points_are_those_that_the_rule_sees(worn: list[tuple[Any, ...]]) -> None:
    find(asked(keypoints=points((200, 200))), CHOICE, SHAPE, reading())
    np.testing.assert_allclose(worn[0][1], points_in(WINDOW, points((200, 200)), (512, 384)))
    find(asked(), CHOICE, SHAPE, reading(keypoints=None))
    assert worn[1][1] is None


def test_two_persons_are_told() -> None:
    (warning,) = find(asked(), CHOICE, SHAPE, reading(num_persons=2)).warnings
    assert warning == "There are 2 persons in the photo; the largest was taken for the edit."


def test_a_found_mask_is_moved_into_the_requests_own_window() -> None:
    own = Window(60, 180, 240, 180)
    found = find(asked(window=own), CHOICE, SHAPE, reading())
    assert found.window == own and found.mask is not None and found.mask.shape == (512, 384)
    expected = complete(asked(), find(asked(), CHOICE, SHAPE, reading())).mask
    moved = complete(asked(window=own), found).mask
    assert (moved != expected).mean() < 0.001


# What cannot be found


def test_a_mask_is_needed_where_there_is_no_parser() -> None:
    with pytest.raises(InvalidRequest, match=r"mask: is missing; .*no human parser") as refused:
        find(asked(), CHOICE, SHAPE, None)
    assert refused.value.code == "missing_required_parameter"


def test_a_photo_without_a_person_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="image: got 'a photo in which nobody was seen'; must show a person"):
        find(asked(), CHOICE, SHAPE, nobody())


def test_a_photo_without_the_part_to_dress_is_refused_and_says_what_was_seen() -> None:
    with pytest.raises(InvalidRequest) as refused:
        find(asked(), CategoryChoice("lower_body"), SHAPE, reading())
    assert refused.value.field == "image"
    assert refused.value.value == "a photo with upper garment, arms, face"
    assert "lower_body: the legs" in refused.value.rule


def test_what_is_seen_only_where_the_photo_is_continued_is_not_in_the_photo() -> None:
    # The lowest row of the photo is at two thirds of the window.
    read = reading(window=Window(160, 150, 360, 270))
    read.label_map[400:, 128:256] = 6
    with pytest.raises(InvalidRequest, match="upper garment, arms, face"):
        find(asked(), CategoryChoice("lower_body"), SHAPE, read)
    read.label_map[330:400, 128:256] = 6
    assert find(asked(), CategoryChoice("lower_body"), SHAPE, read).mask is not None


# Completion


def test_a_complete_request_has_all_that_the_request_had() -> None:
    request = asked(
        mask=mask(Box(100, 250, 200, 300)), keypoints=points((1, 2)), seed=9, prompt="blue", mask_type="mask"
    )
    completed = complete(request, find(request, CHOICE, SHAPE, None))
    assert isinstance(completed, CompleteRequest)
    assert (completed.category, completed.window) == ("upper_body", find(request, CHOICE, SHAPE, None).window)
    changed = {"category", "window"}
    for name in {entry.name for entry in fields(EditRequest)} - changed:
        assert getattr(completed, name) is getattr(request, name)


def test_a_found_mask_comes_to_the_photos_resolution_in_its_place() -> None:
    completed = complete(asked(), find(asked(), CHOICE, SHAPE, reading()))
    assert completed.mask.shape == SIZE and completed.mask.dtype == np.uint8
    # Rows 100 to 256 and columns 128 to 256 of the frame, in which 512 rows are 360 of the photo.
    assert box_of(completed.mask != 0) == Box(20 + 70, 150 + 90, 20 + 180, 150 + 180)
    read = reading()
    assert completed.keypoints is not None and read.keypoints is not None
    np.testing.assert_array_equal(completed.keypoints, read.keypoints)


def test_what_wants_a_reading() -> None:
    given, own = mask(Box(100, 250, 200, 300)), points((1, 2))
    assert wants_reading(asked()) and wants_reading(asked(mask=given)) and wants_reading(asked(keypoints=own))
    assert not wants_reading(asked(mask=given, keypoints=own))
    known = complete(asked(mask=given), Found(CHOICE, WINDOW, None, None))
    assert known.keypoints is None and not wants_reading(known)


def test_a_complete_request_is_found_to_be_what_it_is() -> None:
    known = complete(asked(mask=mask(Box(100, 250, 200, 300))), Found(CHOICE, WINDOW, None, points((4, 5))))
    again = complete(replace(known), find(known, CHOICE, SHAPE, None))
    assert again.digest() == known.digest()
