"""`fashion-rag prepare` and `fashion-rag demo shop`: what they print, and their exit statuses."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fashion_rag.cli import app
from fashion_rag.data.dresscode import DressCode
from tests.preparation.knowing import KnowingReader


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def arguments(
    drawn_shop: Path, reader: KnowingReader, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[object]:
    """Return a whole call of the command, whose networks are those that know how the photos were drawn."""
    monkeypatch.setattr("fashion_rag.preparation.networks.networks_of", lambda bundle, device: reader.networks())
    shop = [drawn_shop / "photos", drawn_shop / "garments", drawn_shop / "pairs.csv"]
    return ["prepare", *shop, "--out", tmp_path / "data", "--bundle", tiny_bundle]


def test_prepare_says_what_it_has_made_and_when_there_was_nothing_to_do(
    arguments: list[object], tmp_path: Path
) -> None:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"{tmp_path / 'data'}: 12 pairs (1 test dresses, 1 test lower_body")
    assert line.endswith("24 pictures made, 0 kept, 0 removed; 0 rows skipped")
    assert "looking at rows: 1 of 12" in result.stderr
    again = run(*arguments)
    first, second = again.stdout.splitlines()
    assert first.endswith("0 pictures made, 24 kept, 0 removed; 0 rows skipped")
    assert second == f"{tmp_path / 'data'}: nothing has changed since the last run"


def test_rows_that_are_skipped_and_columns_that_are_passed_over_are_told(
    arguments: list[object], drawn_shop: Path, tmp_path: Path
) -> None:
    header, first, second, *_ = (drawn_shop / "pairs.csv").read_text().splitlines()
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(f"{header},price\n{first},12\n{second.replace(',train', ',later')},13\n")
    arguments[3] = pairs
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "columns that were passed over: price\n" in result.stderr
    assert "skipped row 3: split: got 'later'; must be empty or one of train, test\n" in result.stderr
    assert "1 pairs (1 train dresses); 2 pictures made" in result.stdout


def test_without_any_usable_row_the_exit_status_is_1(arguments: list[object], tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("photo,garment,caption\n")
    arguments[3] = pairs
    result = run(*arguments)
    assert result.exit_code == 1
    assert "no row could be prepared" in result.stderr and "skipped.jsonl" in result.stderr


def test_a_bundle_without_a_parser_is_refused(drawn_shop: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    shop = [drawn_shop / "photos", drawn_shop / "garments", drawn_shop / "pairs.csv"]
    result = run("prepare", *shop, "--out", tmp_path / "data", "--bundle", tiny_bundle)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: bundle: got ") and "parser" in result.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("place", "value", "option"),
    [
        (1, "nowhere", "photos"),
        (2, "nowhere", "garments"),
        (3, "nowhere", "pairs"),
        (5, "pairs.csv", "out"),
        (7, "nowhere", "bundle"),
    ],
)
def test_wrong_paths_are_found_at_once(
    arguments: list[object], drawn_shop: Path, place: int, value: str, option: str
) -> None:
    arguments[place] = drawn_shop / value
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {option}: got ")


@pytest.mark.parametrize(
    ("option", "value"),
    [("max-height", 63), ("max-height", 2049), ("test-share", 1.5), ("workers", -1), ("num-gpus", -1)],
)
def test_numbers_outside_their_range_are_found_at_once(arguments: list[object], option: str, value: float) -> None:
    result = run(*arguments, f"--{option}", value)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {option}: got ")


def test_demo_shop_draws_what_prepare_takes(tmp_path: Path) -> None:
    result = run("demo", "shop", tmp_path / "shop", "--num-pairs", 1)
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "shop" / "photos").iterdir())) == 3
    assert (tmp_path / "shop" / "pairs.csv").read_text().startswith("photo,garment,category,caption,split\n")


def test_the_data_set_is_one_for_train_and_evaluate(arguments: list[object], tmp_path: Path) -> None:
    assert run(*arguments).exit_code == 0
    assert len(DressCode(tmp_path / "data", "train")) == 9
    assert len(DressCode(tmp_path / "data", "test", "unpaired")) == 3
