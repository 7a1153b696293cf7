import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from export.engines import EngineKey, get_or_build, read_engine, write_whole
from fashion_rag.errors import ArtifactError
from tests.waiting import PATIENCE_S, wait_for

ROOT = Path(__file__).parents[2]
KEY = EngineKey(
    module="unet",
    precision="float16",
    onnx_sha256="0" * 64,
    rows=(1, 2, 4),
    inputs={"sample": (27, 16, 12)},
    outputs={"noise_pred": (4, 16, 12)},
    flavour="tensorrt_rtx",
    version="1.7.1.116",
    architecture="portable",
)
OTHERS = {
    "module": "vae_decoder",
    "precision": "float32",
    "onnx_sha256": "1" * 64,
    "rows": (1, 2, 4, 8),
    "inputs": {"sample": (27, 64, 48)},
    "outputs": {"noise_pred": (4, 64, 48)},
    "flavour": "tensorrt",
    "version": "1.7.1.117",
    "architecture": "9.0",
}
ENGINE = b"an engine of some size" * 100
# A builder in a process of its own. It prints a line when it builds, and goes on when it is allowed to.
BUILDER = """
import sys, time
from pathlib import Path
from export.engines import get_or_build
from tests.export.test_engines import KEY, ENGINE

folder, name = Path(sys.argv[1]), sys.argv[2]

def build():
    (folder / f"{name}.builds").touch()
    for _ in range(30_000):
        if (folder / "go").exists():
            return ENGINE
        time.sleep(0.01)
    raise TimeoutError("never told to go on")

print(get_or_build(folder / "engines", KEY, build))
"""


def not_wanted() -> bytes:
    raise AssertionError("built although a sound engine is there")


@pytest.fixture
def start_builder(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Return a function that starts a builder of some name in `tmp_path`; all builders end with the test."""
    with ExitStack() as stack:

        def start(name: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-c", BUILDER, str(tmp_path), name]
            pipe = subprocess.PIPE
            builder = stack.enter_context(subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True))
            stack.callback(builder.kill)
            return builder

        yield start


@pytest.fixture
def built(tmp_path: Path) -> Path:
    return get_or_build(tmp_path, KEY, lambda: ENGINE)


def test_an_engine_is_built_once(tmp_path: Path) -> None:
    path = get_or_build(tmp_path / "new" / "folder", KEY, lambda: memoryview(ENGINE))
    assert get_or_build(tmp_path / "new" / "folder", KEY, not_wanted) == path
    assert read_engine(path, KEY) == ENGINE


def test_name_and_manifest_tell_what_an_engine_is_of(built: Path) -> None:
    assert built.name.startswith("unet-float16-rows1.2.4-tensorrt_rtx-1.7.1.116-portable-")
    manifest = json.loads(built.with_name(f"{built.name}.json").read_text())
    assert manifest.items() >= KEY.as_json().items()
    assert manifest["size_bytes"] == len(ENGINE)


@pytest.mark.parametrize("field", OTHERS)
def test_another_key_is_another_engine(built: Path, field: str) -> None:
    changed = replace(KEY, **{field: OTHERS[field]})
    assert get_or_build(built.parent, changed, lambda: b"other") != built
    with pytest.raises(ArtifactError, match=f"another engine: {field} is .* must be"):
        read_engine(built, changed)


def test_an_engine_under_a_foreign_name_is_refused_and_replaced(built: Path) -> None:
    changed = replace(KEY, onnx_sha256="1" * 64)
    taken = built.with_name(changed.file_name)
    built.rename(taken)
    built.with_name(f"{built.name}.json").rename(f"{taken}.json")
    with pytest.raises(ArtifactError, match="onnx_sha256 is '0000"):
        read_engine(taken, changed)
    assert read_engine(get_or_build(built.parent, changed, lambda: b"other"), changed) == b"other"


def cut(path: Path) -> None:
    path.write_bytes(ENGINE[:-1])


def change(path: Path) -> None:
    path.write_bytes(ENGINE[:-1] + b"!")


def remove(path: Path) -> None:
    path.unlink()


def remove_manifest(path: Path) -> None:
    path.with_name(f"{path.name}.json").unlink()


def cut_manifest(path: Path) -> None:
    manifest = path.with_name(f"{path.name}.json")
    manifest.write_text(manifest.read_text()[:-10])


def empty_manifest(path: Path) -> None:
    path.with_name(f"{path.name}.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, f"{len(ENGINE) - 1} bytes, must be {len(ENGINE)}"),
        (change, "SHA-256 differs"),
        (remove, "no such engine"),
        (remove_manifest, "not a readable JSON file"),
        (cut_manifest, "not a readable JSON file"),
        (empty_manifest, "module is None, must be 'unet'"),
    ],
)
def test_a_damaged_engine_is_refused_by_its_reason_and_built_again(
    built: Path, damage: Callable[[Path], None], reason: str
) -> None:
    damage(built)
    with pytest.raises(ArtifactError, match=reason) as refused:
        read_engine(built, KEY)
    assert built.name in str(refused.value)
    assert get_or_build(built.parent, KEY, lambda: ENGINE) == built
    assert read_engine(built, KEY) == ENGINE


def test_a_second_build_says_why(built: Path, caplog: pytest.LogCaptureFixture) -> None:
    cut(built)
    get_or_build(built.parent, KEY, lambda: ENGINE)
    assert f"must be {len(ENGINE)}; building it again" in caplog.text


def test_a_build_that_fails_leaves_nothing_to_run(tmp_path: Path) -> None:
    def fail() -> bytes:
        raise ArtifactError("no such layer")

    with pytest.raises(ArtifactError, match="no such layer"):
        get_or_build(tmp_path, KEY, fail)
    with pytest.raises(ArtifactError, match="no such engine"):
        read_engine(tmp_path / KEY.file_name, KEY)
    assert get_or_build(tmp_path, KEY, lambda: ENGINE)


def test_a_write_that_fails_half_way_is_not_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "fsync", full)
        get_or_build(tmp_path, KEY, lambda: ENGINE)
    with pytest.raises(ArtifactError, match="no such engine"):
        read_engine(tmp_path / KEY.file_name, KEY)
    assert read_engine(get_or_build(tmp_path, KEY, lambda: ENGINE), KEY) == ENGINE


def test_an_engine_whose_manifest_was_not_written_is_built_again(tmp_path: Path) -> None:
    write_whole(tmp_path / KEY.file_name, ENGINE)
    assert read_engine(get_or_build(tmp_path, KEY, lambda: b"again"), KEY) == b"again"


def test_a_file_is_seen_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")
    seen: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(path.read_bytes()))
    with path.open("rb") as reader:
        write_whole(path, b"new and longer")
        assert reader.read() == b"old"
    # The first call writes the content to disk, and the second one the name.
    assert seen == [b"old", b"new and longer"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_of_several_builders_one_builds_and_a_dead_one_is_replaced(
    tmp_path: Path, start_builder: Callable[[str], subprocess.Popen[str]]
) -> None:
    first = start_builder("first")
    wait_for((tmp_path / "first.builds").exists)
    waiting = [start_builder(name) for name in ("second", "third")]
    for builder in waiting:
        assert builder.stderr and "another process is at work here; waiting for it" in builder.stderr.readline()
    first.kill()
    first.wait()
    wait_for(lambda: len(list(tmp_path.glob("*.builds"))) == 2)
    (tmp_path / "go").touch()
    path = tmp_path / "engines" / KEY.file_name
    for builder in waiting:
        output, errors = builder.communicate(timeout=PATIENCE_S)
        assert (output.strip(), builder.returncode) == (str(path), 0), errors
    # One of the two built the engine after the first had died; the other read it.
    assert len(list(tmp_path.glob("*.builds"))) == 2
    assert read_engine(path, KEY) == ENGINE
