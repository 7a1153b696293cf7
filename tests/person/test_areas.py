import numpy as np
import pytest

from fashion_rag.person.areas import beyond, disc, far_end, filled_rows, grown, hull, line

SHAPE = (40, 30)


def point(x: float, y: float) -> np.ndarray:
    return np.array([x, y], dtype=np.float64)


def rows_and_columns(area: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(area)
    return rows.min(), rows.max(), columns.min(), columns.max()


def test_a_line_is_round_at_its_start_and_straight_at_its_end() -> None:
    area = line(SHAPE, point(15, 10), point(15, 30), 4)
    assert rows_and_columns(area) == (6, 30, 11, 19)
    assert area[6].sum() == 1 and area[30].sum() == 9
    assert rows_and_columns(line(SHAPE, point(15, 10), point(15, 30), 4, tail=3))[1] == 33


def test_a_line_may_become_wider() -> None:
    area = line(SHAPE, point(15, 0), point(15, 20), 2, 12)
    assert [int(area[row].sum()) for row in (0, 10, 20)] == [5, 15, 25]


def test_a_line_without_length_is_a_disc() -> None:
    rows, columns = np.indices(SHAPE)
    expected = np.hypot(rows - 8, columns - 12) <= 5
    np.testing.assert_array_equal(disc(SHAPE, point(12, 8), 5), expected)


@pytest.mark.parametrize("far", [1e3, 1e9])
def test_what_lies_outside_the_picture_is_left_out(far: float) -> None:
    assert not disc(SHAPE, point(far, -far), 5).any()
    assert line(SHAPE, point(-far, 20), point(far, 20), 2)[18:23].all()


def test_a_hull_holds_what_is_between_its_points_in_any_order() -> None:
    corners = [point(5, 5), point(20, 5), point(5, 30), point(20, 30)]
    for order in ([0, 1, 2, 3], [0, 3, 1, 2], [2, 0, 3, 1]):
        area = hull(SHAPE, [corners[number] for number in order])
        assert rows_and_columns(area) == (5, 30, 5, 20) and area.sum() == 26 * 16


def test_beyond_is_a_half_plane() -> None:
    area = beyond(SHAPE, point(0, 10), point(0, 1), by=5)
    assert area[15:].all() and not area[:15].any()


def test_grown_areas_reach_the_corners() -> None:
    area = np.zeros(SHAPE, bool)
    area[10, 10] = area[39, 29] = True
    larger = grown(area, 3)
    assert larger[7:14, 7:14].all() and larger[36:, 26:].all() and larger.sum() == 49 + 16


def test_rows_are_filled_from_their_first_pixel_to_their_last() -> None:
    area = np.zeros(SHAPE, bool)
    area[5, [3, 9, 20]] = area[7, 4] = True
    filled = filled_rows(area)
    assert filled[5, 3:21].all() and filled[7, 4] and filled.sum() == 18 + 1


def test_the_far_end_of_a_bent_area_is_found_along_it() -> None:
    area = np.zeros(SHAPE, bool)
    area[5:30, 10:13] = area[28:30, 10:25] = area[8:30, 23:26] = True  # a U that starts and ends at the top
    end = far_end(area, point(11, 0), 5)
    assert end[8:12, 23:26].all() and not end[:, :20].any() and not end[20:].any()
    assert (far_end(area, point(11, 0), 1000) == area).all()
    assert not far_end(np.zeros(SHAPE, bool), point(0, 0), 5).any()
