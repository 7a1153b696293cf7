import re
from pathlib import Path

import pytest

from fashion_rag import artifacts
from fashion_rag.artifacts import MANIFEST_FILE, read_config, wait_for, written_aside
from fashion_rag.errors import ArtifactError


def write_version(folder: Path, text: str) -> None:
    with written_aside(folder) as new:
        (new / MANIFEST_FILE).write_text(text)


def test_a_folder_appears_whole_and_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "thing"
    write_version(folder, "one")
    (folder / "leftover").touch()
    write_version(folder, "two")
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [(MANIFEST_FILE, "two")]
    assert [path.name for path in folder.parent.iterdir()] == ["thing"]


def test_a_failed_write_leaves_the_earlier_version(tmp_path: Path) -> None:
    folder = tmp_path / "thing"
    write_version(folder, "one")
    with pytest.raises(RuntimeError), written_aside(folder) as new:
        (new / MANIFEST_FILE).write_text("two")
        raise RuntimeError
    assert (folder / MANIFEST_FILE).read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(ArtifactError, match=re.escape(f"{tmp_path}: exists and has no {MANIFEST_FILE}")):
        write_version(tmp_path, "one")
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_version(tmp_path / "empty", "one")
    assert (tmp_path / "empty" / MANIFEST_FILE).read_text() == "one"


@pytest.mark.parametrize("content", ["", "{", "[1]", '"text"'])
def test_a_damaged_configuration_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ArtifactError, match=re.escape(str(path))):
        read_config(path)


def test_waiting_ends_when_nothing_is_missing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "LOOK_EVERY_S", 0.01)
    answers = iter([["a", "b"], ["b"], []])
    wait_for(lambda: next(answers), 60)
    assert next(answers, None) is None
    assert [record.getMessage() for record in caplog.records] == ["waiting, at most 60 s in all, for a, b"]


def test_waiting_ends_after_its_time() -> None:
    wait_for(lambda: ["a"], 0.02)
    wait_for(lambda: ["a"], 0)
