import numpy as np

from fashion_rag.person.body import MIN_TORSO, body_in
from tests.person.drawn import people

R_SHOULDER, L_SHOULDER, R_HIP, L_HIP = 2, 5, 8, 11


def test_key_points_give_the_measures() -> None:
    for person in people(6, 30):
        body = body_in(person.labels, person.keypoints)
        shoulders = person.keypoints[[R_SHOULDER, L_SHOULDER]].mean(axis=0)
        hips = person.keypoints[[R_HIP, L_HIP]].mean(axis=0)
        np.testing.assert_allclose(body.shoulders, shoulders)
        np.testing.assert_allclose(body.hips, hips)
        np.testing.assert_allclose(body.down, (hips - shoulders) / np.hypot(*(hips - shoulders)), atol=1e-12)
        assert body.torso >= np.hypot(*(hips - shoulders)) - 1e-9


def test_labels_alone_give_nearly_the_same_measures() -> None:
    for person in people(12, 31):
        known, seen = body_in(person.labels, person.keypoints), body_in(person.labels, None)
        assert abs(seen.hips[1] - known.hips[1]) < 0.2 * known.torso
        assert abs(seen.shoulders[1] - known.shoulders[1]) < 0.5 * known.torso
        assert np.isnan(seen.joints).all() and list(seen.down) == [0, 1]


def test_one_hip_is_enough_and_does_not_tilt_the_body() -> None:
    person = people(1, 32)[0]
    body = body_in(person.labels, person.without(R_HIP).keypoints)
    np.testing.assert_allclose(body.hips, person.keypoints[L_HIP])
    assert list(body.down) == [0, 1] and body.has(L_HIP) and not body.has(R_HIP, L_HIP)


def test_thighs_tell_the_torso_of_a_person_without_shoulders() -> None:
    person = people(1, 33)[0]
    known = body_in(person.labels, person.keypoints)
    legs = body_in(person.labels, person.without(*range(8)).keypoints)
    assert abs(legs.torso / known.torso - 1) < 0.25
    assert abs(legs.shoulders[1] - known.shoulders[1]) < 0.3 * known.torso


def test_key_points_on_one_spot_do_not_shrink_the_body() -> None:
    person = people(1, 34)[0]
    body = body_in(person.labels, np.full((18, 2), 200.0))
    assert body.torso == body_in(person.labels, None).torso > MIN_TORSO
