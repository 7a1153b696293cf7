import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fashion_rag.artifacts import MANIFEST_FILE
from fashion_rag.atomic_files import OLD, scratch_beside, write_whole, written_aside
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


WRITER = """
import sys, time
from pathlib import Path
from fashion_rag.atomic_files import written_aside
with written_aside(Path(sys.argv[1])) as new:
    (new / "manifest.json").write_text("half done")
    print("writing", flush=True)
    time.sleep(600)
"""


@contextmanager
def writing(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start another process that is writing `folder`; it is killed at the end of the block at the latest."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and process.stdout.readline() == "writing\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("next_name", ["thing", "other"])
def test_what_a_killed_writer_left_is_removed_by_the_next(
    next_name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_version(tmp_path / "thing", "one")
    with writing(tmp_path / "thing") as process:
        process.kill()
        process.wait()
        (left,) = [path for path in tmp_path.iterdir() if path.name != "thing"]
        write_version(tmp_path / next_name, "two")
    assert {path.name for path in tmp_path.iterdir()} == {"thing", next_name}
    assert (tmp_path / next_name / MANIFEST_FILE).read_text() == "two"
    (message,) = caplog.messages
    assert message.startswith(f"{left}: removed ")


def test_what_is_still_being_written_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with writing(tmp_path / "thing"):
        before = set(tmp_path.iterdir())
        write_version(tmp_path / "thing", "mine")
        assert set(tmp_path.iterdir()) == before | {tmp_path / "thing"}
    assert caplog.messages == []


def test_hidden_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".thing-abcdefgh.partial").mkdir()
    write_version(tmp_path / "thing", "one")
    assert (tmp_path / ".thing-abcdefgh.partial").exists()


def test_a_finished_folder_whose_writer_was_killed_while_it_changed_places_is_put_there(tmp_path: Path) -> None:
    folder = tmp_path / "thing"
    write_version(folder, "one")
    with writing(folder) as process:
        (scratch,) = [path for path in tmp_path.iterdir() if path != folder]
        folder.rename(scratch / OLD)
        process.kill()
        process.wait()
    write_version(tmp_path / "other", "two")
    assert (folder / MANIFEST_FILE).read_text() == "half done"
    assert not scratch.exists()


def test_a_scratch_folder_is_removed_whatever_happens(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch_beside(tmp_path / "thing") as scratch:
        (scratch / "weights").write_bytes(b"x")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_whole(tmp_path / "file", b"old")
    monkeypatch.setattr("fashion_rag.atomic_files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "file", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]
