"""The log of live changes: nothing is lost, and every reader sees the same order."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from fashion_rag.catalogue import storage as root_module
from fashion_rag.catalogue.changes import (
    Change,
    GarmentAdded,
    GarmentDeleted,
    append,
    clear,
    fold,
    pending,
    put_image,
    read_since,
)
from fashion_rag.catalogue.storage import Root
from fashion_rag.catalogue.table import GarmentRow
from fashion_rag.catalogue.version_manifest import Version
from fashion_rag.catalogue.versions import current, prune, publish
from fashion_rag.errors import InvalidRequest
from tests.catalogue.test_versions import PROJECT, run_here, steps_survived

ROW = GarmentRow("a", "dresses", "ein Kleid", "images/ab/x.jpg", "ab" * 32, ("ein Kleid",), {"colour": ("red",)})


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Root]:
    root = Root.at(tmp_path / "root" if request.param == "local" else f"memory://{tmp_path.name}")
    yield root
    root.remove("")


def added(garment_id: str = "a", caption: str = "") -> GarmentAdded:
    row = replace(ROW, id=garment_id, caption=caption)
    return GarmentAdded(row, np.ones(4, np.float32), np.ones((2, 3), np.float32), {"image": "abc"})


def publish_with(root: Root, tmp_path: Path, changes: dict[str, str]) -> Version:
    (tmp_path / "made").mkdir(exist_ok=True)
    (tmp_path / "made" / "file").write_text("content")
    return publish(
        root, tmp_path / "made", parent=current(root), num_garments=1, encoders={"image": "abc"}, changes=changes
    )


def version_holding(changes: dict[str, str]) -> Version:
    return Version("name", {}, {}, None, 0, changes)


def words(changes: dict[str, Change]) -> dict[str, str | None]:
    return {name: change.row.caption if isinstance(change, GarmentAdded) else None for name, change in changes.items()}


def test_changes_come_back_as_they_were(root: Root) -> None:
    vector = np.array([0.5, -1, 3e-30], np.float32)
    pseudo_words = np.arange(6, dtype=np.float32).reshape(2, 3)
    names = [
        append(root, GarmentAdded(ROW, vector, pseudo_words, {"image": "abc", "text": "def"})),
        append(root, GarmentDeleted("b")),
    ]
    new = read_since(root, set())
    assert list(new.changes) == names == sorted(names)
    assert new.refused == {}
    first, second = new.changes.values()
    assert isinstance(first, GarmentAdded)
    assert (first.row, first.encoders, first.garment_id) == (ROW, {"image": "abc", "text": "def"}, "a")
    assert first.vector.dtype == first.pseudo_words.dtype == np.float32
    np.testing.assert_array_equal(first.vector, vector)
    np.testing.assert_array_equal(first.pseudo_words, pseudo_words)
    assert second == GarmentDeleted("b")


def test_only_what_is_new_is_read(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_since(root, set()).changes == {}
    first = append(root, added("a"))
    read: list[str] = []
    whole = Root.read

    def reading(root: Root, name: str, max_bytes: int) -> bytes:
        read.append(name)
        return whole(root, name, max_bytes)

    monkeypatch.setattr(Root, "read", reading)
    second = append(root, GarmentDeleted("b"))
    assert list(read_since(root, {first}).changes) == [second]
    assert read == [f"changes/{second}"]
    assert read_since(root, {first, second}).changes == {}


def test_a_change_cleared_while_the_log_is_read_is_passed_over(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [append(root, GarmentDeleted(garment_id)) for garment_id in "ab"]
    listed = root.names("changes")
    root.remove(f"changes/{names[0]}")
    monkeypatch.setattr(Root, "names", lambda root, folder: listed)
    new = read_since(root, set())
    assert (list(new.changes), new.refused) == ([names[1]], {})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (GarmentDeleted("../a"), "id"),
        (GarmentDeleted(""), "id"),
        (added("a/b"), "id"),
        (replace(added(), row=replace(ROW, image="../../x")), "image"),
        (replace(added(), vector=np.ones(4)), "vector"),
        (replace(added(), vector=np.ones((1, 4), np.float32)), "vector"),
        (replace(added(), vector=np.array([], np.float32)), "vector"),
        (replace(added(), vector=np.array([1, np.nan], np.float32)), "vector"),
        (replace(added(), pseudo_words=np.ones(4, np.float32)), "pseudo_words"),
        (replace(added(), pseudo_words=np.full((2, 2), np.inf, np.float32)), "pseudo_words"),
        (replace(added(), pseudo_words=np.ones((2**12, 2**10), np.float32)), "change"),
        (replace(added(), encoders={"image": 3}), "encoders"),  # type: ignore[dict-item]
    ],
)
def test_a_change_that_breaks_a_rule_is_not_stored(root: Root, change: Change, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        append(root, change)
    assert caught.value.field == field
    assert root.names("changes") == []


def forged(root: Root, data: bytes) -> str:
    """Write a file with a name that fits its content, as a writer of changes would, and return the name."""
    name = f"20260101T000000000000Z-{hashlib.sha256(data).hexdigest()[:32]}"
    root.write(f"changes/{name}", data)
    return name


def foreign_files() -> list[bytes]:
    whole = save({"change": np.frombuffer(b'{"deleted": "a"}', np.uint8)})
    vectors = {"vector": np.ones(3, np.float32), "pseudo_words": np.ones((1, 2), np.float32)}

    def saying(content: Any, **arrays: np.ndarray) -> bytes:
        return save({"change": np.frombuffer(json.dumps(content).encode(), np.uint8), **arrays})

    record = {"added": {"id": "a"}, "encoders": {}}
    return [
        b"",
        whole[:-3],
        b"\x80\x04pickle",
        b"PK\x03\x04",
        save({"vector": np.ones(3, np.float32)}),
        save({"change": np.frombuffer(b"\xff no json", np.uint8)}),
        save({"change": np.frombuffer(b"[" * 100_000, np.uint8)}),
        saying([]),
        saying(7),
        saying({"deleted": "../a"}),
        saying({"deleted": 7}),
        saying({"deleted": "a", "more": 1}),
        saying(record, **vectors),
        saying({"added": None, "encoders": {}}, **vectors),
        saying({"encoders": {}}, **vectors),
        b"x" * (2**24 + 1),
    ]


@pytest.mark.parametrize("data", foreign_files())
def test_a_torn_or_foreign_file_is_reported_and_passed_over(root: Root, data: bytes) -> None:
    bad = forged(root, data)
    good = append(root, GarmentDeleted("a"))
    new = read_since(root, set())
    assert list(new.changes) == [good]
    assert list(new.refused) == [bad]
    assert new.refused[bad]
    assert read_since(root, {good, bad}).refused == {}


@pytest.mark.parametrize("spoil", [{"vector": np.array([np.nan], np.float32)}, {"vector": np.ones(3)}])
def test_vectors_that_break_a_rule_are_reported(root: Root, spoil: dict[str, np.ndarray]) -> None:
    name = append(root, added())
    bad = forged(root, save(load(root.read(f"changes/{name}", 10**6)) | spoil))
    assert list(read_since(root, set()).refused) == [bad]


def test_a_changed_bit_is_reported(root: Root) -> None:
    name = append(root, added())
    data = bytearray(root.read(f"changes/{name}", 10**6))
    data[-1] ^= 1
    root.write(f"changes/{name}", bytes(data))
    assert read_since(root, set()).refused == {name: f"{name}: has other content than its name says"}


@pytest.mark.parametrize("name", ["notes.txt", "20260101T000000000000Z-0", "99991231T235959999999Z-" + "0" * 32])
def test_a_name_of_something_else_is_reported(root: Root, name: str) -> None:
    root.write(f"changes/{name}", b"text")
    good = append(root, GarmentDeleted("a"))
    new = read_since(root, set())
    assert (list(new.changes), list(new.refused)) == ([good], [name])


# The order of changes.

OPERATIONS = st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=12)


def state_after(state: dict[str, Change], last: dict[str, Change]) -> dict[str, Change]:
    """Return the garments there are once `last` has been laid over those of `state`."""
    laid_over = state | last
    return {garment_id: change for garment_id, change in laid_over.items() if isinstance(change, GarmentAdded)}


@given(operations=OPERATIONS, data=st.data())
def test_the_last_word_is_the_same_whenever_a_build_takes_changes_in(
    operations: list[tuple[str, bool]], data: st.DataObject
) -> None:
    log: dict[str, Change] = {
        f"2026{index:04}": added(garment_id) if adds else GarmentDeleted(garment_id)
        for index, (garment_id, adds) in enumerate(operations)
    }
    expected: dict[str, Change] = {}
    for change in log.values():
        expected.pop(change.garment_id, None)
        if isinstance(change, GarmentAdded):
            expected[change.garment_id] = change
    # The changes come to light in any order, and builds may happen between any two of them.
    arrivals = data.draw(st.permutations(list(log)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=3)))
    state: dict[str, Change] = {}
    held: dict[str, str] = {}
    for end in [*cuts, len(log)]:
        taken = {name: log[name] for name in arrivals[:end] if name not in held}
        state = state_after(state, fold(taken, version_holding(held)))
        held |= {name: change.garment_id for name, change in taken.items()}
    assert state == expected
    assert state_after({}, fold(log, version_holding({}))) == expected


@given(operations=st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(-(10**6), 10**6)), max_size=8))
def test_what_follows_overrules_however_wrong_the_clocks(operations: list[tuple[str, bool, int]]) -> None:
    root, names = Root.at("memory://clocks"), []
    last: dict[str, str | None] = {}
    with pytest.MonkeyPatch.context() as patch:
        for index, (garment_id, adds, wrong_s) in enumerate(operations):

            class Clock(datetime):
                @classmethod
                def now(cls, tz: Any = None, wrong_s: int = wrong_s) -> Any:
                    return datetime.now(tz) + timedelta(seconds=wrong_s)

            patch.setattr(root_module, "datetime", Clock)
            names.append(append(root, added(garment_id, str(index)) if adds else GarmentDeleted(garment_id)))
            last[garment_id] = str(index) if adds else None
    new = read_since(root, set())
    root.remove("")
    assert list(new.changes) == names
    assert words(fold(new.changes, version_holding({}))) == last


def append_many(path: str, name: str) -> None:
    root = Root.at(path)
    for number in range(40):
        append(root, added("shared", f"{name}{number}"))
        append(root, added(f"{name}{number}"))


def test_two_processes_lose_none_of_each_others_changes(tmp_path: Path) -> None:
    root = Root.at(tmp_path / "root")
    script = f"import sys; from {__name__} import append_many; append_many(*sys.argv[1:])"
    runs = [subprocess.Popen([sys.executable, "-c", script, root.path, name], cwd=PROJECT) for name in ("a", "b")]
    assert [run.wait() for run in runs] == [0, 0]
    new = read_since(root, set())
    assert new.refused == {}
    assert len(new.changes) == 160
    last = words(fold(new.changes, version_holding({})))
    assert set(last) == {"shared", *(f"{name}{number}" for name in "ab" for number in range(40))}
    assert last["shared"] in ("a39", "b39")
    shared = [change.row.caption for change in new.changes.values() if change.garment_id == "shared"]  # type: ignore[union-attr]
    assert [caption for caption in shared if caption[0] == "a"] == [f"a{number}" for number in range(40)]


# Changes and versions.


def test_a_build_takes_in_what_is_pending(root: Root, tmp_path: Path) -> None:
    first = publish_with(root, tmp_path, {})
    names = [append(root, change) for change in (added("a", "old"), added("b"), GarmentDeleted("b"), added("a", "new"))]
    bad = forged(root, b"torn")
    lacking = pending(root, first)
    assert words(lacking.last) == {"a": "new", "b": None}
    assert lacking.taken_in == dict(zip(names, "abba", strict=True))
    assert list(lacking.refused) == [bad]
    late = append(root, added("b", "late"))
    second = publish_with(root, tmp_path, lacking.taken_in)
    assert words(pending(root, second).last) == {"b": "late"}
    # The version after that has not forgotten what is still in the log.
    third = publish_with(root, tmp_path, {late: "b"})
    assert pending(root, third).last == {}


def test_a_change_goes_once_every_version_holds_it(root: Root, tmp_path: Path) -> None:
    assert clear(root) == []
    name_a, name_b = append(root, added("a")), append(root, GarmentDeleted("b"))
    assert clear(root) == []
    first = publish_with(root, tmp_path, {})
    second = publish_with(root, tmp_path, {name_a: "a", name_b: "b"})
    name_c = append(root, added("c"))
    assert clear(root) == []
    assert list(pending(root, first).last) == ["a", "b", "c"]
    prune(root, keep=0, grace_s=0)
    assert clear(root) == [name_a, name_b]
    assert list(pending(root, second).last) == ["c"]
    publish_with(root, tmp_path, {name_c: "c"})
    prune(root, keep=0, grace_s=0)
    # The latest change stays.
    assert clear(root) == []
    assert root.names("changes") == [name_c]


def test_a_fast_clock_overrules_nothing_that_comes_after_a_build(root: Root, tmp_path: Path) -> None:
    class Fast(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(days=300)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(root_module, "datetime", Fast)
        early = append(root, added("a", "early"))
    version = publish_with(root, tmp_path, {early: "a"})
    clear(root)
    append(root, added("a", "later"))
    assert words(pending(root, version).last) == {"a": "later"}


def test_a_manifest_cannot_have_other_files_cleared(root: Root, tmp_path: Path) -> None:
    change = append(root, GarmentDeleted("b"))
    append(root, GarmentDeleted("c"))
    version = publish_with(root, tmp_path, {change: "b", "../CURRENT": "x", f"../versions/{change}": "y", "": "z"})
    assert clear(root) == [change]
    assert current(root) == version.name


# Pictures.


def test_pictures_are_kept_by_their_content(root: Root) -> None:
    digest = hashlib.sha256(b"jpeg").hexdigest()
    assert put_image(root, b"jpeg") == f"images/{digest[:2]}/{digest}.jpg"
    assert put_image(root, b"jpeg") == f"images/{digest[:2]}/{digest}.jpg"
    assert put_image(root, b"other") != put_image(root, b"jpeg")
    assert root.read(f"images/{digest[:2]}/{digest}.jpg", 100) == b"jpeg"
    root.write(f"images/{digest[:2]}/{digest}.jpg", b"jp")
    assert root.read(put_image(root, b"jpeg"), 100) == b"jpeg"


def kill_writers(work: str) -> None:
    root = Root.at(Path(work) / "root")
    change, seen = added("a", "text"), []

    def store() -> None:
        put_image(root, b"jpeg")
        append(root, change)

    def check() -> None:
        pictures = [path for path in Path(root.path).glob("images/*/*")]
        assert all(path.stem == hashlib.sha256(path.read_bytes()).hexdigest() for path in pictures)
        new = read_since(root, set())
        assert new.refused == {}
        assert len(new.changes) <= len(pictures)
        seen.append(len(new.changes))
        store()
        assert len(read_since(root, set()).changes) == len(new.changes) + 1

    print(steps_survived(store, check, lambda: shutil.rmtree(root.path, ignore_errors=True)), *set(seen))


def test_a_writer_killed_at_any_step_leaves_whole_files(tmp_path: Path) -> None:
    steps, *seen = run_here(__name__, "kill_writers", tmp_path).split()
    assert int(steps) > 8
    assert set(seen) == {"0", "1"}
