import pytest

from fashion_rag.denoising.pace import CALLS, MAX_MEDIANS, Pace
from fashion_rag.denoising.rows import Rows


def pace_of(**seconds: list[float]) -> Pace:
    """Return the pace after calls of `rows_N` rows, given as rows_N=[...], or rows_N_M=[...] with shallow ones."""
    pace = Pace()
    for rows, times in seconds.items():
        for each in times:
            pace.record(Rows(*map(int, rows.removeprefix("rows_").split("_"))), each)
    return pace


def test_nothing_is_expected_while_nothing_is_known() -> None:
    assert Pace().step_time_s(Rows(4)) == 0


def test_a_call_takes_the_mean_of_those_of_as_many_rows() -> None:
    pace = pace_of(rows_2=[1.0, 3.0, 8.0], rows_4=[5.0])
    assert (pace.step_time_s(Rows(2)), pace.step_time_s(Rows(4))) == (4.0, 5.0)


def test_many_skewed_steps_take_so_many_times_the_expected_one() -> None:
    seconds = [1.0, 1.0, 1.0, 3.0] * (CALLS // 4)
    assert CALLS * pace_of(rows_2=seconds).step_time_s(Rows(2)) == sum(seconds)


def test_a_step_that_stalled_counts_as_a_few() -> None:
    pace = pace_of(rows_2=[1.0] * (CALLS - 1) + [1000.0])
    assert pace.step_time_s(Rows(2)) == (CALLS - 1 + MAX_MEDIANS) / CALLS


def test_only_the_last_calls_count() -> None:
    assert pace_of(rows_2=[9.0] * CALLS + [1.0] * CALLS).step_time_s(Rows(2)) == 1.0


@pytest.mark.parametrize(("num_rows", "seconds"), [(1, 3.0), (3, 5.0), (4, 5.0), (5, 6.25), (8, 10.0)])
def test_rows_never_seen_take_as_long_as_the_next_larger_or_grow_from_the_largest(
    num_rows: int, seconds: float
) -> None:
    assert pace_of(rows_4=[5.0], rows_2=[3.0]).step_time_s(Rows(num_rows)) == seconds


def test_of_what_is_forgotten_the_least_time_stays() -> None:
    pace = pace_of(rows_2=[3.0, *[9.0] * CALLS], rows_4=[8.0])
    assert pace.step_time_s(Rows(2)) == 8.0
    pace.forget()
    assert (pace.step_time_s(Rows(2)), pace.step_time_s(Rows(4))) == (3.0, 8.0)
    pace.record(Rows(2), 5.0)
    assert pace.step_time_s(Rows(2)) == 4.0


def test_old_figures_give_way_to_newer_ones_of_more_rows() -> None:
    pace = Pace()
    pace.record(Rows(2), 0.5)
    pace.record(Rows(8), 0.2)
    assert (pace.step_time_s(Rows(2)), pace.step_time_s(Rows(8))) == (0.2, 0.2)


def test_a_row_takes_what_it_takes_in_the_calls_that_serve_rows_best() -> None:
    assert Pace().row_time_s(Rows(1)) == 0
    pace = pace_of(rows_1=[3.0], rows_4=[2.0, 6.0, 4.0], rows_8=[16.0])
    assert pace.row_time_s(Rows(1)) == 1.0
    # As long as nothing is known of shallow rows, they count as deep ones.
    assert pace.row_time_s(Rows(1, 2)) == 3.0
    assert pace_of(rows_4=[4.0], rows_0_4=[1.0]).row_time_s(Rows(1, 2)) == 1.5


def test_a_step_of_both_kinds_takes_what_its_calls_take_until_it_is_seen() -> None:
    pace = pace_of(rows_4=[4.0], rows_0_4=[1.0])
    assert pace.step_time_s(Rows(2, 3)) == 5.0
    assert pace.step_time_s(Rows(0, 8)) == 2.0
    pace.record(Rows(2, 3), 4.5)
    assert (pace.step_time_s(Rows(2, 3)), pace.step_time_s(Rows(3, 3)), pace.step_time_s(Rows(2))) == (4.5, 5.0, 4.0)
    assert pace_of(rows_4=[4.0]).step_time_s(Rows(0, 2)) == 4.0
