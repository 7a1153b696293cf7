"""The shopper's mask covers the place of the new garment and never the parts that are kept, whatever is worn."""

import json

import numpy as np
import pytest
from PIL import Image

from fashion_rag.data.masks import repaint_mask
from fashion_rag.errors import InvalidRequest
from fashion_rag.person.worn_mask import worn_mask
from fashion_rag.request import CATEGORIES, MASK_TYPES
from tests.golden.golden import Golden
from tests.person.drawn import HEIGHT, WIDTH, Person, people, wearing

HAT, HAIR, GLASSES, TOP, SKIRT, TROUSERS, DRESS, BELT, HEAD, BAG, SCARF = 1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 17
SHOES, LEGS, ARMS = (9, 10), (12, 13), (14, 15)
R_ELBOW, R_WRIST, L_ELBOW, L_WRIST, R_HIP, L_HIP = 3, 4, 6, 7, 8, 11
WAYS = [(category, mask_type) for category in CATEGORIES for mask_type in MASK_TYPES]


def covered(person: Person, category: str, mask_type: str = "mask", points: bool = True) -> np.ndarray:
    mask = worn_mask(person.labels, person.keypoints if points else None, category, mask_type)
    assert mask.shape == (HEIGHT, WIDTH) and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}
    return mask.astype(bool)


def hands_of(person: Person) -> np.ndarray:
    """Return the pixels of the arms that lie further along than the wrist and near it."""
    rows, columns = np.indices(person.labels.shape)
    hands = np.zeros(person.labels.shape, bool)
    for label, elbow, wrist in ((15, R_ELBOW, R_WRIST), (14, L_ELBOW, L_WRIST)):
        arm = person.keypoints[wrist] - person.keypoints[elbow]
        length = np.hypot(*arm)
        dx, dy = columns - person.keypoints[wrist, 0], rows - person.keypoints[wrist, 1]
        hands |= (person.labels == label) & ((dx * arm[0] + dy * arm[1]) / length > 4) & (np.hypot(dx, dy) < length / 2)
    assert hands.any()
    return hands


def below(person: Person, y: float) -> np.ndarray:
    return np.broadcast_to(np.arange(HEIGHT)[:, None] >= y, person.labels.shape)


def hips(person: Person) -> float:
    return float(person.keypoints[[R_HIP, L_HIP], 1].mean())


def bare_armed(seed: int) -> Person:
    """Return the one of thirty drawn people whose arms show most."""
    return max(people(30, seed), key=lambda person: np.isin(person.labels, ARMS).sum())


def missed_by(person: Person, category: str, mask_type: str) -> int:
    """Return how many pixels the paper's rule covers and the shopper's mask does not."""
    points = person.keypoints.copy()
    if not points[[R_WRIST, L_WRIST]].any():
        # Here the line of the paper's rule runs to the corner. It ends at the elbow if the wrist is there.
        points[L_WRIST] = points[L_ELBOW]
    paper = repaint_mask(person.labels, points, category, mask_type)
    return int((paper.astype(bool) & ~covered(person, category, mask_type)).sum())


@pytest.mark.parametrize("mask_type", MASK_TYPES)
def test_it_covers_at_least_what_the_papers_rule_covers_on_drawn_people(mask_type: str) -> None:
    assert [missed_by(person, person.category, mask_type) for person in people(36, 3)] == [0] * 36


def test_it_covers_at_least_what_the_papers_rule_covers_on_the_golden_people(golden: Golden) -> None:
    missed, compared = {}, 0
    for category in CATEGORIES:
        for path in sorted((golden.dresscode / category / "label_maps").glob("*_4.png")):
            labels = np.array(Image.open(path).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST))
            points_file = golden.dresscode / category / "keypoints" / path.name.replace("_4.png", "_2.json")
            rows = np.array(json.loads(points_file.read_text())["keypoints"])
            person = Person(category, labels, rows[:, :2])
            for mask_type in MASK_TYPES:
                compared += 1
                if num_missed := missed_by(person, category, mask_type):
                    missed[path.name, mask_type] = num_missed
    print(f"{compared} masks of golden people compared")
    assert compared > 0 and missed == {}


@pytest.mark.parametrize("points", [True, False])
@pytest.mark.parametrize(("category", "mask_type"), WAYS)
def test_face_hair_hands_shoes_and_bag_are_never_covered(category: str, mask_type: str, points: bool) -> None:
    for person in people(12, 4):
        labels = person.labels.copy()
        labels[250:300, 150:180], labels[120:130, 150:220] = BAG, SCARF
        carrying = Person(person.category, labels, person.keypoints)
        mask = covered(carrying, category, mask_type, points)
        assert not mask[np.isin(labels, (HAT, HAIR, GLASSES, *SHOES, BAG, SCARF))].any()
        chin = person.keypoints[0, 1] + 30
        assert not mask[(labels == HEAD) & ~below(person, chin)].any()
        assert not mask[hands_of(carrying)].any()


@pytest.mark.parametrize(("category", "mask_type"), WAYS)
def test_the_mask_of_a_mirrored_person_is_the_mirrored_mask(category: str, mask_type: str) -> None:
    for person in people(6, 5):
        for points in (True, False):
            mask = covered(person, category, mask_type, points)
            np.testing.assert_array_equal(covered(person.mirrored(), category, mask_type, points), mask[:, ::-1])


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_box_covers_the_mask_and_nothing_outside_its_box(category: str) -> None:
    for person in people(9, 6):
        mask, box = covered(person, category), covered(person, category, "bounding_box")
        rows, columns = np.nonzero(mask)
        inside = np.zeros_like(mask)
        inside[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
        assert (box >= mask).all() and (inside >= box).all()
        assert box[inside & (person.labels == 0)].all()


def test_a_dress_repaints_all_that_a_top_and_a_lower_garment_repaint() -> None:
    for person in people(18, 7):
        tops_and_trousers = covered(person, "upper_body") | covered(person, "lower_body")
        kept = hands_of(person)
        assert (covered(person, "dresses") >= tops_and_trousers & ~kept).all()


def test_a_dress_asked_for_in_shirt_and_trousers_repaints_both() -> None:
    for garment in (TROUSERS, SKIRT):
        person = wearing(TOP, garment, seed=8)
        assert covered(person, "dresses")[np.isin(person.labels, (TOP, garment))].all()


@pytest.mark.parametrize("points", [True, False])
def test_a_skirt_is_a_lower_garment(points: bool) -> None:
    person = wearing(TOP, SKIRT, seed=8)
    mask = covered(person, "lower_body", points=points)
    assert mask[np.isin(person.labels, (SKIRT, *LEGS))].all()
    assert not mask[np.isin(person.labels, (TOP, *ARMS))].any()


def test_a_dress_is_repainted_above_the_hips_for_a_top_and_below_them_for_a_lower_garment() -> None:
    person = wearing(DRESS)
    dress, below_hips = person.labels == DRESS, below(person, hips(person) + 3)
    above_hips = ~below(person, hips(person) - 3)
    for mask_type in MASK_TYPES:
        top, lower = covered(person, "upper_body", mask_type), covered(person, "lower_body", mask_type)
        assert top[dress & above_hips].all() and not top[dress & below_hips].any()
        assert lower[dress & below_hips].all() and not lower[dress & above_hips].any()


def test_without_key_points_a_dress_is_parted_near_the_hips() -> None:
    for person in people(18, 9):
        if not (person.labels == DRESS).any():
            continue
        dress = person.labels == DRESS
        top = covered(person, "upper_body", points=False) & dress
        first_kept = np.flatnonzero((dress & ~top)[200:].any(axis=1))[0] + 200
        assert abs(first_kept - hips(person)) < 0.2 * (hips(person) - person.keypoints[1, 1])
        assert (covered(person, "lower_body", points=False) & dress == dress & ~top).all()


def test_arms_are_repainted_to_the_wrists_for_tops_and_dresses_only() -> None:
    for person in people(18, 10):
        arms = np.isin(person.labels, ARMS)
        rows, columns = np.indices(arms.shape)
        for wrist in (R_WRIST, L_WRIST):
            x, y = person.keypoints[wrist]
            arms &= np.hypot(columns - x, rows - y) > 40
        for category in ("upper_body", "dresses"):
            assert covered(person, category)[arms].all()
        assert not covered(person, "lower_body")[np.isin(person.labels, ARMS)].any()


def test_sleeves_may_be_wider_than_the_bare_arms_they_replace() -> None:
    person = bare_armed(11)
    mask = covered(person, "upper_body")
    for elbow, wrist in ((R_ELBOW, R_WRIST), (L_ELBOW, L_WRIST)):
        forearm = person.keypoints[[elbow, wrist]]
        x, y = forearm.mean(axis=0)
        along = np.diff(forearm, axis=0)[0] / np.hypot(*np.diff(forearm, axis=0)[0])
        for side in (-25, 25):
            assert mask[round(y + side * along[0]), round(x - side * along[1])]


@pytest.mark.parametrize("points", [True, False])
def test_legs_are_filled_to_the_ankles_and_between(points: bool) -> None:
    for person in people(18, 12):
        mask = covered(person, "lower_body", points=points)
        assert mask[np.isin(person.labels, LEGS)].all()
        knees, ankles = person.keypoints[[9, 12]], person.keypoints[[10, 13]]
        for (right, left), row in ((knees[:, 0], knees[0, 1]), (ankles[:, 0], ankles[:, 1].min() - 5)):
            assert mask[round(row), round(right) : round(left)].all()


def test_trousers_leave_room_for_a_wide_skirt() -> None:
    person = wearing(TROUSERS, seed=13)
    mask = covered(person, "lower_body")
    right_knee, left_knee = person.keypoints[9], person.keypoints[12]
    torso = hips(person) - person.keypoints[2, 1]
    widest = mask[round(right_knee[1])].nonzero()[0]
    assert widest.min() < right_knee[0] - 0.3 * torso and widest.max() > left_knee[0] + 0.3 * torso


def test_a_short_top_leaves_room_for_a_longer_one_down_to_the_hips() -> None:
    person = wearing(TOP, TROUSERS, seed=14)
    cropped = person.labels.copy()
    waist = hips(person) - 50
    cropped[(person.labels == TOP) & below(person, waist)] = HEAD
    mask = covered(Person("upper_body", cropped, person.keypoints), "upper_body")
    assert mask[(cropped == HEAD) & below(person, waist)].all()
    high_trousers = np.where(cropped == HEAD, np.where(below(person, waist), TROUSERS, cropped), cropped)
    mask = covered(Person("upper_body", high_trousers.astype(np.uint8), person.keypoints), "upper_body")
    kept = (high_trousers == TROUSERS) & below(person, hips(person) + 20)
    assert mask[(high_trousers == TROUSERS) & ~below(person, hips(person))].all() and not mask[kept].any()


def test_what_is_worn_does_not_take_anything_away_from_the_mask() -> None:
    """Test that more cloth of the category's own class never makes the mask smaller."""
    for person in people(9, 15):
        for category, label in (("upper_body", TOP), ("lower_body", TROUSERS), ("dresses", DRESS)):
            wider = person.labels.copy()
            wider[200:260, 100:280] = np.where(wider[200:260, 100:280] == 0, label, wider[200:260, 100:280])
            more = covered(Person(person.category, wider, person.keypoints), category)
            assert (more | ~covered(person, category))[person.labels != 0].all()


def test_a_coat_that_hides_the_legs_is_repainted_below_the_hips() -> None:
    person = wearing(TOP, TROUSERS, seed=16)
    coat = np.where(np.isin(person.labels, (TROUSERS, *LEGS)), TOP, person.labels).astype(np.uint8)
    mask = covered(Person("lower_body", coat, person.keypoints), "lower_body")
    assert mask[(coat == TOP) & below(person, hips(person) + 3)].all()
    assert not mask[(coat == TOP) & ~below(person, hips(person) - 3)].any()
    open_coat = np.where((person.labels == TROUSERS) & (np.indices(coat.shape)[1] < 180), TOP, person.labels)
    mask = covered(Person("lower_body", open_coat.astype(np.uint8), person.keypoints), "lower_body")
    assert mask[open_coat == TROUSERS].all() and not mask[open_coat == TOP].any()


@pytest.mark.parametrize("points", [True, False])
@pytest.mark.parametrize("mask_type", MASK_TYPES)
def test_parts_that_are_not_in_view_get_no_mask(mask_type: str, points: bool) -> None:
    person = wearing(TOP, TROUSERS, seed=17)
    portrait = person.cut(0, 110, 200)
    assert covered(portrait, "upper_body", mask_type, points).any()
    assert covered(portrait, "dresses", mask_type, points).any()
    assert not covered(portrait, "lower_body", mask_type, points).any()
    legs = person.cut(hips(person) - 25, 60, 250)
    assert not covered(legs, "upper_body", mask_type, points).any()
    assert covered(legs, "lower_body", mask_type, points).any()
    assert covered(legs, "dresses", mask_type, points)[np.isin(legs.labels, (TOP, TROUSERS, *LEGS))].all()


def test_nobody_gets_no_mask() -> None:
    for category, mask_type in WAYS:
        for points in (None, np.zeros((18, 2))):
            assert not worn_mask(np.zeros((HEIGHT, WIDTH), np.uint8), points, category, mask_type).any()


@pytest.mark.parametrize("category", CATEGORIES)
def test_absent_key_points_never_lead_to_the_corner(category: str) -> None:
    person = people(3, 18)[CATEGORIES.index(category)]
    absent = [person.without(*range(18)), *(person.without(joint) for joint in range(18))]
    for partly_known in [*absent, person.without(R_WRIST, L_WRIST), person.without(R_ELBOW, L_ELBOW)]:
        assert not covered(partly_known, category)[:60, :60].any()


def test_no_key_points_and_absent_key_points_are_the_same() -> None:
    person = wearing(TOP)
    for category, mask_type in WAYS:
        with_none = covered(person, category, mask_type, points=False)
        np.testing.assert_array_equal(covered(person.without(*range(18)), category, mask_type), with_none)


def test_an_arm_that_runs_out_of_the_photo_is_repainted_to_the_edge() -> None:
    """Test that the end of an arm at the photo's edge is not taken for a hand where the pose is known."""
    person = bare_armed(19)
    portrait = person.cut(0, 70, 230)
    arms = np.isin(portrait.labels, ARMS)
    assert arms[-1].any() and not portrait.keypoints[[R_WRIST, L_WRIST]].any()
    assert covered(portrait, "upper_body")[arms].all()


@pytest.mark.parametrize("scale", [1e-6, -3.0, 1e9])
def test_nonsense_key_points_still_keep_what_is_kept(scale: float) -> None:
    person = wearing(TOP, TROUSERS)
    points = np.random.default_rng(0).standard_normal((18, 2)) * scale * 100
    for category, mask_type in WAYS:
        mask = covered(Person("upper_body", person.labels, points), category, mask_type)
        assert not mask[np.isin(person.labels, (HAIR, *SHOES))].any()


def test_unknown_words_are_refused() -> None:
    person = wearing(TOP)
    with pytest.raises(InvalidRequest, match="category: got 'hats'; must be one of dresses"):
        worn_mask(person.labels, None, "hats", "mask")
    with pytest.raises(InvalidRequest, match="mask_type: got 'box'; must be one of bounding_box"):
        worn_mask(person.labels, None, "dresses", "box")  # type: ignore[arg-type]
