import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from fashion_rag.artifacts import write_json
from fashion_rag.bundle import Bundle
from fashion_rag.catalogue import build as build_module
from fashion_rag.catalogue.build import in_process
from fashion_rag.catalogue.catalogue import Catalogue
from fashion_rag.catalogue.changes import GarmentAdded, append
from fashion_rag.catalogue.garment_encoding import EncodedGarment, Part, Skipped, encode
from fashion_rag.catalogue.garments import INVERSION, MAX_STORED_SIDE, RETRIEVAL, Garment, garments_in, stored_jpeg
from fashion_rag.catalogue.storage import Root
from fashion_rag.catalogue.vector_index import VectorIndex
from fashion_rag.catalogue.versions import VersionConflict, current, live, open_version
from fashion_rag.errors import ArtifactError
from tests.catalogue.toy import FINGERPRINTS, Counting, add, delete, encoded, load, made, paint, painted, vector

OTHERS = {RETRIEVAL: "other colours", INVERSION: "other words"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "catalogue"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return tmp_path / "pictures"


def part(root: Path) -> Part:
    """Return the garments of the live version."""
    return Part(root / live(Root.at(root)).folder)


def rgb(root: Path, garment_id: str) -> tuple[int, ...]:
    """Return the pure colour that a garment's stored picture is nearest to."""
    live_part = part(root)
    row = live_part.garments.find(garment_id)
    assert row is not None
    with Image.open(root / live_part.garments[row].image) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
        colour = image.getpixel((0, 0))
    assert isinstance(colour, tuple)
    return tuple(0 if level < 64 else 255 for level in colour)


def halfway(num_batches: int) -> Any:
    """Return a `Compute` that fails after it has encoded so many batches."""

    def compute(batches: Any, load: Any, root: Root) -> Iterator[Any]:
        for number, outcomes in enumerate(in_process(batches, load, root)):
            if number == num_batches:
                raise RuntimeError("the power went")
            yield outcomes

    return compute


def failing() -> Any:
    raise AssertionError("nothing is to be encoded")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have builds encode two garments in a batch, and write a part after each batch."""
    monkeypatch.setattr(build_module, "BATCH_SIZE", 2)
    monkeypatch.setattr(build_module, "PART_ROWS", 2)


def test_a_version_has_what_the_encoders_give_for_the_stored_pictures(
    tiny_bundle: Path, tiny_catalogue: Path, tmp_path: Path
) -> None:
    bundle = Bundle.open(tiny_bundle)
    encoders = bundle.load_encoders()
    version = live(Root.at(tiny_catalogue))
    assert version.encoders == bundle.fingerprints()
    assert version.num_garments == 12
    live_part = part(tiny_catalogue)
    images = [Image.open(tiny_catalogue / row.image) for row in live_part.garments]
    np.testing.assert_allclose(live_part.vectors, encoders.retrieval.encode_images(images), atol=1e-6)
    words = encoders.inversion(encoders.inversion.pixels(images)).detach().numpy()
    assert words.shape == (12, 4, 16)
    np.testing.assert_allclose(live_part.pseudo_words, words, atol=1e-6)
    VectorIndex.open(tiny_catalogue / version.folder / "index", live_part.vectors)
    keys = [(row.category, row.id) for row in live_part.garments]
    assert keys == sorted(keys)


def test_a_build_says_what_it_has_done(root: Path, pictures: Path) -> None:
    calls: list[tuple[int, int]] = []
    garments = painted(pictures, {f"g{number:02}": "red" for number in range(40)})
    built = made(root, garments, progress=lambda done, total: calls.append((done, total)))
    assert (built.num_encoded, built.num_kept, built.num_removed, built.skipped) == (40, 0, 0, ())
    assert built.version == live(Root.at(root))
    assert calls == [(32, 40), (40, 40)]
    assert not root.with_name("catalogue-work").exists()


def test_only_what_is_new_is_encoded(root: Path, pictures: Path) -> None:
    made(root, painted(pictures, {"a": "red", "b": "blue"}))
    compute = Counting()
    built = made(root, painted(pictures, {"c": "lime"}), compute=compute)
    assert compute.ids == ["c"]
    assert (built.num_encoded, built.num_kept, built.num_removed) == (1, 2, 0)
    live_part = part(root)
    assert live_part.ids() == ["a", "b", "c"]
    colours = [Image.open(root / row.image).getpixel((0, 0)) for row in live_part.garments]
    assert np.array_equal(live_part.pseudo_words[:, 1], np.array(colours, np.float32))
    assert np.array_equal(live_part.vectors, [vector(colour) for colour in colours])
    assert [rgb(root, garment_id) for garment_id in "abc"] == [(255, 0, 0), (0, 0, 255), (0, 255, 0)]


def test_nothing_new_needs_no_encoders(root: Path, pictures: Path) -> None:
    garments = painted(pictures, {"a": "red", "b": "blue"})
    first = made(root, garments).version
    for again in (garments, []):
        built = made(root, again, load=failing)
        assert (built.num_encoded, built.num_kept) == (0, 2)
        assert built.version.parent != first.parent
        assert built.version.files == first.files


def test_what_is_said_of_a_garment_changes_without_encoding(root: Path, pictures: Path) -> None:
    (a, b) = painted(pictures, {"a": "red", "b": "blue"})
    made(root, [a, b])
    vectors = dict(zip("ab", np.array(part(root).vectors), strict=True))
    described = replace(a, category="upper_body", caption="new", chunks=("one",), attributes={"size": ("S",)})
    built = made(root, [described], load=failing)
    assert (built.num_encoded, built.num_kept) == (0, 2)
    live_part = part(root)
    assert live_part.ids() == ["b", "a"]  # The category comes first.
    row = live_part.garments[1]
    assert (row.category, row.caption, row.chunks, row.attributes) == ("upper_body", "new", ("one",), {"size": ("S",)})
    assert np.array_equal(live_part.vectors, [vectors["b"], vectors["a"]])


def test_a_picture_that_has_changed_is_encoded_again(root: Path, pictures: Path) -> None:
    made(root, painted(pictures, {"a": "red", "b": "blue"}))
    compute = Counting()
    built = made(root, painted(pictures, {"a": "lime"}), compute=compute)
    assert compute.ids == ["a"]
    assert (built.num_encoded, built.num_kept) == (1, 1)
    assert rgb(root, "a") == (0, 255, 0)
    assert np.array_equal(
        part(root).vectors[0], vector(Image.open(root / part(root).garments[0].image).getpixel((0, 0)))
    )


def test_equal_pictures_of_two_garments_are_stored_once(root: Path, pictures: Path) -> None:
    made(root, painted(pictures, {"a": "red", "b": "red"}))
    assert part(root).garments[0].image == part(root).garments[1].image
    assert len(list((root / "images").rglob("*.jpg"))) == 1


def test_a_mirror_leaves_out_what_is_not_in_the_source(root: Path, pictures: Path) -> None:
    garments = painted(pictures, {"a": "red", "b": "blue", "c": "lime"})
    made(root, garments)
    assert made(root, garments[:1]).num_removed == 0
    add(root, "live", "white", "dresses")
    built = made(root, garments[:2], mirror=True, load=failing)
    assert (built.num_encoded, built.num_kept, built.num_removed) == (0, 3, 1)
    assert part(root).ids() == ["a", "b", "live"]


def broken(pictures: Path, garment_id: str, content: bytes | None) -> Garment:
    path = pictures / f"{garment_id}.jpg"
    if content is None:
        return Garment(garment_id, "dresses", "", path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return Garment(garment_id, "dresses", "", path)


@pytest.mark.parametrize("mirror", [False, True])
def test_a_broken_picture_is_skipped_and_the_earlier_one_kept(root: Path, pictures: Path, mirror: bool) -> None:
    made(root, painted(pictures, {"a": "red", "b": "blue"}))
    cut = paint(pictures / "whole.jpg", "lime").read_bytes()[:-100]
    bad = [broken(pictures, "a", cut), broken(pictures, "b", None), broken(pictures, "c", b"no picture")]
    built = made(root, [*bad, *painted(pictures / "more", {"d": "white"})], mirror=mirror)
    assert (built.num_encoded, built.num_kept, built.num_removed) == (1, 2, 0)
    reasons = dict(built.skipped)
    assert reasons.keys() == {"a", "b", "c"}
    assert reasons["a"].startswith("garment a: a.jpg: image: ")
    assert reasons["b"].startswith("b.jpg: [Errno 2]")
    assert reasons["c"].startswith("garment c: c.jpg: image: ")
    assert part(root).ids() == ["a", "b", "d"]
    assert (rgb(root, "a"), rgb(root, "b")) == ((255, 0, 0), (0, 0, 255))


def test_a_picture_with_broken_exif_is_skipped(root: Path, pictures: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "x"
    content = paint(pictures / "a.jpg", "red", exif=exif).read_bytes()
    # The width becomes a text. Pillow writes all the tags once more when it turns the picture.
    odd = content.replace(b"\x01\x0f\x00\x02", b"\x01\x00\x00\x02")
    assert odd != content
    built = made(root, [broken(pictures, "a", odd), *painted(pictures / "more", {"b": "blue"})])
    assert [skipped.garment_id for skipped in built.skipped] == ["a"]


def test_a_picture_that_says_nonsense_of_itself_is_skipped(root: Path, pictures: Path) -> None:
    content = paint(pictures / "a.tif", "red").read_bytes()
    # The tag that says where the pixels begin becomes a text.
    odd = content.replace(b"\x11\x01\x04\x00", b"\x11\x01\x02\x00")
    assert odd != content
    built = made(root, [broken(pictures, "a", odd), *painted(pictures / "more", {"b": "blue"})])
    assert [skipped.garment_id for skipped in built.skipped] == ["a"]


def test_a_broken_picture_leaves_the_earlier_one_to_new_encoders_too(root: Path, pictures: Path) -> None:
    made(root, painted(pictures, {"a": "red", "b": "blue"}))
    built = made(root, [broken(pictures, "a", b"no picture")], fingerprints=OTHERS)
    assert [skipped.garment_id for skipped in built.skipped] == ["a"]
    assert part(root).ids() == ["a", "b"]
    assert rgb(root, "a") == (255, 0, 0)


def test_where_all_is_broken_nothing_is_published(root: Path, pictures: Path) -> None:
    with pytest.raises(ArtifactError, match="no garment is left; 1 could not be taken in"):
        made(root, [broken(pictures, "a", b"no picture")])
    assert current(Root.at(root)) is None
    name = made(root, painted(pictures, {"b": "red"})).version.name
    with pytest.raises(ArtifactError, match="no garment is left; 1 could not be taken in"):
        made(root, [broken(pictures, "a", b"no picture")], mirror=True)
    delete(root, "b")
    with pytest.raises(ArtifactError, match="no garment is left; 0 could not be taken in"):
        made(root, [])
    assert current(Root.at(root)) == name
    assert len(part(root).garments) == 1


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"id": "../a"}, "id: got '../a'"),
        ({"id": ""}, "id: got ''"),
        ({"caption": "x" * 2001}, "caption: "),
        ({"attributes": {"two words": ("x",)}}, "attributes: "),
        ({"attributes": {"size": ()}}, "attributes: "),
        ({"caption": 7}, "garment: "),
    ],
)
def test_a_garment_that_breaks_a_rule_is_skipped(root: Path, pictures: Path, changes: Any, rule: str) -> None:
    a, b = painted(pictures, {"a": "red", "b": "blue"})
    bad = replace(a, **changes)
    built = made(root, [bad, b])
    ((garment_id, reason),) = built.skipped
    assert garment_id == bad.id
    assert reason.startswith(rule)
    assert part(root).ids() == ["b"]


def test_words_that_break_a_rule_leave_what_was_said_before(root: Path, pictures: Path) -> None:
    (a,) = painted(pictures, {"a": "red"})
    made(root, [replace(a, caption="before")])
    built = made(root, [replace(a, caption="x" * 2001)], load=failing)
    assert [skipped.garment_id for skipped in built.skipped] == ["a"]
    assert part(root).garments[0].caption == "before"


def test_a_build_that_was_cut_short_goes_on(root: Path, pictures: Path, small_parts: None) -> None:
    garments = painted(pictures, {f"g{number}": "red" for number in range(7)})
    with pytest.raises(RuntimeError, match="the power went"):
        made(root, garments, compute=halfway(1))
    with pytest.raises(RuntimeError, match="the power went"):
        made(root, garments, compute=halfway(1))
    assert current(Root.at(root)) is None
    compute = Counting()
    made(root, garments, compute=compute)
    assert compute.ids == ["g4", "g5", "g6"]
    assert part(root).ids() == [garment.id for garment in garments]
    assert not root.with_name("catalogue-work").exists()


def test_what_was_half_done_for_other_encoders_is_not_taken(root: Path, pictures: Path, small_parts: None) -> None:
    garments = painted(pictures, {f"g{number}": "red" for number in range(4)})
    with pytest.raises(RuntimeError, match="the power went"):
        made(root, garments, compute=halfway(1))
    compute = Counting()
    made(root, garments, compute=compute, fingerprints=OTHERS)
    assert compute.ids == [garment.id for garment in garments]


def test_what_was_half_done_is_taken_only_for_the_same_pictures(root: Path, pictures: Path, small_parts: None) -> None:
    garments = painted(pictures, {f"g{number}": "red" for number in range(4)})
    with pytest.raises(RuntimeError, match="the power went"):
        made(root, garments, compute=halfway(1))
    compute = Counting()
    made(root, painted(pictures, {"g1": "blue"}), compute=compute)
    assert compute.ids == ["g1", "g2", "g3"]
    assert rgb(root, "g1") == (0, 0, 255)


def test_what_was_half_done_does_not_outlive_its_pictures(root: Path, pictures: Path, small_parts: None) -> None:
    garments = painted(pictures, {f"g{number}": "red" for number in range(4)})
    with pytest.raises(RuntimeError, match="the power went"):
        made(root, garments, compute=halfway(1))
    shutil.rmtree(root)
    made(root, painted(pictures, {"g2": "blue", "g3": "lime"}))
    assert [garment.image().size for garment in Catalogue.open(root)] == [(32, 32)] * 4


def test_a_damaged_part_is_made_again(root: Path, pictures: Path, small_parts: None) -> None:
    garments = painted(pictures, {f"g{number}": "red" for number in range(4)})
    with pytest.raises(RuntimeError, match="the power went"):
        made(root, garments, compute=halfway(1))
    (vectors,) = root.with_name("catalogue-work").rglob("embeddings.npy")
    vectors.write_bytes(b"\0" * vectors.stat().st_size)
    made(root, garments)
    assert len(part(root).garments) == 4


def test_a_folder_to_work_in_keeps_what_is_not_of_the_build(root: Path, pictures: Path, tmp_path: Path) -> None:
    work = tmp_path / "desk"
    work.mkdir()
    (work / "letter.txt").write_text("dear")
    made(root, painted(pictures, {"a": "red"}), work=work)
    assert [path.name for path in work.iterdir()] == ["letter.txt"]


SCRIPT = """
import os, signal, sys
from pathlib import Path
from fashion_rag.catalogue import build
from fashion_rag.catalogue.garments import garments_in
from tests.catalogue.toy import made

build.BATCH_SIZE = build.PART_ROWS = 2

def compute(batches, load, root):
    for number, outcomes in enumerate(build.in_process(batches, load, root)):
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        yield outcomes

made(Path(sys.argv[1]), garments_in(Path(sys.argv[2])), compute=compute)
"""


def test_a_build_that_is_killed_leaves_the_live_version_and_goes_on(root: Path, pictures: Path) -> None:
    name = made(root, painted(pictures, {"a": "red"})).version.name
    garments = painted(pictures, {f"g{number}": "blue" for number in range(4)})
    top = str(Path(__file__).parents[2])
    killed = subprocess.run([sys.executable, "-c", SCRIPT, root, pictures], env={**os.environ, "PYTHONPATH": top})
    assert killed.returncode == -signal.SIGKILL
    assert Catalogue.open(root).version == name
    compute = Counting()
    built = made(root, garments, compute=compute)
    assert compute.ids == ["g2", "g3"]
    assert (built.version.parent, built.version.num_garments) == (name, 5)


def test_other_encoders_encode_everything_again(tiny_bundle: Path, tiny_catalogue: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_catalogue, tmp_path / "catalogue"))
    bundle = Bundle.open(tiny_bundle)
    assert bundle.build_catalogue(copy, [], work=tmp_path / "work").num_encoded == 0
    # Only the inversion is another one, yet the vectors are not taken over either.
    config = Path(shutil.copytree(tiny_bundle, tmp_path / "other")) / "manifest.json"
    manifest = json.loads(config.read_text())
    write_json(config, manifest | {"image_size": [96, 72]})
    other_bundle = Bundle.open(config.parent)
    assert other_bundle.fingerprints()[RETRIEVAL] == bundle.fingerprints()[RETRIEVAL]
    built = other_bundle.build_catalogue(copy, [], work=tmp_path / "work")
    assert (built.num_encoded, built.num_kept, built.skipped) == (12, 0, ())
    assert built.version.encoders == other_bundle.fingerprints()
    old, new = part(tiny_catalogue), part(copy)
    assert old.keys() == new.keys()
    np.testing.assert_allclose(old.vectors, new.vectors, atol=1e-6)
    assert not np.allclose(old.pseudo_words, new.pseudo_words)


def test_live_changes_are_taken_in(root: Path, pictures: Path) -> None:
    made(root, painted(pictures, {"a": "red", "b": "blue", "c": "lime"}))
    names = [
        add(root, "d", "white", attributes={"size": ("S",)}),
        add(root, "a", "yellow", "upper_body"),
        delete(root, "b"),
        delete(root, "unknown"),
    ]
    version = made(root, [], load=failing).version
    assert version.changes == dict(zip(names, ["d", "a", "b", "unknown"], strict=True))
    live_part = part(root)
    assert live_part.ids() == ["c", "d", "a"]
    assert live_part.garments[1].attributes == {"size": ("S",)}
    assert (rgb(root, "d"), rgb(root, "a")) == ((255, 255, 255), (255, 255, 0))
    assert made(root, []).version.changes == version.changes
    assert part(root).ids() == ["c", "d", "a"]


def test_live_changes_overrule_the_source(root: Path, pictures: Path) -> None:
    garments = painted(pictures, {"a": "red", "b": "blue"})
    made(root, garments[:1])
    add(root, "a", "yellow")
    delete(root, "b")
    built = made(root, garments, load=failing)
    assert part(root).ids() == ["a"]
    assert rgb(root, "a") == (255, 255, 0)
    assert (built.num_encoded, built.num_kept, built.num_removed) == (0, 1, 0)


def test_what_was_added_with_other_encoders_is_encoded_again(root: Path, pictures: Path) -> None:
    made(root, painted(pictures, {"a": "red"}))
    add(root, "b", "blue", encoders=OTHERS)
    add(root, "c", "lime", encoders=FINGERPRINTS | {INVERSION: "other words"})
    compute = Counting()
    assert made(root, [], compute=compute).num_encoded == 2
    assert compute.ids == ["b", "c"]
    assert part(root).ids() == ["a", "b", "c"]


def test_a_change_that_comes_during_a_build_waits_for_the_next(root: Path, pictures: Path) -> None:
    made(root, painted(pictures, {"a": "red"}))

    def compute(batches: Any, load: Any, at: Root) -> Iterator[Any]:
        add(root, "live", "white")
        yield from in_process(batches, load, at)

    assert made(root, painted(pictures, {"b": "blue"}), compute=compute).version.changes == {}
    assert part(root).ids() == ["a", "b"]
    assert [garment.id for garment in Catalogue.open(root)] == ["a", "b", "live"]
    made(root, [], load=failing)
    assert part(root).ids() == ["a", "b", "live"]


def test_of_two_builds_at_once_the_later_is_refused_and_goes_on(root: Path, pictures: Path, tmp_path: Path) -> None:
    first = made(root, painted(pictures, {"a": "red"})).version

    def compute(batches: Any, load: Any, at: Root) -> Iterator[Any]:
        made(root, painted(pictures / "meanwhile", {"b": "blue"}), work=tmp_path / "elsewhere")
        yield from in_process(batches, load, at)

    garments = painted(pictures, {"c": "lime"})
    with pytest.raises(VersionConflict):
        made(root, garments, compute=compute)
    meanwhile = live(Root.at(root))
    assert meanwhile.parent == first.name
    assert part(root).ids() == ["a", "b"]
    made(root, garments, load=failing)
    assert part(root).ids() == ["a", "b", "c"]


def test_a_mirror_is_built_over_a_damaged_version(root: Path, pictures: Path) -> None:
    garments = painted(pictures, {"a": "red"})
    version = made(root, garments).version
    (root / version.folder / "embeddings.npy").unlink()
    assert made(root, garments, mirror=True).version.parent == version.name


def test_a_change_that_does_not_fit_is_encoded_again(root: Path, pictures: Path) -> None:
    made(root, painted(pictures, {"a": "red"}))
    row, _, words = encoded(root, "b", "blue")
    append(Root.at(root), GarmentAdded(row, np.ones(3, np.float32), words, FINGERPRINTS))
    compute = Counting()
    made(root, [], compute=compute)
    assert compute.ids == ["b"]


def test_a_change_whose_vector_is_no_unit_vector_is_encoded_again(root: Path, pictures: Path) -> None:
    made(root, painted(pictures, {"a": "red"}))
    row, vector, words = encoded(root, "b", "blue")
    append(Root.at(root), GarmentAdded(row, 2 * vector, words, FINGERPRINTS))
    compute = Counting()
    made(root, [], compute=compute)
    assert compute.ids == ["b"]


def saved(image: Image.Image, format: str, **how: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, format, **how)
    return content.getvalue()


def test_pictures_are_stored_upright_small_and_bare(root: Path, pictures: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # The picture lies on its side.
    exif[0x010F] = "a camera"
    pictures.mkdir()
    wide = Image.new("RGB", (4000, 1000), "red")
    wide.paste("blue", (0, 0, 2000, 1000))
    (pictures / "a.jpg").write_bytes(saved(wide, "JPEG", exif=exif, icc_profile=b"a profile"))
    (pictures / "b.png").write_bytes(saved(Image.new("RGBA", (20, 30), (255, 0, 0, 0)), "PNG"))
    made(root, [Garment(path.stem, "dresses", "", path) for path in sorted(pictures.iterdir())])
    tall, clear = (root / row.image for row in part(root).garments)
    with Image.open(tall) as image:
        assert (image.format, image.size) == ("JPEG", (MAX_STORED_SIDE // 4, MAX_STORED_SIDE))
        assert not image.getexif() and "icc_profile" not in image.info
        top = image.getpixel((0, 10))
    assert isinstance(top, tuple) and top[2] > 250
    with Image.open(clear) as image:
        assert (image.size, image.getpixel((0, 0))) == ((20, 30), (255, 255, 255))


def test_nothing_a_picture_says_is_stored(root: Path, pictures: Path) -> None:
    paint(pictures / "a.jpg", "red", comment=b"taken at home")
    made(root, [Garment("a", "dresses", "", pictures / "a.jpg")])
    assert b"taken at home" not in (root / part(root).garments[0].image).read_bytes()


def test_a_stored_picture_keeps_its_colours() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    image = Image.fromarray(noise).resize((64, 64), Image.Resampling.BICUBIC)
    with Image.open(io.BytesIO(stored_jpeg(image))) as stored:
        difference = np.asarray(stored).astype(int) - np.asarray(image)
    assert image.size == (64, 64)
    assert np.abs(difference).mean() < 2


def test_encode_gives_an_outcome_for_each_garment(root: Path, pictures: Path) -> None:
    a, b = painted(pictures, {"a": "red", "b": "blue"})
    outcomes = encode([a, broken(pictures, "c", b"no picture"), b], load(), Root.at(root))
    assert {outcome.row.id for outcome in outcomes if isinstance(outcome, EncodedGarment)} == {"a", "b"}
    assert {outcome.garment_id for outcome in outcomes if isinstance(outcome, Skipped)} == {"c"}
    encoders: Any = Mock()
    assert encode([broken(pictures, "c", None)], encoders, Root.at(root))[0].garment_id == "c"
    assert not encoders.mock_calls


def write_part(folder: Path, pictures: Path) -> Path:
    folder.mkdir()
    outcomes = encode(painted(pictures, {"a": "red", "b": "blue"}), load(), Root.at(folder.with_name("root")))
    Part.write(folder, [outcome for outcome in outcomes if isinstance(outcome, EncodedGarment)])
    return folder


def test_a_part_is_read_as_it_was_written(tmp_path: Path, pictures: Path) -> None:
    read = Part(write_part(tmp_path / "part", pictures))
    assert read.ids() == ["a", "b"]
    assert read.keys() == [(garment.id, garment.digest()) for garment in garments_in(pictures)]
    assert isinstance(read.vectors, np.memmap) and isinstance(read.pseudo_words, np.memmap)
    second = read[1]
    assert second.row == read.garments[1]
    assert np.array_equal(second.vector, read.vectors[1])
    assert np.array_equal(second.pseudo_words, read.pseudo_words[1])


def archive(array: Any) -> bytes:
    content = io.BytesIO()
    np.savez(content, array)
    return content.getvalue()


def npy(array: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"no array",
        npy(np.ones((2, 64))),
        npy(np.ones((3, 64), np.float32)),
        npy(np.ones(2, np.float32)),
        npy(np.array([[print] * 64] * 2)),
        npy(np.ones((2, 64), np.float32))[:-1],
        b"",
        archive(np.ones((2, 64), np.float32)),
    ],
)
@pytest.mark.parametrize("name", ["embeddings.npy", "pseudo_words.npy"])
def test_a_part_that_is_damaged_is_refused(tmp_path: Path, pictures: Path, name: str, content: bytes) -> None:
    folder = write_part(tmp_path / "part", pictures)
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=str(folder / name)):
        Part(folder)


def test_the_version_before_can_still_be_opened(root: Path, pictures: Path) -> None:
    first = made(root, painted(pictures, {"a": "red"})).version
    made(root, painted(pictures, {"a": "blue"}))
    assert open_version(Root.at(root), first.name, digests=True) == first
    assert Part(root / first.folder).ids() == ["a"]
