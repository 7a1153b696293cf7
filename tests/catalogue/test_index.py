import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import faiss
import numpy as np
import pytest
from PIL import Image, ImageColor

from fashion_rag.artifacts import write_json
from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.encoder import BATCH_SIZE, RetrievalEncoder
from fashion_rag.catalogue.index import Catalogue
from fashion_rag.catalogue.store import Garment, garments_in
from fashion_rag.errors import ArtifactError, InvalidRequest
from tests import tiny


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path) -> RetrievalEncoder:
    return Bundle.open(tiny_bundle).load_retrieval_encoder()


@pytest.fixture
def folder(tiny_catalogue: Path, tmp_path: Path) -> Path:
    """A copy to change; its pictures stay where they are."""
    return Path(shutil.copytree(tiny_catalogue, tmp_path / "catalogue"))


def pictures_in(folder: Path, colours: dict[str, str], category: str = "dresses") -> list[Garment]:
    (folder / category).mkdir(parents=True)
    for name, colour in colours.items():
        Image.new("RGB", (32, 32), colour).save(folder / category / f"{name}.png")
    return garments_in(folder)


def ids(matches: list[Any]) -> list[str]:
    return [match.garment.id for match in matches]


def test_search_ranks_a_category_by_cosine(tiny_catalogue: Path, encoder: RetrievalEncoder) -> None:
    catalogue = Catalogue.open(tiny_catalogue, encoder)
    for category, colours in tiny.GARMENT_COLOURS.items():
        matches = catalogue.search("a blue garment", category, 4)
        assert set(ids(matches)) == set(colours)
        assert all(match.garment.category == category for match in matches)
        pictures = encoder.encode_images([match.garment.image() for match in matches])
        cosines = pictures @ encoder.encode_texts(["a blue garment"])[0]
        np.testing.assert_allclose([match.score for match in matches], cosines, atol=1e-6)
        assert cosines.tolist() == sorted(cosines, reverse=True)


@pytest.mark.parametrize(("k", "count"), [(1, 1), (3, 3), (4, 4), (100, 4)])
def test_search_gives_as_many_as_there_are(tiny_catalogue: Path, encoder: RetrievalEncoder, k: int, count: int) -> None:
    catalogue = Catalogue.open(tiny_catalogue, encoder)
    matches = catalogue.search("red", "dresses", k)
    assert ids(matches) == ids(catalogue.search("red", "dresses", 4))[:count]


def test_searches_together_are_what_they_are_alone(tiny_catalogue: Path, encoder: RetrievalEncoder) -> None:
    catalogue = Catalogue.open(tiny_catalogue, encoder)
    queries = [("red", "dresses", 2), ("a long blue pair of trousers", "lower_body", 4), ("", "upper_body", 1)] * 13
    alone = [catalogue.search(*query) for query in queries]
    together = catalogue.search_many(queries)
    assert [ids(matches) for matches in together] == [ids(matches) for matches in alone]
    scores = [[match.score for matches in found for match in matches] for found in (together, alone)]
    np.testing.assert_allclose(*scores, atol=1e-6)
    assert catalogue.search_many([]) == []


def test_all_texts_are_encoded_in_one_call(tiny_catalogue: Path, encoder: RetrievalEncoder) -> None:
    counting: Any = Mock(wraps=encoder, fingerprint=encoder.fingerprint)
    Catalogue.open(tiny_catalogue, counting).search_many([("red", "dresses", 2), ("blue", "lower_body", 1)])
    counting.encode_texts.assert_called_once_with(["red", "blue"])


class ColourEncoder:
    """Stands in for the real encoder, so that equal pictures have equal vectors to the last digit."""

    dim = 3
    fingerprint = "colours"

    def encode_images(self, images: list[Image.Image]) -> np.ndarray:
        return np.array([image.getpixel((0, 0)) for image in images], np.float32) / 255

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        return np.array([ImageColor.getrgb(text) for text in texts], np.float32) / 255


def test_equal_garments_come_by_id(tmp_path: Path) -> None:
    encoder: Any = ColourEncoder()
    names = [f"g{index:02}" for index in range(2 * BATCH_SIZE)]
    colours = {name: ("black", "red", "blue")[index % 3] for index, name in enumerate(names)}
    garments = pictures_in(tmp_path / "pictures", colours)
    catalogue = Catalogue.build(garments[::-1], encoder, tmp_path / "catalogue")
    blue, rest = names[2::3], [name for name in names if colours[name] != "blue"]
    for k in (1, 2, 5, len(blue), len(blue) + 3, len(names)):
        assert ids(catalogue.search("blue", "dresses", k)) == [*blue, *rest][:k]


@pytest.mark.parametrize(
    ("category", "k", "field"),
    [("shoes", 1, "category"), ("", 1, "category"), ("dresses", 0, "num_garments"), ("dresses", -1, "num_garments")],
)
def test_a_search_that_cannot_be_is_refused(
    tiny_catalogue: Path, encoder: RetrievalEncoder, category: str, k: int, field: str
) -> None:
    catalogue = Catalogue.open(tiny_catalogue, encoder)
    for queries in ([("red", category, k)], [("red", "dresses", 1), ("red", category, k)]):
        with pytest.raises(InvalidRequest) as caught:
            catalogue.search_many(queries)
        assert caught.value.field == field


def test_a_category_without_garments_has_no_matches(tmp_path: Path, encoder: RetrievalEncoder) -> None:
    catalogue = Catalogue.build(pictures_in(tmp_path / "pictures", {"a": "red"}), encoder, tmp_path / "catalogue")
    assert catalogue.search("red", "lower_body", 3) == []
    found = catalogue.search_many([("red", "lower_body", 3), ("red", "dresses", 3)])
    assert [ids(matches) for matches in found] == [[], ["a"]]


def test_get_finds_by_id_without_an_encoder(tiny_catalogue: Path) -> None:
    catalogue = Catalogue.open(tiny_catalogue)
    assert len(catalogue) == len(list(catalogue)) == 12
    garment = catalogue.get("blue-jeans")
    assert (garment.category, garment.caption) == ("lower_body", "blue jeans")
    assert garment.image().getpixel((24, 32)) == (0, 0, 255)
    with pytest.raises(InvalidRequest, match="garment_ids: got 'no-such'; must name garments of the catalogue"):
        catalogue.get("no-such")


def test_the_version_is_that_of_the_garments_and_their_pictures(tmp_path: Path) -> None:
    encoder: Any = ColourEncoder()

    def version(name: str, colour: str, category: str = "dresses", caption: str = "", file: str = "a") -> str:
        (garment,) = pictures_in(tmp_path / name / "pictures", {file: colour}, category)
        garment = replace(garment, id="a", caption=caption)
        folder = tmp_path / name / "catalogue"
        built = Catalogue.build([garment], encoder, folder)
        assert built.version == Catalogue.open(folder).version
        return built.version

    first = version("first", "red")
    assert version("same", "red") == first
    others = [
        version("repainted", "blue"),
        version("moved", "red", category="lower_body"),
        version("renamed", "red", caption="red"),
        version("elsewhere", "red", file="b"),
    ]
    assert len({first, *others}) == 5


def test_build_tells_its_progress_and_replaces_the_earlier_version(tmp_path: Path, encoder: RetrievalEncoder) -> None:
    calls: list[None] = []
    folder = tmp_path / "catalogue"
    Catalogue.build(pictures_in(tmp_path / "one", {"a": "red", "b": "blue"}), encoder, folder)
    garments = pictures_in(tmp_path / "two", {"c": "red"}, "upper_body")
    built = Catalogue.build(garments, encoder, folder, progress=lambda: calls.append(None))
    assert len(calls) == 1
    assert [garment.id for garment in built] == [garment.id for garment in Catalogue.open(folder)] == ["c"]
    assert sorted(path.name for path in folder.iterdir()) == ["garments.json", "manifest.json", "upper_body.faiss"]


def test_a_picture_that_cannot_be_read_leaves_the_earlier_version(folder: Path, encoder: RetrievalEncoder) -> None:
    garments = list(Catalogue.open(folder))
    bad = folder.parent / "bad.jpg"
    bad.write_bytes(b"no picture")
    with pytest.raises(ArtifactError, match="garment bad: image"):
        Catalogue.build([*garments, Garment("bad", "dresses", "", bad)], encoder, folder)
    assert len(Catalogue.open(folder, encoder)) == 12
    assert sorted(path.name for path in folder.parent.iterdir()) == ["bad.jpg", "catalogue"]


def test_two_garments_of_an_id_are_refused(tmp_path: Path, encoder: RetrievalEncoder) -> None:
    (garment,) = pictures_in(tmp_path / "pictures", {"a": "red"})
    with pytest.raises(ArtifactError, match="garment a: is both"):
        Catalogue.build([garment, garment], encoder, tmp_path / "catalogue")


def test_another_encoder_is_refused(tiny_catalogue: Path, encoder: RetrievalEncoder, tmp_path: Path) -> None:
    other = Bundle.open(tiny.make_tiny_bundle(tmp_path / "other", seed=1)).load_retrieval_encoder()
    message = f"built by the encoder {encoder.fingerprint}, opened with {other.fingerprint}"
    with pytest.raises(ArtifactError, match=message):
        Catalogue.open(tiny_catalogue, other)


@pytest.mark.parametrize("name", ["manifest.json", "garments.json", "dresses.faiss"])
@pytest.mark.parametrize("content", [None, b"", b"[]"])
def test_a_missing_or_damaged_file_is_refused(folder: Path, name: str, content: bytes | None) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=re.escape(str(folder))):
        Catalogue.open(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version is 2; must be 1"),
        ({"num_garments": 13}, "12 garments; the manifest says 13"),
        ({"dim": 17}, "an IndexFlatIP of 4 vectors [17]"),
        ({"colour": "red"}, "must have exactly the keys"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    write_json(folder / "manifest.json", manifest | changes)
    with pytest.raises(ArtifactError, match=re.escape(message)):
        Catalogue.open(folder)


@pytest.mark.parametrize(("kind", "count"), [(faiss.IndexFlatL2, 4), (faiss.IndexFlatIP, 3)])
def test_an_index_of_another_kind_or_length_is_refused(folder: Path, kind: Any, count: int) -> None:
    index = kind(16)
    index.add(np.zeros((count, 16), np.float32))
    faiss.write_index(index, str(folder / "dresses.faiss"))
    with pytest.raises(ArtifactError, match=re.escape("expected an IndexFlatIP of 4 vectors [16]")):
        Catalogue.open(folder)
