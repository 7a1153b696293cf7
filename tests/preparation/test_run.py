"""A shop's folder becomes a data set that the reader of Dress Code reads, whatever is wrong with some of its rows."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fashion_rag.catalogue.garments import garments_in
from fashion_rag.data.dresscode import DressCode
from fashion_rag.data.masks import repaint_mask
from fashion_rag.data.pose import KEYPOINT_FRAME
from fashion_rag.demo.world.attributes import chunks
from fashion_rag.demo.world.draw import render_garment
from fashion_rag.demo.world.shop import DOLL_SIZE
from fashion_rag.errors import ArtifactError, InvalidRequest
from fashion_rag.preparation.files import GARMENTS_FILE, NAMES_FILE, SKIPPED_FILE
from fashion_rag.preparation.pictures import OutputForm, Read
from fashion_rag.preparation.run import Prepared, ShopFiles, prepare
from fashion_rag.request import CATEGORIES
from tests.preparation.knowing import NUM_PAIRS, SHAPE, KnowingReader, drawn_pairs, truth_of

Cells = dict[str, str]


@pytest.fixture
def own_shop(drawn_shop: Path, tmp_path: Path) -> ShopFiles:
    """Return a copy of the drawn shop, which a test may change."""
    root = tmp_path / "shop"
    shutil.copytree(drawn_shop, root)
    return ShopFiles(root / "photos", root / "garments", root / "pairs.csv")


def form(root: Path, max_height: int = 1024) -> OutputForm:
    return OutputForm(root, SHAPE, max_height)


def read_rows(path: Path) -> list[Cells]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Sequence[Cells]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def reasons(prepared: Prepared) -> dict[int, str]:
    return {refusal.row: refusal.reason for refusal in prepared.refusals}


def test_the_reader_of_dress_code_reads_what_was_drawn(prepared_data: Path) -> None:
    rows = read_rows(prepared_data / NAMES_FILE)
    names = {(row["kind"], row["category"], row["name"]): row["id"] for row in rows}
    samples = {}
    for phase in ("train", "test"):
        for sample in DressCode(prepared_data, phase, size=KEYPOINT_FRAME):
            samples[sample.person_id] = sample
    assert len(samples) == 3 * NUM_PAIRS
    for pair in drawn_pairs():
        sample = samples[names["photo", pair.category, pair.photo_name]]
        truth = truth_of(pair.photo)
        assert sample.category == pair.category
        assert sample.caption == ", ".join(sorted(chunks(pair.garment)))
        assert sample.garment_id == names["garment", pair.category, pair.garment_name]
        # The label map is written at the size of the window, which is smaller than the frame.
        assert (sample.label_map == truth.label_map).mean() > 0.97
        window = truth.window
        scale = np.array([KEYPOINT_FRAME[1] / window.width, KEYPOINT_FRAME[0] / window.height])
        points = (pair.photo.keypoints - np.array([window.left, window.top])) * scale
        np.testing.assert_allclose(sample.keypoints, points, atol=1e-3)
        # The picture is not stretched: what is drawn at a key point is found there again.
        shown = np.asarray(sample.image, float)
        for joint in (0, 8, 11):
            x, y = pair.photo.keypoints[joint]
            drawn = pair.photo.image[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].mean((0, 1))
            x, y = points[joint]
            found = shown[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3].mean((0, 1))
            assert np.abs(found - drawn).max() < 40


def test_pictures_have_the_shape_of_the_model_and_label_maps_their_size(
    shop: ShopFiles, reader: KnowingReader, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    prepare(shop, reader.networks(), form(root, max_height=100))
    people = sorted(root.glob("*/images/*_0.jpg"))
    assert len(people) == 3 * NUM_PAIRS
    for path in people:
        label_map = path.parent.parent / "label_maps" / path.name.replace("_0.jpg", "_4.png")
        with Image.open(path) as image, Image.open(label_map) as labels:
            assert image.size == labels.size == (75, 100)
            assert labels.mode == "L"
    for path in root.glob("*/images/*_1.jpg"):
        with Image.open(path) as image:
            assert image.size == (75, 100)


def test_a_photo_is_not_enlarged(prepared_data: Path) -> None:
    heights = set()
    for path in prepared_data.glob("*/images/*_0.jpg"):
        with Image.open(path) as image:
            heights.add(image.height)
    assert heights <= {truth_of(pair.photo).window.height for pair in drawn_pairs()}


def test_a_square_garment_gets_a_border_in_its_background_and_keeps_its_shape(prepared_data: Path) -> None:
    names = {row["name"]: row for row in read_rows(prepared_data / NAMES_FILE) if row["kind"] == "garment"}
    pair = next(pair for pair in drawn_pairs() if pair.in_shop.shape == (200, 200, 3))
    row = names[pair.garment_name]
    with Image.open(prepared_data / row["category"] / "images" / f"{row['id']}_1.jpg") as image:
        pixels = np.asarray(image, float)
    assert pixels.shape == (267, 200, 3)
    assert pixels[:30].min() > 250
    # The drawing is 192x144, in the middle of 200x200, which is in the middle of 267x200.
    drawn = np.asarray(render_garment(pair.garment, DOLL_SIZE), float)
    assert np.abs(pixels[37 : 37 + 192, 28 : 28 + 144] - drawn).mean() < 3


def test_a_skirt_is_written_so_that_the_papers_mask_repaints_it(
    shop: ShopFiles, reader: KnowingReader, tmp_path: Path
) -> None:
    pair = next(pair for pair in drawn_pairs() if pair.category == "lower_body")
    truth = truth_of(pair.photo)
    with_skirt = replace(truth, label_map=np.where(truth.label_map == 6, np.uint8(5), truth.label_map))
    is_skirt = with_skirt.label_map == 5
    assert not repaint_mask(with_skirt.label_map, np.zeros((18, 2)), "lower_body", "mask")[is_skirt].all()
    reader.know(shop.photos / pair.photo_name, with_skirt)
    prepare(shop, reader.networks(), form(tmp_path / "data"))
    row = next(row for row in read_rows(tmp_path / "data" / NAMES_FILE) if row["name"] == pair.photo_name)
    samples = [*DressCode(tmp_path / "data", "train", size=KEYPOINT_FRAME)]
    sample = next(sample for sample in samples if sample.person_id == row["id"])
    assert 5 not in sample.label_map
    mask = repaint_mask(sample.label_map, sample.keypoints, "lower_body", "mask")
    assert mask[is_skirt].mean() > 0.97


def test_a_run_says_what_it_did_and_a_second_one_does_nothing(
    shop: ShopFiles, reader: KnowingReader, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    first = prepare(shop, reader.networks(), form(root))
    assert first.refusals == ()
    assert dict(first.num_pairs) == {(s, c): n for c in CATEGORIES for s, n in (("train", 3), ("test", 1))}
    before = contents(root)
    second = prepare(shop, replace(reader.networks(), load=refuse_to_load), form(root))
    assert (first.num_made, first.num_kept) == (6 * NUM_PAIRS, 0)
    assert (second.num_made, second.num_kept, second.num_removed) == (0, 6 * NUM_PAIRS, 0)
    assert second.num_pairs == first.num_pairs
    assert contents(root) == before


def refuse_to_load() -> Read:
    raise AssertionError("there is nothing to read")


def test_a_run_that_was_cut_off_goes_on(
    shop: ShopFiles, reader: KnowingReader, prepared_data: Path, tmp_path: Path
) -> None:
    class Cut(Exception):
        pass

    def progress(phase: str, done: int, total: int) -> None:
        if phase == "preparing pictures" and done > total / 2:
            raise Cut

    with pytest.raises(Cut):
        prepare(shop, reader.networks(), form(tmp_path / "data"), progress=progress)
    num_read = reader.num_read
    assert 0 < num_read < 3 * NUM_PAIRS
    prepare(shop, reader.networks(), form(tmp_path / "data"))
    assert reader.num_read == 3 * NUM_PAIRS
    assert contents(tmp_path / "data") == contents(prepared_data)


def test_a_picture_that_was_half_written_is_made_again(shop: ShopFiles, reader: KnowingReader, own_data: Path) -> None:
    root = own_data
    before = contents(root)
    outcome = next(iter(sorted(root.glob("*/outcomes/*_0.json"))))
    outcome.unlink()
    (outcome.parent.parent / "images" / f"{outcome.stem}.jpg").write_bytes(b"half")
    assert prepare(shop, reader.networks(), form(root)).num_made == 1
    assert contents(root) == before


def test_a_changed_photo_gets_another_id_and_its_old_files_go(
    own_shop: ShopFiles, reader: KnowingReader, own_data: Path
) -> None:
    root = own_data
    before = contents(root)
    pair = drawn_pairs()[0]
    path = own_shop.photos / pair.photo_name
    darker = Image.fromarray(pair.photo.image // 2)
    darker.save(path)
    reader.know(path, truth_of(pair.photo))
    prepared = prepare(own_shop, reader.networks(), form(root))
    assert (prepared.num_made, prepared.num_removed) == (1, 1)
    gone, new = before.keys() - contents(root).keys(), contents(root).keys() - before.keys()
    assert {Path(name).parent.name for name in gone} == {"images", "label_maps", "keypoints", "outcomes"}
    assert len(gone) == len(new) == 4
    # A cache of training knows from this file that it is of other photos.
    assert contents(root)["dresses/train_pairs.txt"] != before["dresses/train_pairs.txt"]


def test_other_networks_read_photos_again_but_no_garments(
    shop: ShopFiles, reader: KnowingReader, own_data: Path
) -> None:
    prepared = prepare(shop, reader.networks("second"), form(own_data))
    assert (prepared.num_made, prepared.num_kept) == (3 * NUM_PAIRS, 3 * NUM_PAIRS)


def test_unusable_rows_are_told_with_row_column_value_and_rule(
    own_shop: ShopFiles, reader: KnowingReader, tmp_path: Path
) -> None:
    rows = read_rows(own_shop.pairs)
    photos = [own_shop.photos / row["photo"] for row in rows]
    truth = truth_of(drawn_pairs()[0].photo)
    reader.know(photos[0], replace(truth, num_persons=0, label_map=np.zeros_like(truth.label_map)))
    reader.know(photos[1], replace(truth, num_persons=2))
    reader.know(photos[2], replace(truth, label_map=np.where(truth.label_map == 7, np.uint8(4), truth.label_map)))
    reader.know(photos[3], replace(truth, keypoints=np.where(np.arange(18)[:, None] == 2, 0.0, truth.keypoints)))
    photos[4].write_bytes(b"no picture")
    photos[5].unlink()
    (own_shop.garments / rows[6]["garment"]).write_bytes(b"no picture")
    rows[7]["split"] = "validation"
    rows[8]["category"] = "hats"
    rows[9]["caption"] = " , "
    rows[10]["photo"] = "../" + rows[10]["photo"]
    write_rows(own_shop.pairs, rows)
    prepared = prepare(own_shop, reader.networks(), form(tmp_path / "data"))
    told = reasons(prepared)
    assert list(told) == list(range(2, 13))
    assert sum(prepared.num_pairs.values()) == 1
    for row, words in (
        (2, ("photo", rows[0]["photo"], "nobody")),
        (3, ("photo", rows[1]["photo"], "2 persons")),
        (4, ("photo", rows[2]["photo"], "dress")),
        (5, ("photo", rows[3]["photo"], "shoulders")),
        (6, ("photo", rows[4]["photo"], "whole picture")),
        (7, ("photo", rows[5]["photo"], "No such file")),
        (8, ("garment", rows[6]["garment"], "whole picture")),
        (9, ("split", "validation", "train, test")),
        (10, ("category", "hats", "upper_body")),
        (11, ("caption", ",", "words")),
        (12, ("photo", "../", "below its folder")),
    ):
        assert all(word in told[row] for word in words), told[row]
    lines = (tmp_path / "data" / SKIPPED_FILE).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"row": row, "reason": reason} for row, reason in told.items()]
    again = prepare(own_shop, reader.networks(), form(tmp_path / "data"))
    assert (again.num_made, again.refusals) == (0, prepared.refusals)


def test_only_where_no_row_can_be_prepared_there_is_an_error(
    own_shop: ShopFiles, reader: KnowingReader, tmp_path: Path
) -> None:
    rows = read_rows(own_shop.pairs)
    for row in rows:
        row["split"] = "never"
    write_rows(own_shop.pairs, rows)
    with pytest.raises(ArtifactError, match=SKIPPED_FILE):
        prepare(own_shop, reader.networks(), form(tmp_path / "data"))
    assert len((tmp_path / "data" / SKIPPED_FILE).read_text().splitlines()) == len(rows)


def test_rows_without_a_category_get_that_of_their_words(
    own_shop: ShopFiles, reader: KnowingReader, tmp_path: Path
) -> None:
    rows = read_rows(own_shop.pairs)
    categories = {row["caption"]: row.pop("category") for row in rows}
    write_rows(own_shop.pairs, rows)
    asked: list[str] = []

    def choose(caption: str) -> str:
        asked.append(caption)
        if caption == rows[0]["caption"]:
            raise InvalidRequest("category", caption, "must be given: it may be dresses or upper_body")
        return categories[caption]

    prepared = prepare(own_shop, replace(reader.networks(), choose_category=choose), form(tmp_path / "data"))
    assert asked == [row["caption"] for row in rows]
    assert list(reasons(prepared)) == [2] and "it may be dresses or upper_body" in reasons(prepared)[2]
    assert sum(prepared.num_pairs.values()) == len(rows) - 1


def test_a_folder_with_files_of_somebody_else_is_left_alone(
    shop: ShopFiles, reader: KnowingReader, tmp_path: Path
) -> None:
    (tmp_path / "upper_body").mkdir()
    (tmp_path / "upper_body" / "train_pairs.txt").write_text("a_0.jpg a_1.jpg\n")
    before = contents(tmp_path)
    with pytest.raises(ArtifactError, match=NAMES_FILE):
        prepare(shop, reader.networks(), form(tmp_path))
    assert contents(tmp_path) == before


def test_the_table_of_garments_becomes_a_catalogue_with_the_shops_names(prepared_data: Path) -> None:
    garments = {garment.id: garment for garment in garments_in(prepared_data / GARMENTS_FILE)}
    assert len(garments) == 3 * NUM_PAIRS
    for pair in drawn_pairs():
        garment = garments[pair.garment_name.removesuffix(".jpg").replace(" ", "-")]
        assert (garment.category, garment.caption) == (pair.category, ", ".join(chunks(pair.garment)))
        assert garment.image().size[0] * 4 == pytest.approx(garment.image().size[1] * 3, abs=4)
