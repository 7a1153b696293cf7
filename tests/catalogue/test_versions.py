"""Versions are whole or not there, whoever is killed, damaged or in a hurry."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fashion_rag.catalogue import storage as root_module
from fashion_rag.catalogue import versions as module
from fashion_rag.catalogue.storage import Root, moment, stamp
from fashion_rag.catalogue.version_manifest import Version
from fashion_rag.catalogue.versions import (
    VersionConflict,
    activate,
    current,
    fetch,
    live,
    open_version,
    prune,
    publish,
    versions,
)
from fashion_rag.errors import ArtifactError

PROJECT = Path(__file__).parents[2]


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Root]:
    root = Root.at(tmp_path / "root" if request.param == "local" else f"memory://{tmp_path.name}")
    yield root
    root.remove("")


@pytest.fixture
def local(tmp_path: Path) -> Root:
    return Root.at(tmp_path / "root")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Root]:
    root = Root.at(f"memory://{tmp_path.name}")
    yield root
    root.remove("")


def folder_of(tmp_path: Path, text: str) -> Path:
    """Return a new folder with files of `text`, one of which is larger than what is written at once."""
    folder = tmp_path / f"made-{len(list(tmp_path.iterdir()))}"
    (folder / "index").mkdir(parents=True)
    (folder / "garments.parquet").write_text(text)
    (folder / "index" / "dresses.faiss").write_bytes(text.encode() * 20_000)
    return folder


def publish_text(
    root: Root, tmp_path: Path, text: str, parent: str | None = None, changes: Mapping[str, str] | None = None
) -> Version:
    folder = folder_of(tmp_path, text)
    return publish(
        root, folder, parent=parent, num_garments=len(text), encoders={"image": "abc"}, changes=changes or {}
    )


def text_of(root: Root, version: Version) -> str:
    return root.read(f"{version.folder}/garments.parquet", 10_000).decode()


def test_what_is_published_is_live(root: Root, tmp_path: Path) -> None:
    assert current(root) is None
    folder = folder_of(tmp_path, "one")
    first = publish(root, folder, parent=None, num_garments=3, encoders={"image": "abc"}, changes={"c": "garment"})
    shutil.rmtree(folder)
    assert current(root) == first.name
    assert live(root, digests=True) == first
    assert (first.num_garments, first.encoders, first.changes, first.parent) == (
        3,
        {"image": "abc"},
        {"c": "garment"},
        None,
    )
    assert {name: entry.size for name, entry in first.files.items()} == {
        "garments.parquet": 3,
        "index/dresses.faiss": 60_000,
    }
    second = publish_text(root, tmp_path, "two", first.name)
    assert live(root, digests=True) == second
    assert open_version(root, first.name, digests=True) == first
    assert versions(root) == [first, second]
    assert second.parent == first.name < second.name
    assert (text_of(root, first), text_of(root, second)) == ("one", "two")
    assert root.read("CURRENT", 100).decode() == f"{second.name}\n"


def test_equal_content_is_known_by_the_end_of_its_name(root: Root, tmp_path: Path) -> None:
    parent, ends = None, []
    for text in ("a", "b", "a"):
        parent = publish_text(root, tmp_path, text, parent).name
        ends.append(parent.partition("-")[2])
    assert ends[0] == ends[2] != ends[1]


def test_stamps_sort_by_time_and_follow_what_is_there() -> None:
    before = datetime.now(UTC)
    made = moment(f"{stamp()}-of-anything")
    assert made is not None
    assert before <= made <= datetime.now(UTC)
    assert stamp(["20991231T235959999999Z-ab", "20260101T000000000000Z", "foreign"]) == "21000101T000000000000Z"
    for name in ("", "20261301T000000000000Z", "20260101T0000000000Z--", "99991231T235959999999Z", "2026-01-01"):
        assert moment(name) is None


def test_nothing_published_is_said(root: Root) -> None:
    with pytest.raises(ArtifactError, match="CURRENT: does not exist; no version has been published"):
        live(root)


def damage(root: Root, version: Version, file_name: str, data: bytes) -> None:
    root.fs.pipe_file(root.full(f"{version.folder}/{file_name}"), data)


def manifest_of(root: Root, version: Version) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(root.read(f"{version.folder}/manifest.json", 10**6))
    return content


@pytest.mark.parametrize(
    ("file_name", "data", "message"),
    [
        ("garments.parquet", b"on", r"garments.parquet: has 2 bytes; the manifest says 3"),
        ("garments.parquet", None, r"garments.parquet: is missing; the manifest names it"),
        ("index/dresses.faiss", None, r"index/dresses.faiss: is missing"),
        ("index/more.faiss", b"more", r"index/more.faiss: is foreign; the manifest does not name it"),
        ("manifest.json", None, r"manifest.json: does not exist; the version is unfinished or was pruned"),
        ("manifest.json", b"", r"manifest.json: not the manifest of a version"),
        ("manifest.json", b"\xff", r"manifest.json: not the manifest of a version"),
        ("manifest.json", b"[]", r"manifest.json: not the manifest of a version"),
        ("manifest.json", b"[" * 100_000, r"manifest.json: not the manifest of a version"),
        ("manifest.json", b"{}", r"manifest.json: not the manifest of a version: KeyError\('format_version'\)"),
    ],
)
def test_a_partial_or_corrupt_version_is_refused(
    root: Root, tmp_path: Path, file_name: str, data: bytes | None, message: str
) -> None:
    version = publish_text(root, tmp_path, "one")
    if data is None:
        root.remove(f"{version.folder}/{file_name}")
    else:
        damage(root, version, file_name, data)
    with pytest.raises(ArtifactError, match=message):
        live(root)
    assert versions(root) == []


ENTRY = {"size": 1, "sha256": "0"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, r"format_version is 2 \(written by a newer release\?\); must be 1"),
        ({"format_version": "1"}, "format_version is '1'; must be 1"),
        ({"colour": "red"}, "not the manifest of a version"),
        ({"name": "20260101T000000000000Z-0123456789abcdef"}, "not the manifest of this version: name: got '2026"),
        ({"files": {}}, "files: got {}"),
        ({"files": []}, "not the manifest of a version"),
        ({"files": {"../../CURRENT": ENTRY}}, "files: got"),
        ({"files": {"/etc/passwd": ENTRY}}, "files: got"),
        ({"files": {"index/../../x": ENTRY}}, "files: got"),
        ({"files": {".hidden": ENTRY}}, "files: got"),
        ({"files": {"a\n": ENTRY}}, "files: got"),
        ({"files": {"manifest.json": ENTRY}}, "files: got"),
        ({"files": {"a": {"size": -1, "sha256": "0"}}}, "files: got"),
        ({"files": {"a": {"size": True, "sha256": "0"}}}, "files: got"),
        ({"files": {"a": {"size": 1, "sha256": 0}}}, "files: got"),
        ({"files": {"a": {"size": 1}}}, "not the manifest of a version"),
        ({"encoders": {"image": 1}}, "encoders: got"),
        ({"encoders": []}, "encoders: got"),
        ({"parent": 3}, "parent: got 3"),
        ({"parent": "../x"}, "parent: got"),
        ({"num_garments": -1}, "num_garments: got -1"),
        ({"num_garments": 1.5}, "num_garments: got 1.5"),
        ({"changes": ["c"]}, "changes: got"),
    ],
)
def test_a_foreign_manifest_is_refused(local: Root, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    version = publish_text(local, tmp_path, "one")
    damage(local, version, "manifest.json", json.dumps(manifest_of(local, version) | changes).encode())
    with pytest.raises(ArtifactError, match=rf"manifest.json: .*{message}"):
        live(local)


def test_a_changed_digit_is_found_when_digests_are_asked_for(root: Root, tmp_path: Path) -> None:
    version = publish_text(root, tmp_path, "one")
    damage(root, version, "garments.parquet", b"onE")
    assert live(root) == version
    with pytest.raises(ArtifactError, match=r"garments.parquet: is not the file of 3 bytes with the SHA-256"):
        live(root, digests=True)


def test_links_are_not_followed(local: Root, tmp_path: Path) -> None:
    version = publish_text(local, tmp_path, "one")
    folder = Path(local.full(version.folder))
    kept = tmp_path / "kept"
    for name in ("garments.parquet", "manifest.json", "index", ""):
        (folder / name).rename(kept)
        os.symlink(kept, folder / name)
        with pytest.raises(ArtifactError, match=r"link|is missing|is foreign"):
            live(local)
        (folder / name).unlink()
        kept.rename(folder / name)
    assert live(local) == version


@pytest.mark.parametrize("content", ["", "../../etc", "versions", "20260101T000000000000Z-0123456789abcdeg", "x" * 200])
def test_a_damaged_current_is_refused(root: Root, tmp_path: Path, content: str) -> None:
    first = publish_text(root, tmp_path, "one")
    root.write("CURRENT", content.encode())
    for call in (current, live, prune):
        with pytest.raises(ArtifactError, match="CURRENT: "):
            call(root)
    assert open_version(root, first.name) == first


@pytest.mark.parametrize("name", ["..", "../versions", "", "20260101T000000000000Z-0123456789abcdef"])
def test_a_version_that_is_not_there_is_refused(root: Root, tmp_path: Path, name: str) -> None:
    first = publish_text(root, tmp_path, "one")
    with pytest.raises(ArtifactError, match=r"must be the name of a version|does not exist"):
        open_version(root, name)
    with pytest.raises(ArtifactError, match=r"must be the name of a version|does not exist"):
        activate(root, name, replacing=first.name)
    assert live(root) == first


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "index") or (folder / "garments.parquet").unlink(), "has no files"),
        (lambda folder: os.symlink("/etc/passwd", folder / "passwd"), "passwd: must be a plain file or a folder"),
        (lambda folder: os.symlink("/etc", folder / "etc"), "etc: must be a plain file or a folder"),
        (lambda folder: os.mkfifo(folder / "pipe"), "pipe: must be a plain file or a folder"),
        (lambda folder: (folder / ".hidden").touch(), r"\.hidden: must match"),
        (lambda folder: (folder / "a b").touch(), "a b: must match"),
        (lambda folder: (folder / "manifest.json").touch(), "and not be manifest.json"),
    ],
)
def test_a_folder_that_cannot_be_a_version_is_refused(
    local: Root, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    folder = folder_of(tmp_path, "one")
    spoil(folder)
    with pytest.raises(ArtifactError, match=message):
        publish(local, folder, parent=None, num_garments=1, encoders={}, changes={})
    assert local.names("versions") == []


def test_a_manifest_that_could_not_be_read_is_never_written(root: Root, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "one")
    with pytest.raises(ArtifactError, match="num_garments: got -1"):
        publish(root, folder, parent=None, num_garments=-1, encoders={}, changes={})
    assert root.names("versions") == []


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Have `act` be called once, before the second file of a publish is copied."""
    copied: list[str] = []
    copy_in = Root.copy_in

    def copying(root: Root, name: str, chunks: Iterator[bytes]) -> None:
        copied.append(name)
        if len(copied) == 2:
            act()
        copy_in(root, name, chunks)

    monkeypatch.setattr(Root, "copy_in", copying)


def test_a_file_that_changes_while_it_is_copied_is_not_published(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish_text(root, tmp_path, "one")
    folder = folder_of(tmp_path, "two")
    meanwhile(monkeypatch, lambda: (folder / "index" / "dresses.faiss").write_bytes(b"TWO" * 20_000))
    with pytest.raises(ArtifactError, match=r"dresses.faiss: is not the file of 60000 bytes"):
        publish(root, folder, parent=first.name, num_garments=1, encoders={}, changes={})
    assert live(root, digests=True) == first
    assert versions(root) == [first]


@pytest.mark.parametrize("parent", [None, "20260101T000000000000Z-0123456789abcdef"])
def test_a_parent_that_is_not_live_is_refused_before_anything_is_copied(
    root: Root, tmp_path: Path, parent: str | None
) -> None:
    first = publish_text(root, tmp_path, "one")
    with pytest.raises(VersionConflict, match=f"CURRENT: names {first.name}; must still name {parent} for .*made-"):
        publish_text(root, tmp_path, "two", parent)
    assert versions(root) == [first]
    assert root.names("versions") == [first.name]


def test_the_slower_of_two_publishers_is_told_and_can_go_on(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish_text(root, tmp_path, "one")
    folder = folder_of(tmp_path, "slow")
    faster: list[Version] = []
    meanwhile(monkeypatch, lambda: faster.append(publish_text(root, tmp_path, "fast", first.name)))
    with pytest.raises(VersionConflict) as caught:
        publish(root, folder, parent=first.name, num_garments=1, encoders={}, changes={})
    assert live(root, digests=True) == faster[0]
    (slower,) = [version for version in versions(root) if version not in (first, faster[0])]
    assert f"for {slower.name} to follow" in str(caught.value)
    again = publish(root, folder, parent=faster[0].name, num_garments=1, encoders={}, changes={})
    assert live(root, digests=True) == again
    assert activate(root, slower.name, replacing=again.name) == slower
    assert live(root, digests=True) == slower


def test_an_older_version_is_made_live_again(root: Root, tmp_path: Path) -> None:
    first = publish_text(root, tmp_path, "one")
    second = publish_text(root, tmp_path, "two", first.name)
    with pytest.raises(VersionConflict, match=f"names {second.name}; must still name {first.name}"):
        activate(root, first.name, replacing=first.name)
    assert activate(root, first.name, replacing=second.name) == live(root) == first
    third = publish_text(root, tmp_path, "three", first.name)
    assert live(root) == third
    damage(root, second, "garments.parquet", b"")
    with pytest.raises(ArtifactError, match=r"has 0 bytes; the manifest says 3"):
        activate(root, second.name, replacing=third.name)
    assert live(root) == third


def test_a_version_holds_what_its_parent_held_while_it_is_in_the_log(root: Root, tmp_path: Path) -> None:
    for name in ("c1", "c2"):
        root.write(f"changes/{name}", b"change")
    first = publish_text(root, tmp_path, "one", changes={"c1": "a", "gone": "b"})
    second = publish_text(root, tmp_path, "two", first.name, {"c2": "a"})
    assert second.changes == {"c1": "a", "c2": "a"}


def test_a_damaged_version_can_be_replaced(root: Root, tmp_path: Path) -> None:
    first = publish_text(root, tmp_path, "one", changes={"c1": "a"})
    root.remove(f"{first.folder}/manifest.json")
    second = publish_text(root, tmp_path, "two", first.name)
    assert live(root, digests=True) == second


# Writers that are killed at every step. Each test runs in a process of its own, which forks for each step.


def steps_survived(act: Callable[[], object], check: Callable[[], None], reset: Callable[[], object]) -> int:
    """Kill `act` before each operation that changes a file, in turn, and return how many operations there are.

    reset: is called before each run. check: is called after each run.
    """
    # Unlike a power cut, a kill loses nothing that was written, so that waiting for the disk would only take time.
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    step = 0
    while True:
        step += 1
        reset()
        child = os.fork()
        if not child:
            try:
                kill_at(step)
                act()
            except BaseException:
                os._exit(1)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        check()
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0
            return step - 1


def kill_at(step: int) -> None:
    count = 0

    def tick() -> None:
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def trace(frame: Any, event: str, argument: object) -> Any:
        # A file is written in pieces, and the process is killed between these as well.
        if frame.f_code is not Root.copy_in.__code__:
            return None
        if event == "line":
            tick()
        return trace

    def audit(event: str, arguments: Any) -> None:
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            tick()

    sys.addaudithook(audit)
    sys.settrace(trace)


def run_here(module_name: str, name: str, *arguments: object) -> str:
    """Return what a function of a module prints in a process of its own."""
    script = f"from {module_name} import {name}; {name}(*{[str(argument) for argument in arguments]})"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PROJECT)
    assert run.returncode == 0, run.stderr
    return run.stdout


def kill_publishers(work: str) -> None:
    tmp_path, root_module.CHUNK_BYTES = Path(work), 9_000
    root = Root.at(tmp_path / "root")
    first = publish_text(root, tmp_path, "one")
    shutil.copytree(root.path, tmp_path / "kept")
    two, three = folder_of(tmp_path, "two"), folder_of(tmp_path, "three")
    seen = []

    def reset() -> None:
        shutil.rmtree(root.path)
        shutil.copytree(tmp_path / "kept", root.path)

    def check() -> None:
        survivor = live(root, digests=True)
        assert survivor == first or (survivor.parent, text_of(root, survivor)) == (first.name, "two")
        seen.append(text_of(root, survivor))
        third = publish(root, three, parent=survivor.name, num_garments=1, encoders={}, changes={})
        assert live(root, digests=True) == third
        prune(root, keep=1, grace_s=0)
        assert versions(root) == [third]
        assert sorted(root.names("")) in (
            sorted([".aside", ".lock", "CURRENT", "retired", "versions"]),
            sorted([".aside", ".lock", "CURRENT", "versions"]),
        )
        left = {path.name for path in Path(root.path).rglob("*") if path.is_file()}
        assert left == {".lock", "CURRENT", "manifest.json", "garments.parquet", "dresses.faiss"}

    steps = steps_survived(
        lambda: publish(root, two, parent=first.name, num_garments=1, encoders={}, changes={}), check, reset
    )
    # Once the new version is live, it stays live.
    assert seen == sorted(seen)
    print(steps, *set(seen))


def test_a_publish_killed_at_any_step_leaves_a_whole_version(tmp_path: Path) -> None:
    steps, *seen = run_here(__name__, "kill_publishers", tmp_path).split()
    assert int(steps) > 40
    assert set(seen) == {"one", "two"}


def kill_pruners(work: str) -> None:
    tmp_path = Path(work)
    root = Root.at(tmp_path / "root")
    first = publish_text(root, tmp_path, "one")
    second = publish_text(root, tmp_path, "two", first.name)
    shutil.copytree(root.path, tmp_path / "kept")

    def reset() -> None:
        shutil.rmtree(root.path)
        shutil.copytree(tmp_path / "kept", root.path)

    def check() -> None:
        assert live(root, digests=True) == second
        with suppress(ArtifactError):
            assert open_version(root, first.name, digests=True) == first
        prune(root, keep=0, grace_s=0)
        assert root.names("versions") == [second.name]

    print(steps_survived(lambda: prune(root, keep=0, grace_s=0), check, reset))


def test_a_prune_killed_at_any_step_leaves_no_half_version(tmp_path: Path) -> None:
    assert int(run_here(__name__, "kill_pruners", tmp_path)) > 5


def kill_fetchers(work: str) -> None:
    tmp_path, root_module.CHUNK_BYTES = Path(work), 9_000
    root, cache = Root.at("memory://fetched"), tmp_path / "cache"
    version = publish_text(root, tmp_path, "one")

    def reset() -> None:
        shutil.rmtree(cache, ignore_errors=True)

    def check() -> None:
        assert versions(Root.at(cache)) in ([], [version])
        folder = fetch(root, version, cache)
        assert (folder / "index" / "dresses.faiss").read_bytes() == b"one" * 20_000

    print(steps_survived(lambda: fetch(root, version, cache), check, reset))


def test_a_fetch_killed_at_any_step_is_made_good(tmp_path: Path) -> None:
    assert int(run_here(__name__, "kill_fetchers", tmp_path)) > 40


# Two writers at the same time.


def add_lines(root: Root, tmp_path: Path, name: str, count: int) -> None:
    """Publish `count` versions, each with its parent's text and one word more, and try again after a conflict."""
    tmp_path.mkdir()
    for number in range(count):
        while True:
            parent = live(root)
            with suppress(VersionConflict):
                publish_text(root, tmp_path, f"{text_of(root, parent)}{name}{number} ", parent.name)
                break


def add_lines_in_process(path: str, work: str, name: str) -> None:
    add_lines(Root.at(path), Path(work), name, count=8)


def test_two_processes_lose_none_of_each_others_versions(local: Root, tmp_path: Path) -> None:
    publish_text(local, tmp_path, "start ")
    script = f"import sys; from {__name__} import add_lines_in_process as run; run(*sys.argv[1:])"
    arguments = [[local.path, str(tmp_path / name), name] for name in ("a", "b")]
    runs = [subprocess.Popen([sys.executable, "-c", script, *argument], cwd=PROJECT) for argument in arguments]
    assert [run.wait() for run in runs] == [0, 0]
    lines = text_of(local, live(local, digests=True)).split()
    assert sorted(lines[1:]) == sorted(f"{name}{number}" for name in "ab" for number in range(8))
    assert [line for line in lines if line[0] == "a"] == [f"a{number}" for number in range(8)]


def test_two_threads_on_a_store_lose_none_of_each_others_versions(
    memory: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_text(memory, tmp_path, "start ")
    uniform = root_module.random.uniform
    monkeypatch.setattr(root_module.random, "uniform", lambda low, high: uniform(0, 0.01))
    threads = [
        threading.Thread(target=add_lines, args=(memory, tmp_path / name, name, 8), daemon=True) for name in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    lines = text_of(memory, live(memory, digests=True)).split()
    assert sorted(lines[1:]) == sorted(f"{name}{number}" for name in "ab" for number in range(8))
    assert memory.names("locks") == []


def test_a_local_lock_is_held_by_one(local: Root) -> None:
    inside: list[str] = []

    def enter() -> None:
        with local.locked():
            inside.append("other")

    with local.locked():
        waiting = threading.Thread(target=enter)
        waiting.start()
        waiting.join(0.2)
        inside.append("first")
    waiting.join()
    assert inside == ["first", "other"]


def ticket(end: datetime) -> str:
    return f"locks/{end:%Y%m%dT%H%M%S%f}Z-0123456789abcdef"


def test_the_lock_of_a_dead_holder_lapses_in_a_store(memory: Root, tmp_path: Path) -> None:
    memory.write(ticket(datetime.now(UTC) - timedelta(seconds=1)), b"lock")
    version = publish_text(memory, tmp_path, "one")
    assert live(memory) == version
    assert memory.names("locks") == []


def test_a_lock_that_is_held_keeps_others_out_of_a_store(
    memory: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.write(held := ticket(datetime.now(UTC) + timedelta(hours=1)), b"lock")
    monkeypatch.setattr(root_module, "LEASE_S", 0.1)
    with pytest.raises(ArtifactError, match=r"locks: others have held the lock for 0\.2 s"):
        publish_text(memory, tmp_path, "one")
    assert current(memory) is None
    assert [f"locks/{name}" for name in memory.names("locks")] == [held]


def test_a_holder_that_took_too_long_changes_nothing(
    memory: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish_text(memory, tmp_path, "one")
    monkeypatch.setattr(root_module, "LEASE_S", 1e-9)
    for act in (
        lambda: publish_text(memory, tmp_path, "two", first.name),
        lambda: activate(memory, first.name, replacing=first.name),
    ):
        monkeypatch.setattr(Root, "_only_ticket", lambda root: ("locks/none", 0.0))
        with pytest.raises(ArtifactError, match="under the lock; try again"):
            act()
    assert live(memory) == first
    assert versions(memory) == [first]


# Fetching.


def test_a_local_version_is_read_where_it_lies(local: Root, tmp_path: Path) -> None:
    version = publish_text(local, tmp_path, "one")
    assert fetch(local, version, tmp_path / "cache") == Path(local.full(version.folder))
    assert not (tmp_path / "cache").exists()
    damage(local, version, "garments.parquet", b"")
    with pytest.raises(ArtifactError, match="has 0 bytes"):
        fetch(local, version, tmp_path / "cache")


def test_a_version_in_a_store_is_fetched_once(memory: Root, tmp_path: Path) -> None:
    version = publish_text(memory, tmp_path, "one")
    folder = fetch(memory, version, tmp_path / "cache")
    assert (folder / "garments.parquet").read_text() == "one"
    assert (folder / "index" / "dresses.faiss").read_bytes() == b"one" * 20_000
    memory.remove("versions")
    assert fetch(memory, version, tmp_path / "cache") == folder
    assert live_in_cache(tmp_path) == [version]


def live_in_cache(tmp_path: Path) -> list[Version]:
    return versions(Root.at(tmp_path / "cache"))


def test_a_damaged_download_is_refused_whole(memory: Root, tmp_path: Path) -> None:
    version = publish_text(memory, tmp_path, "one")
    for data in (b"One" * 20_000, b"one" * 20_001, b"one"):
        damage(memory, version, "index/dresses.faiss", data)
        with pytest.raises(ArtifactError, match=r"dresses.faiss: is not the file of 60000 bytes"):
            fetch(memory, version, tmp_path / "cache")
        assert live_in_cache(tmp_path) == []
    memory.remove(f"{version.folder}/index/dresses.faiss")
    with pytest.raises(ArtifactError, match=r"dresses.faiss: cannot be read"):
        fetch(memory, version, tmp_path / "cache")
    damage(memory, version, "index/dresses.faiss", b"one" * 20_000)
    assert (fetch(memory, version, tmp_path / "cache") / "garments.parquet").read_text() == "one"


def test_a_damaged_cache_is_fetched_again(memory: Root, tmp_path: Path) -> None:
    version = publish_text(memory, tmp_path, "one")
    folder = fetch(memory, version, tmp_path / "cache")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("kept")
    (folder / "garments.parquet").unlink()
    (folder / "garments.parquet").symlink_to(elsewhere)
    (folder / "foreign").touch()
    assert fetch(memory, version, tmp_path / "cache") == folder
    assert live_in_cache(tmp_path) == [version]
    assert ((folder / "garments.parquet").read_text(), elsewhere.read_text()) == ("one", "kept")


def test_a_cache_is_pruned_like_a_root(memory: Root, tmp_path: Path) -> None:
    first = publish_text(memory, tmp_path, "one")
    second = publish_text(memory, tmp_path, "two", first.name)
    for version in (first, second):
        fetch(memory, version, tmp_path / "cache")
    assert prune(Root.at(tmp_path / "cache"), keep=1, grace_s=0) == [first.name]
    assert live_in_cache(tmp_path) == [second]


# Pruning.


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """Yield a function that moves the time on by so many seconds."""
    passed = timedelta()

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + passed

    def pass_time(seconds: float) -> None:
        nonlocal passed
        passed += timedelta(seconds=seconds)

    for patched in (module, root_module):
        monkeypatch.setattr(patched, "datetime", Clock)
    yield pass_time


def publish_each(root: Root, tmp_path: Path, texts: str) -> list[Version]:
    made: list[Version] = []
    for text in texts:
        made.append(publish_text(root, tmp_path, text, made[-1].name if made else None))
    return made


def test_old_versions_go_but_for_the_newest(root: Root, tmp_path: Path) -> None:
    made = publish_each(root, tmp_path, "abcde")
    assert prune(root, keep=2, grace_s=0) == [version.name for version in made[:3]]
    assert versions(root) == made[3:]
    assert root.names("versions") == [version.name for version in made[3:]]
    assert prune(root, keep=0, grace_s=0) == [made[3].name]
    assert prune(root, keep=9, grace_s=0) == []
    assert live(root, digests=True) == made[4]
    assert root.names("retired") == []


def test_the_live_version_stays_however_old(root: Root, tmp_path: Path) -> None:
    made = publish_each(root, tmp_path, "abc")
    activate(root, made[0].name, replacing=made[2].name)
    assert prune(root, keep=1, grace_s=0) == [made[1].name]
    assert versions(root) == [made[0], made[2]]


def test_a_version_stays_while_readers_may_be_on_it(root: Root, tmp_path: Path, clock: Callable[[float], None]) -> None:
    (first,) = publish_each(root, tmp_path, "a")
    clock(1000)
    second = publish_text(root, tmp_path, "b", first.name)
    clock(50)
    # The first version is old, but was live until just now.
    assert prune(root, keep=0, grace_s=100) == []
    clock(40)
    activate(root, first.name, replacing=second.name)
    clock(20)
    assert prune(root, keep=0, grace_s=100) == []
    clock(90)
    assert prune(root, keep=0, grace_s=100) == [second.name]
    assert versions(root) == [first]


def test_what_killed_writers_left_goes_after_the_grace(
    root: Root, tmp_path: Path, clock: Callable[[float], None]
) -> None:
    (version,) = publish_each(root, tmp_path, "a")
    unfinished = f"{stamp()}-0123456789abcdef"
    root.write(f"versions/{unfinished}/garments.parquet", b"half")
    root.write("versions/notes/by-hand.txt", b"not ours")
    root.write("versions/20260101T000000000000Z-by-hand/notes.txt", b"not ours")
    if root.is_local:
        Path(root.full(".aside/half")).write_bytes(b"half")
    assert prune(root) == []
    assert root.names(".aside") == (["half"] if root.is_local else [])
    clock(3700)
    assert prune(root) == [unfinished]
    assert root.names(".aside") == []
    assert root.names("versions") == ["20260101T000000000000Z-by-hand", version.name, "notes"]
    assert live(root, digests=True) == version


def test_a_damaged_version_does_not_count_as_kept(root: Root, tmp_path: Path) -> None:
    made = publish_each(root, tmp_path, "abcd")
    damage(root, made[2], "garments.parquet", b"")
    assert prune(root, keep=2, grace_s=0) == [made[0].name, made[2].name]
    assert versions(root) == [made[1], made[3]]


def test_a_pruned_link_is_removed_and_not_followed(local: Root, tmp_path: Path) -> None:
    made = publish_each(local, tmp_path, "ab")
    folder = Path(local.full(made[0].folder))
    folder.rename(tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", folder)
    (tmp_path / "elsewhere" / "index" / "link").symlink_to(tmp_path / "elsewhere")
    prune(local, keep=0, grace_s=0)
    assert local.names("versions") == [made[1].name]
    assert (tmp_path / "elsewhere" / "garments.parquet").is_file()


def test_an_upload_that_is_pruned_before_its_end_is_not_published(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = publish_each(root, tmp_path, "a")
    meanwhile(monkeypatch, lambda: prune(root, keep=0, grace_s=0))
    with pytest.raises(ArtifactError, match=r"garments.parquet: is missing"):
        publish_text(root, tmp_path, "b", first.name)
    assert live(root, digests=True) == first
