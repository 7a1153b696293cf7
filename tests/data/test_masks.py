import json

import numpy as np
import pytest
from PIL import Image

from fashion_rag.data.masks import repaint_mask, repaint_mask_for
from fashion_rag.errors import InvalidRequest

TOP, TROUSERS, DRESS, HEAD, RIGHT_LEG, ARM, BAG = 4, 6, 7, 11, 12, 14, 16


def person():
    """Return a label map at 512x384 and its key points: head, top with hanging arms, trousers."""
    labels = np.zeros((512, 384), np.uint8)
    labels[30:110, 160:220] = HEAD
    labels[105:280, 130:250] = TOP
    labels[280:480, 150:230] = TROUSERS
    labels[150:330, 100:130] = labels[150:330, 250:280] = ARM
    keypoints = np.zeros((18, 2))
    keypoints[[2, 3, 4, 5, 6, 7]] = [(140, 120), (115, 200), (112, 270), (240, 120), (265, 200), (268, 270)]
    return labels, keypoints


def test_masks_equal_the_published_ones(golden):
    compared, wrong = 0, []
    for entry in golden.samples:
        height, width = size = tuple(entry["size"])
        person_id, folder = entry["im_name"].removesuffix("_0.jpg"), golden.dresscode / entry["category"]
        labels = Image.open(folder / "label_maps" / f"{person_id}_4.png")
        rows = json.loads((folder / "keypoints" / f"{person_id}_2.json").read_text())["keypoints"]
        row = entry["sheet_row"] * height
        expected = np.asarray(Image.open(golden.folder / entry["sheet"]).crop((0, row, width, row + height)))
        mask = repaint_mask_for(np.asarray(labels), np.array(rows)[:, :2], entry["category"], entry["mask_type"], size)
        assert mask.dtype == np.uint8 and mask.sum() > 0
        compared += 1
        if not np.array_equal(mask, expected):
            wrong.append((entry["key"], entry["mask_type"], int((mask != expected).sum())))
    print(f"{compared} golden masks compared")
    assert compared > 0, "the golden data hold no masks"
    assert not wrong, f"{len(wrong)} of {compared} masks differ: {wrong}"


def test_the_garment_is_repainted_and_head_trousers_and_hands_stay():
    labels, keypoints = person()
    mask = repaint_mask(labels, keypoints, "upper_body", "mask")
    assert mask[labels == TOP].all()
    assert not mask[labels == TROUSERS].any()
    assert not mask[labels == HEAD][:60].any()  # the rows above the neck
    assert mask[200, 115] == 1 and mask[325, 115] == 0  # the arm; the hand below the wrist


def test_the_neck_is_repainted_with_a_top_but_not_with_trousers():
    labels, keypoints = person()
    assert repaint_mask(labels, keypoints, "upper_body", "mask")[103, 190] == 1
    assert repaint_mask(labels, keypoints, "upper_body", "mask")[97, 190] == 0
    assert repaint_mask(labels, keypoints, "lower_body", "mask")[103, 190] == 0


def test_the_bounding_box_is_full_but_for_the_parts_that_stay():
    labels, keypoints = person()
    labels[200:240, 90:110] = BAG
    mask = repaint_mask(labels, keypoints, "upper_body", "mask")
    box = repaint_mask(labels, keypoints, "upper_body", "bounding_box")
    rows, columns = np.nonzero(mask)
    inside = np.zeros_like(mask)
    inside[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = 1
    assert not box[inside == 0].any() and (box >= mask).all()
    assert not box[labels == BAG].any() and not box[labels == TROUSERS].any()
    assert box[(inside == 1) & (labels == 0)].all() and box.sum() > mask.sum()


def test_the_mask_grows_by_ten_pixels():
    labels = np.zeros((512, 384), np.uint8)
    labels[200:300, 100:200] = TROUSERS
    mask = repaint_mask(labels, np.zeros((18, 2)), "lower_body", "mask")
    rows, columns = np.nonzero(mask)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (190, 309, 90, 209)


def test_a_missing_left_arm_ends_the_line_at_the_shoulder():
    labels, keypoints = person()
    keypoints[[6, 7]] = 0
    mask = repaint_mask(labels, keypoints, "upper_body", "mask")
    assert mask[:80, :80].sum() == 0
    assert mask[260, 112] == 1 and mask[260, 268] == 0


def test_with_both_wrists_missing_the_line_runs_to_the_corner():
    """Test a slip of the published rule, which its figures contain: after the right arm, it ignores the left one."""
    labels, keypoints = person()
    keypoints[[4, 7]] = 0
    mask = repaint_mask(labels, keypoints, "upper_body", "mask")
    assert mask[0, 0] == 1 and mask[:40, 344:].sum() == 0
    assert mask[60, 80] == 1 and mask[100, 57] == 0  # it comes from the left elbow, not from the right one
    keypoints[3] = 0
    without_elbow = repaint_mask(labels, keypoints, "upper_body", "mask")
    assert without_elbow[0, 0] == 1 and without_elbow.sum() < mask.sum()


def test_shoulders_at_the_top_edge_count_the_neck_from_the_bottom():
    """Test another slip: a neck line above the picture becomes one near its bottom, so the whole head stays."""
    labels, keypoints = person()
    keypoints[[2, 5], 1] = 10
    assert not repaint_mask(labels, keypoints, "upper_body", "mask")[40:80, 165:215].any()
    keypoints[[2, 5], 1] = 20
    assert repaint_mask(labels, keypoints, "upper_body", "mask")[40:80, 165:215].all()


def test_shoulders_above_each_other_do_not_divide_by_zero():
    labels, keypoints = person()
    keypoints[2] = keypoints[5]
    assert repaint_mask(labels, keypoints, "upper_body", "mask").any()


def test_an_absent_garment_gives_an_empty_mask():
    labels = np.zeros((512, 384), np.uint8)
    for mask_type in ("mask", "bounding_box"):
        assert not repaint_mask(labels, np.zeros((18, 2)), "lower_body", mask_type).any()


def test_a_small_mask_comes_from_the_rule_at_full_size():
    labels, keypoints = person()
    small = repaint_mask_for(labels, keypoints, "upper_body", "mask", (96, 72), rule_size=(512, 384))
    full = repaint_mask(labels, keypoints, "upper_body", "mask")
    assert small.shape == (96, 72) and set(np.unique(small)) == {0, 1}
    assert abs(small.mean() - full.mean()) < 0.01
    at_small_size = repaint_mask_for(labels, keypoints, "upper_body", "mask", (96, 72))
    assert at_small_size.mean() > 2 * full.mean()


def test_unknown_words_are_refused():
    labels, keypoints = person()
    with pytest.raises(InvalidRequest, match="category: got 'hats'; must be one of"):
        repaint_mask(labels, keypoints, "hats")
    with pytest.raises(InvalidRequest, match="mask_type: got 'box'"):
        repaint_mask(labels, keypoints, "dresses", "box")
