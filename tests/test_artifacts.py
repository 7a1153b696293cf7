import re
from pathlib import Path

import pytest
import torch
from torch import nn

from fashion_rag import artifacts
from fashion_rag.artifacts import (
    MANIFEST_FILE,
    load_strict,
    read_config,
    read_state,
    wait_for,
    write_state,
    written_aside,
)
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


@pytest.mark.parametrize("content", [None, b"", b"\x08\0\0\0\0\0\0\0garbage!"])
def test_a_damaged_weights_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=re.escape(str(path))):
        read_state(path)


def test_weights_are_stored_at_the_asked_precision_and_indices_as_they_are(tmp_path: Path) -> None:
    state = {"weight": torch.tensor([[1.0, 2.0]]).T, "index": torch.tensor([70000])}
    write_state(tmp_path / "x.safetensors", state, torch.float16)
    stored = read_state(tmp_path / "x.safetensors")
    assert stored["weight"].dtype == torch.float16 and stored["weight"].tolist() == [[1.0], [2.0]]
    assert stored["index"].dtype == torch.int64 and stored["index"].tolist() == [70000]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"bias": None}, "bias is missing, expected [2]"),
        ({"scale": torch.zeros(7)}, "scale [7] is unexpected"),
        ({"weight": torch.zeros(3, 2)}, "weight is [3, 2], expected [2, 3]"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_not_loaded(change: dict[str, torch.Tensor | None], fault: str) -> None:
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    state = {"weight": torch.ones(2, 3), "bias": torch.ones(2)} | change
    with pytest.raises(ArtifactError, match=re.escape(f"some.file: does not fit its configuration: {fault}")):
        load_strict(module, {key: tensor for key, tensor in state.items() if tensor is not None}, Path("some.file"))
    assert torch.equal(module.weight, before)


def test_a_long_list_of_faults_is_cut() -> None:
    state = {f"layer{index}": torch.zeros(1) for index in range(20)}
    with pytest.raises(ArtifactError, match=r"; and 18 more$"):
        load_strict(nn.Linear(3, 2), state, Path("some.file"))


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
