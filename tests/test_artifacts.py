import re
from pathlib import Path

import pytest

from fashion_rag import artifacts
from fashion_rag.artifacts import read_config, wait_for
from fashion_rag.errors import ArtifactError


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
