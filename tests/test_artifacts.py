import hashlib
import os
import re
from pathlib import Path

import pytest

from fashion_rag import artifacts
from fashion_rag.artifacts import read_config, sha256, wait_for
from fashion_rag.errors import ArtifactError


@pytest.mark.parametrize("content", ["", "{", "[1]", '"text"'])
def test_a_damaged_configuration_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ArtifactError, match=re.escape(str(path))):
        read_config(path)


def test_a_file_is_read_again_only_if_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: read.append(file.name) or digest(file, name))
    path, other = tmp_path / "weights", tmp_path / "others"
    path.write_bytes(b"old")
    os.utime(path, (0, 0))
    assert [sha256(path), sha256(path)] == [hashlib.sha256(b"old").hexdigest()] * 2
    assert len(read) == 1
    path.write_bytes(b"new")
    assert sha256(path) == hashlib.sha256(b"new").hexdigest()
    # So soon after it was written, a change might not show in its times.
    assert sha256(path) == hashlib.sha256(b"new").hexdigest()
    assert len(read) == 3
    other.write_bytes(b"won")
    other.replace(path)
    assert sha256(path) == hashlib.sha256(b"won").hexdigest()
    path.unlink()
    with pytest.raises(FileNotFoundError):
        sha256(path)


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
