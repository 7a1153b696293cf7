"""The Dress Code layout of the paper-doll world, read back file by file."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fashion_rag.data.dresscode import DressCode, Order
from fashion_rag.demo.world.attributes import DollGarment, chunks, sample_garment, sample_person
from fashion_rag.demo.world.draw import render, render_garment
from fashion_rag.demo.world.layout import write_dresscode
from fashion_rag.errors import InvalidRequest
from fashion_rag.request import CATEGORIES
from tests.golden.golden import Golden

SIZE = (96, 72)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "new"
    write_dresscode(folder, num_pairs=4, seed=7, size=SIZE)
    return folder


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def pairs(path: Path) -> list[list[str]]:
    return [line.split(" ") for line in path.read_text().splitlines()]


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_pair_has_all_its_files(root: Path, category: str) -> None:
    folder = root / category
    paired = pairs(folder / "test_pairs_paired.txt")
    assert len(paired) == 4
    for person, garment in paired:
        number = person.removesuffix("_0.jpg")
        assert garment == f"{number}_1.jpg" and len(number) == 6 and number.isdigit()
        for name in (person, garment):
            with Image.open(folder / "images" / name) as image:
                assert image.format == "JPEG" and image.mode == "RGB" and image.size == (72, 96)
        with Image.open(folder / "label_maps" / f"{number}_4.png") as image:
            assert image.mode == "L" and image.size == (72, 96)
        rows = json.loads((folder / "keypoints" / f"{number}_2.json").read_text())["keypoints"]
        assert np.shape(rows) == (18, 4)


@pytest.mark.parametrize("category", CATEGORIES)
def test_unpaired_gives_each_person_another_garment(root: Path, category: str) -> None:
    paired, unpaired = (pairs(root / category / f"test_pairs_{name}.txt") for name in ("paired", "unpaired"))
    assert [person for person, _ in paired] == [person for person, _ in unpaired]
    assert sorted(garment for _, garment in paired) == sorted(garment for _, garment in unpaired)
    assert all(a[1] != b[1] for a, b in zip(paired, unpaired, strict=True))


def test_files_hold_what_the_renderer_paints(root: Path) -> None:
    rng = np.random.default_rng([7, CATEGORIES.index("dresses")])
    garment = sample_garment(rng, "dresses")
    rendering = render(sample_person(rng, "dresses", garment), SIZE)
    folder = root / "dresses"
    for name, expected in (("000000_0.jpg", rendering.image), ("000000_1.jpg", render_garment(garment, SIZE))):
        error = np.asarray(Image.open(folder / "images" / name)).astype(float) - expected
        assert np.sqrt((error**2).mean()) < 4
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "label_maps" / "000000_4.png")), rendering.label_map)
    rows = np.array(json.loads((folder / "keypoints" / "000000_2.json").read_text())["keypoints"])
    np.testing.assert_allclose(rows[:, :2], rendering.keypoints * 512 / 96, atol=1e-3)
    np.testing.assert_array_equal(rows[:, 3], np.arange(18))


@pytest.mark.parametrize("order", ["paired", "unpaired"])
def test_the_reader_finds_every_sample(root: Path, order: Order) -> None:
    samples = list(DressCode(root, order=order, size=SIZE))
    captions = json.loads((root / "fine_captions.json").read_text())
    assert [sample.category for sample in samples] == [category for category in CATEGORIES for _ in range(4)]
    for sample in samples:
        assert sample.caption == ", ".join(sorted(captions[sample.garment_id]))
        assert sample.garment_path == root / sample.category / "images" / f"{sample.garment_id}_1.jpg"
        assert (sample.person_id == sample.garment_id) == (order == "paired")
        assert len(np.unique(sample.label_map)) > 7


def test_captions_and_attributes_belong_to_the_garments(root: Path) -> None:
    captions = json.loads((root / "fine_captions.json").read_text())
    attributes = json.loads((root / "attributes.json").read_text())
    assert json.loads((root / "coarse_captions.json").read_text()) == {}
    ids = [g.removesuffix("_1.jpg") for c in CATEGORIES for _, g in pairs(root / c / "test_pairs_paired.txt")]
    assert list(captions) == list(attributes) == ids
    assert len(set(ids)) == 12
    garments = [DollGarment(**attributes[number]) for number in ids]
    assert [list(chunks(garment)) for garment in garments] == list(captions.values())
    assert len(set(garments)) == 12


def test_the_same_seed_writes_the_same_files(root: Path, tmp_path: Path) -> None:
    write_dresscode(tmp_path / "same", num_pairs=4, seed=7, size=SIZE)
    write_dresscode(tmp_path / "other", num_pairs=4, seed=8, size=SIZE)
    assert digest(tmp_path / "same") == digest(root)
    name = "upper_body/images/000008_0.jpg"
    assert digest(tmp_path / "other")[name] != digest(root)[name]


def test_phase_categories_and_progress(tmp_path: Path) -> None:
    calls = []
    write_dresscode(
        tmp_path, 3, seed=0, size=SIZE, phase="train", categories=["upper_body"], progress=lambda: calls.append(1)
    )
    assert len(calls) == 3
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"upper_body"}
    assert [path.name for path in (tmp_path / "upper_body").glob("*.txt")] == ["train_pairs.txt"]
    assert len(DressCode(tmp_path, "train", categories=["upper_body"], size=SIZE)) == 3


@pytest.mark.parametrize("num_pairs", [0, 10_000])
def test_more_pairs_than_distinct_garments(tmp_path: Path, num_pairs: int) -> None:
    with pytest.raises(InvalidRequest, match="num_pairs"):
        write_dresscode(tmp_path, num_pairs, seed=0)


def test_files_are_formatted_as_in_the_data_set(root: Path, golden: Golden) -> None:
    for folder in (root, golden.dresscode):
        for name in ("fine_captions.json", "coarse_captions.json"):
            text = (folder / name).read_text()
            assert text == json.dumps(json.loads(text), indent=0)
        for file in folder.glob("*/keypoints/*_2.json"):
            text = file.read_text()
            content = json.loads(text)
            assert list(content) == ["keypoints"] and text == json.dumps(content)
            assert np.shape(content["keypoints"]) == (18, 4)
        lists = list(folder.glob("*/test_pairs_paired.txt"))
        assert lists
        for file in lists:
            text = file.read_text()
            assert text.endswith("jpg\n") and all(len(line.split(" ")) == 2 for line in text.splitlines())
