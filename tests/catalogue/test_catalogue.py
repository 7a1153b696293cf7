import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import fsspec
import numpy as np
import pytest
from PIL import Image

from fashion_rag.bundle import Bundle
from fashion_rag.catalogue import changes, versions
from fashion_rag.catalogue.build import build
from fashion_rag.catalogue.catalogue import Catalogue, GarmentQuery
from fashion_rag.catalogue.changes import GarmentAdded, append, clear
from fashion_rag.catalogue.garments import INVERSION, RETRIEVAL, garments_in
from fashion_rag.catalogue.retrieval_encoder import BATCH_SIZE, RetrievalEncoder
from fashion_rag.catalogue.storage import Root
from fashion_rag.catalogue.vector_index import VectorIndex
from fashion_rag.catalogue.versions import current, live, publish
from fashion_rag.errors import ArtifactError, InvalidRequest
from tests import tiny
from tests.catalogue.toy import DIM, FINGERPRINTS, Colours, add, delete, encoded, load, made, painted

OTHERS = {RETRIEVAL: "other colours", INVERSION: "other words"}
COLOURS = ("red", "lime", "blue", "white", "black", "yellow")


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path) -> RetrievalEncoder:
    return Bundle.open(tiny_bundle).load_retrieval_encoder()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a catalogue of plain colours: dresses with and without sizes, and a shirt.

    It is shared: a test that changes it takes the copy in `root`.
    """
    folder = tmp_path_factory.mktemp("shop")
    dresses = painted(folder / "pictures", {"a": "red", "b": "lime", "c": "blue", "d": "white"})
    (shirt,) = painted(folder / "more", {"shirt": "red"}, "upper_body")
    attributes = [
        {"size": ("S", "M"), "season": ("summer",)},
        {"size": ("M",)},
        {"size": ("L",), "season": ("winter",)},
        {},
    ]
    described = []
    for garment, own_attributes in zip(dresses, attributes, strict=True):
        described.append(replace(garment, attributes=own_attributes))
    made(folder / "catalogue", [*described, shirt])
    return folder / "catalogue"


@pytest.fixture
def root(shop: Path, tmp_path: Path) -> Path:
    """Return a copy of the catalogue that a test may change."""
    return Path(shutil.copytree(shop, tmp_path / "catalogue"))


def opened(root: Path, **how: Any) -> Catalogue:
    encoder: Any = Colours()
    return Catalogue.open(root, encoder, **how)


def ids(matches: list[Any]) -> list[str]:
    return [match.garment.id for match in matches]


def scores_of(results: list[list[Any]]) -> list[float]:
    return [match.score for matches in results for match in matches]


def shown(catalogue: Catalogue) -> dict[str, tuple[str, ...]]:
    """Return the colour of each garment, by id."""
    colours = {garment.id: garment.image().getpixel((0, 0)) for garment in catalogue}
    assert len(colours) == len(catalogue)
    return {garment_id: colours[garment_id] for garment_id in sorted(colours)}  # type: ignore[misc]


def test_search_ranks_a_category_by_cosine(tiny_catalogue: Path, encoder: RetrievalEncoder) -> None:
    catalogue = Catalogue.open(tiny_catalogue, encoder)
    for category, colours in tiny.GARMENT_COLOURS.items():
        matches = catalogue.search("a blue garment", category, 4)
        assert set(ids(matches)) == set(colours)
        assert all(match.garment.category == category for match in matches)
        pictures = encoder.encode_images([match.garment.image() for match in matches])
        cosines = pictures @ encoder.encode_texts(["a blue garment"])[0]
        np.testing.assert_allclose([match.score for match in matches], cosines, atol=1e-6)
        assert (np.diff(cosines) <= 1e-6).all()


def test_search_is_by_text_picture_or_vector(shop: Path) -> None:
    catalogue = opened(shop)
    vector = catalogue.vector("c")
    assert vector.shape == (DIM,) and vector.dtype == np.float32
    for like in ("blue", Image.new("RGB", (32, 32), "blue"), vector, vector.astype(np.float64)):
        matches = catalogue.search(like, "dresses", 3)
        assert ids(matches)[0] == "c"
        assert matches[0].score == pytest.approx(1, abs=1e-3)
    assert ids(catalogue.search(catalogue.vector("shirt"), "dresses", 1)) == ["a"]
    with pytest.raises(InvalidRequest, match="garment_ids: got 'no-such'"):
        catalogue.vector("no-such")


def test_a_vector_that_is_given_is_the_callers_own(shop: Path) -> None:
    catalogue = opened(shop)
    catalogue.vector("c")[:] = 0
    assert ids(catalogue.search("blue", "dresses", 1)) == ["c"]


def test_the_vector_of_a_live_garment_is_the_callers_own_too(root: Path) -> None:
    add(root, "e", "black")
    catalogue = opened(root)
    catalogue.vector("e")[:] = 0
    assert np.linalg.norm(catalogue.vector("e")) == pytest.approx(1)


@pytest.mark.parametrize(("k", "count"), [(1, 1), (3, 3), (4, 4), (100, 4)])
def test_search_gives_as_many_as_there_are(tiny_catalogue: Path, encoder: RetrievalEncoder, k: int, count: int) -> None:
    catalogue = Catalogue.open(tiny_catalogue, encoder)
    matches = catalogue.search("red", "dresses", k)
    assert ids(matches) == ids(catalogue.search("red", "dresses", 4))[:count]


def test_searches_together_are_what_they_are_alone(tiny_catalogue: Path, encoder: RetrievalEncoder) -> None:
    catalogue = Catalogue.open(tiny_catalogue, encoder)
    picture = Image.new("RGB", (48, 64), "blue")
    likes: list[tuple[Any, str, int]] = [
        ("red", "dresses", 2),
        (picture, "dresses", 3),
        ("a long blue pair of trousers", "lower_body", 4),
        (catalogue.vector("red-shirt"), "upper_body", 2),
        ("", "upper_body", 1),
    ] * 13
    queries = [GarmentQuery(*like) for like in likes]
    alone = [catalogue.search(*like) for like in likes]
    together = catalogue.search_many(queries)
    assert [ids(matches) for matches in together] == [ids(matches) for matches in alone]
    np.testing.assert_allclose(scores_of(together), scores_of(alone), atol=1e-6)
    assert catalogue.search_many([]) == []


def test_all_texts_are_encoded_in_one_call(tiny_catalogue: Path, encoder: RetrievalEncoder) -> None:
    counting: Any = Mock(wraps=encoder, fingerprint=encoder.fingerprint)
    catalogue = Catalogue.open(tiny_catalogue, counting)
    picture = Image.new("RGB", (48, 64), "blue")
    catalogue.search_many(
        [GarmentQuery("red", "dresses", 2), GarmentQuery(picture, "dresses", 1), GarmentQuery("blue", "lower_body", 1)]
    )
    counting.encode_texts.assert_called_once_with(["red", "blue"])
    counting.encode_images.assert_called_once_with([picture])


def test_equal_garments_come_by_id(tmp_path: Path) -> None:
    names = [f"g{index:02}" for index in range(2 * BATCH_SIZE)]
    colours = {name: ("black", "red", "blue")[index % 3] for index, name in enumerate(names)}
    made(tmp_path / "catalogue", painted(tmp_path / "pictures", colours)[::-1])
    catalogue = opened(tmp_path / "catalogue")
    ranked = ids(catalogue.search("blue", "dresses", len(names)))
    blue, rest = names[2::3], [name for name in names if colours[name] != "blue"]
    assert ranked[: len(blue)] == blue
    assert [name for name in ranked if colours[name] == "red"] == [name for name in rest if colours[name] == "red"]
    for k in (1, 2, 5, len(blue), len(blue) + 3):
        assert ids(catalogue.search("blue", "dresses", k)) == ranked[:k]


@pytest.mark.parametrize(
    ("category", "k", "field"),
    [("shoes", 1, "category"), ("", 1, "category"), ("dresses", 0, "num_garments"), ("dresses", -1, "num_garments")],
)
def test_a_search_that_cannot_be_is_refused(shop: Path, category: str, k: int, field: str) -> None:
    catalogue = opened(shop)
    for queries in (
        [GarmentQuery("red", category, k)],
        [GarmentQuery("red", "dresses", 1), GarmentQuery("red", category, k)],
    ):
        with pytest.raises(InvalidRequest) as caught:
            catalogue.search_many(queries)
        assert caught.value.field == field


def test_a_category_without_garments_has_no_matches(shop: Path) -> None:
    catalogue = opened(shop)
    assert catalogue.search("red", "lower_body", 3) == []
    results = catalogue.search_many([GarmentQuery("red", "lower_body", 3), GarmentQuery("red", "upper_body", 3)])
    assert [ids(matches) for matches in results] == [[], ["shirt"]]


def test_get_finds_by_id_without_an_encoder(tiny_catalogue: Path) -> None:
    catalogue = Catalogue.open(tiny_catalogue)
    assert len(catalogue) == len(list(catalogue)) == 12
    garment = catalogue.get("blue-jeans")
    assert (garment.category, garment.caption) == ("lower_body", "blue jeans")
    colour = garment.image().getpixel((24, 32))
    np.testing.assert_allclose(colour, (0, 0, 255), atol=2)
    with pytest.raises(InvalidRequest, match="garment_ids: got 'no-such'; must name garments of the catalogue"):
        catalogue.get("no-such")


def test_another_encoder_is_refused(tiny_catalogue: Path, encoder: RetrievalEncoder, tmp_path: Path) -> None:
    another = Bundle.open(tiny.make_tiny_bundle(tmp_path / "other", seed=1)).load_retrieval_encoder()
    message = f"built by the encoder {encoder.fingerprint}, opened with {another.fingerprint}"
    with pytest.raises(ArtifactError, match=message):
        Catalogue.open(tiny_catalogue, another)


# Attributes.


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"size": "M"}, "ab"),
        ({"size": ["S", "L"]}, "ac"),
        ({"size": ["M", "L"], "season": "winter"}, "c"),
        ({"size": "S", "season": "winter"}, ""),
        ({"season": "spring"}, ""),
        ({"size": ["XS", "L"]}, "c"),
        ({}, "abcd"),
    ],
)
def test_a_filter_asks_for_one_value_of_each_attribute(shop: Path, attributes: Any, expected: str) -> None:
    catalogue = opened(shop)
    assert sorted(ids(catalogue.search("red", "dresses", 9, attributes))) == sorted(expected)
    for k in (1, 2):
        assert ids(catalogue.search("red", "dresses", k, attributes)) == ids(
            catalogue.search("red", "dresses", 9, attributes)[:k]
        )


@pytest.mark.parametrize("attributes", [{"colour": "red"}, {"size": "S", "colour": "red"}, {"size": []}])
def test_a_filter_that_cannot_be_is_refused(root: Path, attributes: Any) -> None:
    catalogue = opened(root)
    with pytest.raises(InvalidRequest, match=r"filter|attribute"):
        catalogue.search("red", "dresses", 1, attributes)
    add(root, "e", "black", attributes={"size": ("S",)})
    with pytest.raises(InvalidRequest, match=r"filter|attribute"):
        catalogue.refreshed().search("red", "dresses", 1, attributes)


def test_a_filter_may_name_what_only_live_garments_have(root: Path) -> None:
    add(root, "e", "black", attributes={"size": ("S",), "fit": ("slim", "long")})
    add(root, "f", "yellow", attributes={"size": ("M",)})
    catalogue = opened(root)
    assert ids(catalogue.search("red", "dresses", 9, {"fit": "slim"})) == ["e"]
    assert ids(catalogue.search("red", "dresses", 9, {"fit": ["long", "wide"], "size": "S"})) == ["e"]
    assert sorted(ids(catalogue.search("red", "dresses", 9, {"size": ["S", "M"]}))) == ["a", "b", "e", "f"]


def test_a_filter_that_no_live_garment_passes_finds_nothing(root: Path) -> None:
    add(root, "e", "black", attributes={"fit": ("slim",)})
    catalogue = opened(root)
    assert catalogue.search("red", "dresses", 9, {"fit": "wide"}) == []
    assert catalogue.search("red", "upper_body", 9, {"fit": "slim"}) == []


def test_a_category_among_the_attributes_means_the_same_before_and_after_a_build(root: Path) -> None:
    add(root, "e", "black")

    def outcome() -> list[str] | str:
        try:
            return ids(opened(root).search("red", "dresses", 9, {"category": "dresses"}))
        except InvalidRequest:
            return "refused"

    before = outcome()
    made(root, [])
    assert outcome() == before


# Live changes.


def test_live_changes_are_laid_over_the_version(root: Path) -> None:
    add(root, "e", "black")
    add(root, "a", "yellow", "upper_body")
    delete(root, "b")
    delete(root, "c")
    add(root, "c", "lime")
    delete(root, "unknown")
    catalogue = opened(root)
    assert shown(catalogue).keys() == {"a", "c", "d", "e", "shirt"}
    assert len(catalogue) == 5
    assert ids(catalogue.search("lime", "dresses", 9))[0] == "c"
    assert set(ids(catalogue.search("lime", "dresses", 9))) == {"c", "d", "e"}
    assert ids(catalogue.search("yellow", "upper_body", 9)) == ["a", "shirt"]
    assert catalogue.get("a").category == "upper_body"
    np.testing.assert_allclose(catalogue.get("a").image().getpixel((0, 0)), (255, 255, 0), atol=2)
    assert catalogue.search(catalogue.vector("e"), "dresses", 1)[0].garment.id == "e"
    for call in (catalogue.get, catalogue.vector):
        with pytest.raises(InvalidRequest, match="garment_ids: got 'b'"):
            call("b")


def test_what_was_added_and_then_deleted_is_gone(root: Path) -> None:
    add(root, "e", "black")
    delete(root, "e")
    catalogue = opened(root)
    assert shown(catalogue).keys() == {"a", "b", "c", "d", "shirt"}
    with pytest.raises(InvalidRequest):
        catalogue.get("e")


def test_all_that_a_search_asks_for_comes_whenever_it_is_there(tmp_path: Path) -> None:
    """Hold a catalogue to a plain table of its garments, after each change and after each build."""
    root = tmp_path / "catalogue"
    rng = np.random.default_rng(0)
    names = [f"g{number}" for number in range(12)]
    expected = {name: (str(rng.choice(COLOURS)), "dresses") for name in names[:8]}
    dresses = painted(tmp_path / "pictures", {name: colour for name, (colour, _) in expected.items()})
    made(root, [*dresses, *painted(tmp_path / "more", {"shirt": "white"}, "upper_body")])
    expected["shirt"] = "white", "upper_body"
    catalogue = opened(root)

    def check(catalogue: Catalogue) -> None:
        assert {garment.id for garment in catalogue} == expected.keys()
        assert len(catalogue) == len(expected)
        for category in ("dresses", "upper_body"):
            of_category = {name for name in expected if expected[name][1] == category}
            everything = catalogue.search("red", category, 99)
            assert set(ids(everything)) == of_category and len(everything) == len(of_category)
            vectors = [catalogue.vector(match.garment.id) for match in everything]
            cosines = np.stack(vectors) @ Colours().encode_texts(["red"])[0]
            np.testing.assert_allclose([match.score for match in everything], cosines, atol=1e-6)
            assert np.all(np.diff(cosines) < 1e-6)
            for k in range(1, len(of_category) + 2):
                assert catalogue.search("red", category, k) == everything[:k]

    check(catalogue)
    for step in range(24):
        name = str(rng.choice(names))
        if rng.random() < 0.4:
            delete(root, name)
            expected.pop(name, None)
        else:
            expected[name] = str(rng.choice(COLOURS)), str(rng.choice(["dresses", "upper_body"]))
            add(root, name, *expected[name])
        catalogue = catalogue.refreshed()
        if step % 8 == 7:
            check(catalogue)
            made(root, [])
            catalogue = catalogue.refreshed()
            check(opened(root))
        check(catalogue)


def test_live_garments_that_equal_others_come_by_id(tmp_path: Path) -> None:
    root = tmp_path / "catalogue"
    made(root, painted(tmp_path / "pictures", {"a": "red", "c": "red", "e": "red"}))
    for name in ("b", "d", "f"):
        add(root, name, "red")
    before = opened(root)
    results = [ids(before.search(colour, "dresses", 6)) for colour in COLOURS]
    assert results == [list("abcdef")] * len(COLOURS)


def test_what_another_retrieval_encoder_added_is_left_out(root: Path) -> None:
    add(root, "e", "black", encoders=OTHERS)
    add(root, "f", "black", encoders={})
    add(root, "g", "black", encoders={RETRIEVAL: "colours"})
    catalogue = opened(root)
    assert shown(catalogue).keys() == {"a", "b", "c", "d", "g", "shirt"}
    assert ids(catalogue.search("black", "dresses", 1)) == ["g"]
    made(root, [])
    assert shown(catalogue.refreshed()).keys() == {"a", "b", "c", "d", "e", "f", "g", "shirt"}


def test_what_is_left_out_does_not_hide_what_was_there(root: Path) -> None:
    add(root, "e", "blue")
    add(root, "e", "black", encoders=OTHERS)
    add(root, "a", "black", encoders=OTHERS)
    colours = shown(opened(root))
    np.testing.assert_allclose([colours["a"], colours["e"]], [(255, 0, 0), (0, 0, 255)], atol=2)


def test_a_change_whose_vector_does_not_fit_is_left_out(root: Path) -> None:
    row, _, words = encoded(root, "e", "black")
    append(Root.at(root), GarmentAdded(row, np.ones(3, np.float32), words, FINGERPRINTS))
    catalogue = opened(root)
    assert set(ids(catalogue.search("red", "dresses", 9))) == {"a", "b", "c", "d"}


def test_a_change_that_is_none_is_left_out(root: Path) -> None:
    name = add(root, "e", "black")
    (root / "changes" / name).write_bytes(b"damaged")
    catalogue = opened(root)
    assert shown(catalogue).keys() == {"a", "b", "c", "d", "shirt"}
    assert catalogue.refreshed() is catalogue
    (root / "changes" / "notes.txt").touch()
    catalogue = catalogue.refreshed()
    assert catalogue.refreshed() is catalogue
    assert shown(catalogue).keys() == {"a", "b", "c", "d", "shirt"}


@pytest.mark.parametrize("inversion", ["words", "other words", None])
def test_pseudo_words_are_given_where_they_fit(root: Path, inversion: str | None) -> None:
    add(root, "e", "black")
    add(root, "f", "black", encoders=FINGERPRINTS | {INVERSION: "other words"})
    catalogue = opened(root, inversion=inversion)
    known = {garment.id for garment in catalogue if garment.pseudo_words is not None}
    fitting = {"words": {"a", "b", "c", "d", "e", "shirt"}, "other words": {"f"}, None: set()}
    assert known == fitting[inversion]
    for garment in catalogue:
        for same in (catalogue.get(garment.id), *_same(catalogue, garment.id)):
            assert (same.pseudo_words is not None) == (garment.id in known)
        if garment.id in known:
            words = np.array(garment.image().getpixel((0, 0)), np.float32)
            np.testing.assert_array_equal(garment.pseudo_words, [words / 255, words])


def _same(catalogue: Catalogue, garment_id: str) -> list[Any]:
    """Return the garment as a search finds it."""
    category = catalogue.get(garment_id).category
    return [match.garment for match in catalogue.search("red", category, 99) if match.garment.id == garment_id]


def test_pseudo_words_of_a_bundle_are_given_to_it(tiny_bundle: Path, tiny_catalogue: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    garment = bundle.open_catalogue(tiny_catalogue).get("blue-jeans")
    encoder = bundle.load_garment_encoder()
    words = encoder(encoder.pixels([garment.image()]))[0].detach().numpy()
    np.testing.assert_allclose(garment.pseudo_words, words, atol=1e-6)


# Versions.


def test_refreshed_is_the_same_until_something_changes(root: Path) -> None:
    catalogue = opened(root, inversion="words")
    assert catalogue.version == live(Root.at(root)).name
    assert catalogue.refreshed() is catalogue
    add(root, "e", "black")
    second = catalogue.refreshed()
    assert second is not catalogue and second.refreshed() is second
    assert second.version != catalogue.version
    assert second.get("e").pseudo_words is not None
    delete(root, "a")
    third = second.refreshed()
    assert len({catalogue.version, second.version, third.version}) == 3
    assert [len(state) for state in (catalogue, second, third)] == [5, 6, 5]
    assert ids(catalogue.search("red", "dresses", 1)) == ids(second.search("red", "dresses", 1)) == ["a"]
    assert "e" not in ids(catalogue.search("black", "dresses", 9))
    assert opened(root).version == third.version


def test_what_is_replaced_answers_as_before(root: Path, tmp_path: Path) -> None:
    catalogue = opened(root)
    queries = [GarmentQuery("red", "dresses", 3), GarmentQuery("blue", "dresses", 9, {"size": "M"})]
    before, garments = catalogue.search_many(queries), list(catalogue)
    made(root, painted(tmp_path / "new", {"a": "black", "z": "red"}), mirror=True)
    fresh = catalogue.refreshed()
    assert fresh.version == live(Root.at(root)).name != catalogue.version
    assert shown(fresh).keys() == {"a", "z"}
    assert ids(fresh.search("red", "dresses", 3)) == ["z", "a"]
    assert catalogue.search_many(queries) == before
    assert list(catalogue) == garments
    assert garments[0].image().getpixel((0, 0)) == (254, 0, 0)


def test_a_build_shows_what_the_changes_showed(root: Path) -> None:
    add(root, "e", "black", attributes={"size": ("M",)})
    add(root, "a", "yellow", "upper_body")
    delete(root, "b")
    catalogue = opened(root, inversion="words")
    made(root, [])
    fresh = catalogue.refreshed()
    assert fresh.version == live(Root.at(root)).name != catalogue.version
    assert shown(fresh) == shown(catalogue)
    assert sorted(fresh, key=lambda garment: garment.id) == sorted(catalogue, key=lambda garment: garment.id)
    for garment in catalogue:
        np.testing.assert_array_equal(fresh.get(garment.id).pseudo_words, garment.pseudo_words)
    assert ids(fresh.search("red", "dresses", 9, {"size": "M"})) == ids(
        catalogue.search("red", "dresses", 9, {"size": "M"})
    )
    delete(root, "e")
    assert shown(fresh.refreshed()).keys() == {"a", "c", "d", "shirt"}


def test_refreshed_is_the_same_after_a_build_too(root: Path) -> None:
    catalogue = opened(root)
    add(root, "e", "black")
    catalogue = catalogue.refreshed()
    made(root, [])
    catalogue = catalogue.refreshed()
    assert catalogue.refreshed() is catalogue


def test_changes_may_be_cleared_meanwhile(root: Path) -> None:
    at = Root.at(root)
    add(root, "e", "black")
    add(root, "f", "yellow")
    catalogue = opened(root)
    made(root, [])
    versions.prune(at, keep=0, grace_s=0)
    assert len(clear(at)) == 1
    delete(root, "c")
    fresh = catalogue.refreshed()
    assert shown(fresh).keys() == {"a", "b", "d", "e", "f", "shirt"}
    assert opened(root).version == fresh.version
    assert catalogue.get("c").id == "c"


def test_changes_cleared_before_a_version_are_not_laid_over_it(root: Path) -> None:
    at = Root.at(root)
    add(root, "e", "black")
    delete(root, "a")
    made(root, [])
    versions.prune(at, keep=0, grace_s=0)
    catalogue = opened(root)
    delete(root, "e")
    assert len(clear(at)) == 2
    made(root, [])
    fresh = catalogue.refreshed()
    assert fresh.version == opened(root).version == live(at).name
    assert shown(fresh).keys() == {"b", "c", "d", "shirt"}


def test_an_older_version_may_be_live_again(root: Path) -> None:
    at = Root.at(root)
    old = live(at).name
    add(root, "e", "black")
    new = made(root, []).version.name
    catalogue = opened(root)
    versions.activate(at, old, replacing=new)
    fresh = catalogue.refreshed()
    assert shown(fresh).keys() == {"a", "b", "c", "d", "e", "shirt"}
    assert fresh.version.startswith(f"{old}+")


@pytest.mark.parametrize("content", [None, b""])
@pytest.mark.parametrize("name", ["manifest.json", "garments.parquet", "embeddings.npy", "pseudo_words.npy"])
def test_a_damaged_new_version_leaves_the_old_catalogue(
    root: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    catalogue = opened(root)
    version = made(root, painted(tmp_path / "new", {"z": "black"})).version
    path = root / version.folder / name
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(ArtifactError, match=re.escape(str(path))):
            catalogue.refreshed()
    assert ids(catalogue.search("red", "dresses", 1)) == ["a"]
    assert len(catalogue) == 5
    path.write_bytes(whole)
    assert len(catalogue.refreshed()) == 6


def test_what_is_live_may_need_another_encoder(root: Path) -> None:
    catalogue = opened(root)
    made(root, [], fingerprints=OTHERS)
    with pytest.raises(ArtifactError, match="built by the encoder other colours, opened with colours"):
        catalogue.refreshed()
    assert len(catalogue) == 5


@pytest.mark.parametrize(
    "name", ["manifest.json", "garments.parquet", "embeddings.npy", "pseudo_words.npy", "index/index.json"]
)
@pytest.mark.parametrize("content", [None, b"", b"[]"])
def test_a_missing_or_damaged_file_is_refused(root: Path, name: str, content: bytes | None) -> None:
    path = root / live(Root.at(root)).folder / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=re.escape(str(path))):
        Catalogue.open(root)


@pytest.mark.parametrize("name", ["garments.parquet", "embeddings.npy", "pseudo_words.npy", "index/index.json"])
def test_a_file_of_the_right_size_and_other_content_is_refused(root: Path, name: str) -> None:
    path = root / live(Root.at(root)).folder / name
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(ArtifactError, match=re.escape(str(path))):
        Catalogue.open(root)


def test_nothing_is_no_catalogue(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="CURRENT: does not exist; no version has been published"):
        Catalogue.open(tmp_path)
    (tmp_path / "CURRENT").write_text("../elsewhere\n")
    with pytest.raises(ArtifactError, match="must be the name of a version"):
        Catalogue.open(tmp_path)


def _shorter(folder: Path) -> None:
    np.save(folder / "embeddings.npy", np.load(folder / "embeddings.npy")[:-1])


def _other_vectors(folder: Path) -> None:
    np.save(folder / "embeddings.npy", np.load(folder / "embeddings.npy")[::-1])


def _double(folder: Path) -> None:
    np.save(folder / "embeddings.npy", np.load(folder / "embeddings.npy").astype(np.float64))


def _no_words(folder: Path) -> None:
    (folder / "pseudo_words.npy").unlink()


def _other_index(folder: Path) -> None:
    vectors = np.eye(5, DIM, dtype=np.float32)
    VectorIndex.build(vectors).save(folder / "index")


def _nothing(folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "manifest", "message"),
    [
        (_shorter, {}, "embeddings.npy: got float32 [4, 64]; must be float32 of 2 dimensions and 5 rows"),
        (_double, {}, "embeddings.npy: got float64 [5, 64]"),
        (_other_vectors, {}, "not the index of these vectors; sample"),
        (_other_index, {}, "not the index of these vectors; sample"),
        (_no_words, {}, "pseudo_words.npy: not a readable array"),
        (_nothing, {"num_garments": 6}, "5 garments; its manifest says 6"),
        (_nothing, {"encoders": {}}, "built by the encoder None, opened with colours"),
        (_nothing, {"encoders": {INVERSION: "colours"}}, "built by the encoder None, opened with colours"),
    ],
)
def test_a_version_that_does_not_fit_itself_is_refused(
    root: Path, tmp_path: Path, change: Callable[[Path], None], manifest: Mapping[str, Any], message: str
) -> None:
    """Publish files that do not fit each other, with a manifest that fits them, and have them refused."""
    at = Root.at(root)
    version = live(at)
    folder = tmp_path / "version"
    shutil.copytree(root / version.folder, folder)
    (folder / "manifest.json").unlink()
    change(folder)
    described = {"num_garments": 5, "encoders": FINGERPRINTS, "changes": {}} | manifest
    catalogue = opened(root)
    publish(at, folder, parent=version.name, **described)
    for open_again in (lambda: opened(root), catalogue.refreshed):
        with pytest.raises(ArtifactError, match=re.escape(message)):
            open_again()


def test_a_remote_catalogue_is_kept_in_a_cache(shop: Path, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    url = f"memory://{tmp_path.name}"
    at = Root.at(url)
    garments = garments_in(shop.with_name("pictures"))
    build(at, garments, load, FINGERPRINTS, work=tmp_path / "work")
    encoder: Any = Colours()
    catalogue = Catalogue.open(url, encoder, "words", tmp_path / "cache")
    assert ids(catalogue.search("blue", "dresses", 1)) == ["c"]
    assert catalogue.get("c").image().size == (32, 32)
    assert [path.name for path in (tmp_path / "cache" / "versions").iterdir()] == [current(at)]
    append(at, changes.GarmentDeleted("c"))
    assert "c" not in shown(catalogue.refreshed())
    for name in ("embeddings.npy", "garments.parquet"):
        store.rm(at.full(f"versions/{current(at)}/{name}"))
    with pytest.raises(ArtifactError, match="is missing; the manifest names it"):
        Catalogue.open(url, encoder, "words", tmp_path / "cache")
    assert ids(catalogue.search("blue", "dresses", 1)) == ["c"]


def test_searches_at_once_find_what_they_find_alone(root: Path) -> None:
    add(root, "e", "black", attributes={"size": ("S",)})
    catalogue = opened(root)
    filters: list[dict[str, Any]] = [{}, {"size": "S"}, {"size": ["M", "L"]}, {"season": "summer"}]
    queries = [GarmentQuery(colour, "dresses", k, wanted) for colour in COLOURS for k in (1, 3) for wanted in filters]
    alone = [catalogue.search_many([query])[0] for query in queries]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda query: catalogue.search_many([query])[0], queries * 4)) == alone * 4
