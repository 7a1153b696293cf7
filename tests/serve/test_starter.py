"""Tests the process of a start: its tasks' outcomes come back, and it ends with the block."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fashion_rag.errors import ArtifactError, FashionRAGError
from serve import starter as serve_starter
from serve.config import ServeConfig
from serve.starter import AUTH_MODE, Starter


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.slow
def test_files_that_cannot_be_served_are_named_and_the_process_ends(
    tiny_bundle: Path, tiny_catalogue: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    with Starter() as starter:
        assert starter._process.pid is not None and starter._process.pid != os.getpid()
        with pytest.raises(ArtifactError, match="no-such-bundle"):
            starter.do("check", ServeConfig(str(tmp_path / "no-such-bundle"), str(tiny_catalogue)), say=said.append)
        # An error ends the task only.
        good = ServeConfig(str(tiny_bundle), str(tiny_catalogue), backend="onnx", compiled=str(onnx_folder))
        assert starter.do("check", good, say=said.append) is None
        with pytest.raises(ArtifactError, match="no-such-catalogue"):
            starter.do("check", ServeConfig(str(tiny_bundle), str(tmp_path / "no-such-catalogue")), say=said.append)
        drawn = starter.do("draw_catalogue", tmp_path / "world", tiny_bundle, say=said.append)
        assert (drawn / "current").exists() or any(drawn.iterdir())
        pid = starter._process.pid
    assert said == ["a catalogue to be drawn"]
    assert not is_running(pid)


SCRIPT = """
import os
import sys
from serve.starter import Starter

if __name__ == "__main__":
    with Starter():
        input()
    print("parent", os.environ.get("RAY_AUTH_MODE"))
else:
    print("child", os.environ.get("RAY_AUTH_MODE"), flush=True)
"""


def test_the_main_module_may_import_ray_in_the_process_too(tmp_path: Path) -> None:
    # Ray reads the mode when it is imported, and a spawned process runs the main module first.
    script = tmp_path / "main.py"
    script.write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if name != AUTH_MODE}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, script], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "child token\n"
    assert process.communicate("\n")[0] == "parent None\n"


def test_the_end_of_the_process_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_starter, "_work", sys.exit)
    for begins in (False, True):
        with Starter() as starter, pytest.raises(FashionRAGError, match="has ended with exit code"):
            if begins:
                starter.begin("check")
            starter.result(lambda awaited: None)
