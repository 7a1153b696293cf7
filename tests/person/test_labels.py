from pathlib import Path

import numpy as np
import pytest

from fashion_rag.data import masks
from fashion_rag.errors import ArtifactError
from fashion_rag.person.labels import CLASSES, class_table, openpose_points

ATR = ("Background", "Hat", "Hair", "Sunglasses", "Upper-clothes", "Skirt", "Pants", "Dress", "Belt", "Left-shoe",
       "Right-shoe", "Face", "Left-leg", "Right-leg", "Left-arm", "Right-arm", "Bag", "Scarf")  # fmt: skip
FASHN = ("background", "face", "hair", "top", "dress", "skirt", "pants", "belt", "bag", "hat", "scarf", "glasses",
         "arms", "hands", "legs", "feet", "torso", "jewelry")  # fmt: skip
SAPIENS = ("Background", "Apparel", "Face_Neck", "Hair", "Left_Foot", "Left_Hand", "Left_Lower_Arm", "Left_Lower_Leg",
           "Left_Shoe", "Left_Sock", "Left_Upper_Arm", "Left_Upper_Leg", "Lower_Clothing", "Right_Foot", "Right_Hand",
           "Right_Lower_Arm", "Right_Lower_Leg", "Right_Shoe", "Right_Sock", "Right_Upper_Arm", "Right_Upper_Leg",
           "Torso", "Upper_Clothing", "Lower_Lip", "Upper_Lip", "Lower_Teeth", "Upper_Teeth", "Tongue")  # fmt: skip


def table(names: tuple[str, ...]) -> tuple[int, ...]:
    return class_table(dict(enumerate(names)), Path("config.json"))


@pytest.mark.parametrize("names", [CLASSES, ATR])
def test_parsers_with_dress_code_s_classes_keep_them(names: tuple[str, ...]) -> None:
    assert table(names) == tuple(range(18))


def test_the_classes_of_fashn_become_those_of_dress_code() -> None:
    assert table(FASHN) == (0, 11, 2, 4, 7, 5, 6, 8, 16, 1, 17, 3, 14, 14, 12, 9, 11, 11)


def test_the_classes_of_sapiens_become_those_of_dress_code() -> None:
    expected = (0, 16, 11, 2, 9, 14, 14, 12, 9, 12, 14, 12, 6, 10, 15, 15, 13, 10, 13, 15, 13, 11, 4) + (11,) * 5
    assert table(SAPIENS) == expected
    # Sapiens2 has one class more.
    assert table((*SAPIENS, "Eyeglass"))[-1] == 3


def test_clothes_and_bodies_are_what_the_mask_rule_takes_them_for() -> None:
    meant = dict(zip(FASHN, table(FASHN), strict=True))
    assert {meant[name] for name in ("hat", "hair", "glasses", "feet", "bag", "scarf")} <= set(masks.ALWAYS_KEPT)
    assert {meant["arms"], meant["hands"]} <= set(masks.ARMS)
    assert {meant["face"], meant["torso"], meant["jewelry"]} <= set(masks.HEAD)
    assert meant["top"] in masks.CHANGED["upper_body"] and meant["dress"] in masks.CHANGED["dresses"]
    assert {meant["pants"], meant["legs"]} <= set(masks.CHANGED["lower_body"])


@pytest.mark.parametrize("name", ["left_shoe", "Left-Shoe", "LEFT SHOE", "leftshoe", "left shoe"])
def test_case_and_separators_make_no_difference(name: str) -> None:
    assert table(("background", name)) == (0, 9)


def test_names_come_from_json_with_numbers_as_texts() -> None:
    assert class_table({"1": "Hat", "0": "Background"}, Path("config.json")) == (0, 1)


def test_an_unknown_name_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(
        ArtifactError, match=r"config\.json: .*unknown names: LABEL_1; known are .*torso.*upper_clothes"
    ):
        table(("background", "LABEL_1"))


@pytest.mark.parametrize("id2label", [{}, {0: "background", 2: "hat"}, {1: "background"}])
def test_numbers_that_do_not_count_from_zero_are_refused(id2label: dict[int, str]) -> None:
    with pytest.raises(ArtifactError, match="must count from 0"):
        class_table(id2label, Path("config.json"))


COCO = ("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
        "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
        "right_ankle")  # fmt: skip
OPENPOSE = ("nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow",
            "left_wrist", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
            "right_eye", "left_eye", "right_ear", "left_ear")  # fmt: skip
POINTS = np.arange(1, 35, dtype=np.float64).reshape(17, 2) ** 1.5


def test_each_joint_is_put_where_openpose_has_it() -> None:
    keypoints = openpose_points(POINTS, np.ones(17), 0.3)
    for name, point in zip(OPENPOSE, keypoints, strict=True):
        if name != "neck":
            assert tuple(point) == tuple(POINTS[COCO.index(name)]), name
    assert tuple(keypoints[1]) == tuple((POINTS[5] + POINTS[6]) / 2)


@pytest.mark.parametrize(("joint", "also"), [("left_wrist", ()), ("left_shoulder", ("neck",)), ("nose", ())])
def test_a_point_that_is_not_sure_is_absent(joint: str, also: tuple[str, ...]) -> None:
    confidences = np.full(17, 0.3)
    confidences[COCO.index(joint)] = 0.29
    keypoints = openpose_points(POINTS, confidences, 0.3)
    absent = {name for name, point in zip(OPENPOSE, keypoints, strict=True) if not point.any()}
    assert absent == {joint, *also}
