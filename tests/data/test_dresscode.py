import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fashion_rag.data.dresscode import RETRIEVAL_MODEL, DressCode, InShopGarment, garments
from fashion_rag.errors import ArtifactError, InvalidRequest

CHUNKS = {"10": ["red top", "long sleeves", "Cotton"], "11": ["blue top", "a neckline", "wool"]}


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path) -> Path:
    """Return two persons and two garments, of which one has a cleaned picture, in upper_body and dresses."""
    for category, ids in (("upper_body", ("10", "11")), ("dresses", ("20",))):
        folder = tmp_path / category
        for name in ("images", "label_maps", "cleaned_inshop_imgs"):
            (folder / name).mkdir(parents=True)
        for number in ids:
            Image.new("RGB", (48, 64), "red").save(folder / "images" / f"{number}_0.jpg")
            Image.new("L", (48, 64), 4).save(folder / "label_maps" / f"{number}_4.png")
            Image.new("RGB", (48, 64), "blue").save(folder / "images" / f"{number}_1.jpg")
            write_json(folder / "keypoints" / f"{number}_2.json", {"keypoints": [[3, 4, 0.9, 1]] * 18})
        for order, shift in (("paired", 0), ("unpaired", 1)):
            pairs = [(person, ids[(place + shift) % len(ids)]) for place, person in enumerate(ids)]
            text = "".join(f"{person}_0.jpg\t{garment}_1.jpg\n" for person, garment in pairs)
            (folder / f"test_pairs_{order}.txt").write_text(text)
    Image.new("RGB", (48, 64)).save(tmp_path / "upper_body/cleaned_inshop_imgs/10_1_cleaned.jpg")
    write_json(tmp_path / "fine_captions.json", CHUNKS | {"20": ["dress", "two"]})
    write_json(tmp_path / "coarse_captions.json", {"20": ["a dress", "with dots", "no sleeves"]})
    return tmp_path


def test_captions_and_retrieved_garments_equal_the_published_ones(golden):
    expected = {
        entry["im_name"]: (entry["category"], entry["c_name"], entry["captions"], entry["retrieved"])
        for entry in golden.samples
    }
    (num_retrieved,) = {len(retrieved) for *_, retrieved in expected.values()}
    root = golden.dresscode
    data = DressCode(root, size=(64, 48), retrieval=root / "retrieval", num_retrieved=num_retrieved)
    assert len(data) == len(expected) > 0
    for sample in data:
        category, garment, caption, retrieved = expected[f"{sample.person_id}_0.jpg"]
        assert (sample.category, f"{sample.garment_id}_1.jpg", sample.caption) == (category, garment, caption)
        assert [str(path.relative_to(data.root)) for path in sample.retrieved_paths] == retrieved
        assert sample.image.size == (48, 64) and sample.image.mode == "RGB"
        assert sample.label_map.shape == (64, 48) and sample.label_map.max() < 18
    assert [sample.category for sample in data] == sorted(sample.category for sample in data)


def test_a_sample_has_the_person_and_the_pair(root):
    sample = DressCode(root, categories=["upper_body"], size=(32, 24))[0]
    assert (sample.person_id, sample.garment_id, sample.category) == ("10", "10", "upper_body")
    assert sample.caption == "Cotton, long sleeves, red top"
    assert sample.image.size == (24, 32) and sample.image.getpixel((5, 5))[0] > 200
    assert sample.label_map.shape == (32, 24) and (sample.label_map == 4).all()
    assert sample.keypoints.shape == (18, 2) and sample.keypoints[0].tolist() == [3, 4]
    assert sample.garment_path == root / "upper_body/cleaned_inshop_imgs/10_1_cleaned.jpg"
    assert sample.retrieved_paths == ()


def test_unpaired_gives_another_garment_and_an_uncleaned_one_its_plain_picture(root):
    sample = DressCode(root, order="unpaired", categories=["upper_body"])[0]
    assert (sample.person_id, sample.garment_id, sample.caption) == ("10", "11", "a neckline, blue top, wool")
    assert sample.garment_path == root / "upper_body/images/11_1.jpg"


def test_fewer_chunks_make_a_shorter_caption(root):
    assert DressCode(root, categories=["upper_body"], num_chunks=1)[0].caption == "Cotton"


def test_coarse_captions_override_and_short_fine_ones_do_not_count(root):
    data = DressCode(root, categories=["upper_body", "dresses"])
    assert [sample.person_id for sample in data] == ["20", "10", "11"]
    assert data[0].caption == "a dress, no sleeves, with dots"
    write_json(root / "coarse_captions.json", {})
    assert [sample.person_id for sample in DressCode(root, categories=["upper_body", "dresses"])] == ["10", "11"]


def test_a_persons_second_pair_is_left_out(root):
    pairs = root / "upper_body/test_pairs_paired.txt"
    pairs.write_text("10_0.jpg 11_1.jpg\n10_0.jpg 10_1.jpg\n\n11_0.jpg 11_1.jpg\n")
    data = DressCode(root, categories=["upper_body"])
    assert [(sample.person_id, sample.garment_id) for sample in data] == [("10", "11"), ("11", "11")]


def test_training_pairs_have_one_file(root):
    (root / "upper_body/train_pairs.txt").write_text("11_0.jpg 10_1.jpg\n")
    assert DressCode(root, phase="train", categories=["upper_body"])[0].person_id == "11"


def test_palette_label_maps_are_read_as_indices(root):
    labels = Image.new("P", (48, 64), 7)
    labels.putpalette(list(range(60)))
    labels.save(root / "upper_body/label_maps/10_4.png")
    assert (DressCode(root, categories=["upper_body"])[0].label_map == 7).all()


def test_retrieved_garments_are_the_first_of_the_captions_list(root):
    listed = [f"upper_body/cleaned_inshop_imgs/{number}_1_cleaned.jpg" for number in ("11", "10")]
    retrieval = root / "retrieval"
    path = retrieval / RETRIEVAL_MODEL / "test_upper_body_double.json"
    write_json(path, {"pred_files": {"Cotton, long sleeves": listed}})
    data = DressCode(root, categories=["upper_body"], num_chunks=2, retrieval=retrieval, num_retrieved=2)
    assert data[0].retrieved_paths == (root / "upper_body/images/11_1.jpg", root / listed[1])
    with pytest.raises(ArtifactError, match="0 garments for 'a neckline, blue top'; 2 are needed"):
        data[1]


def test_pictures_are_read_when_a_sample_is(root):
    data = DressCode(root, categories=["upper_body"])
    (root / "upper_body/images/11_0.jpg").unlink()
    assert data[0].person_id == "10"
    with pytest.raises(ArtifactError, match=r"upper_body/images/11_0\.jpg"):
        data[1]
    with pytest.raises(IndexError):
        data[2]


@pytest.mark.parametrize("name", ["fine_captions.json", "coarse_captions.json", "upper_body/test_pairs_paired.txt"])
def test_a_missing_list_is_named_at_once(root, name):
    (root / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        DressCode(root, categories=["upper_body"])


@pytest.mark.parametrize("name", ["label_maps/10_4.png", "keypoints/10_2.json", "images/10_0.jpg"])
def test_a_missing_or_damaged_file_of_a_person_is_named(root, name):
    path = root / "upper_body" / name
    for damage in (lambda: path.write_bytes(b"nonsense"), path.unlink):
        damage()
        with pytest.raises(ArtifactError, match=name):
            DressCode(root, categories=["upper_body"])[0]


def test_files_of_the_wrong_kind_are_named(root):
    data = DressCode(root, categories=["upper_body"])
    write_json(root / "upper_body/keypoints/10_2.json", {"keypoints": [[1, 2, 3, 4]]})
    with pytest.raises(ArtifactError, match=r"10_2\.json: key points of shape \(1, 4\)"):
        data[0]
    Image.new("RGB", (48, 64)).save(root / "upper_body/label_maps/11_4.png")
    with pytest.raises(ArtifactError, match=r"11_4\.png: .*8-bit grey or palette"):
        data[1]
    (root / "upper_body/test_pairs_paired.txt").write_text("10_0.jpg\n")
    with pytest.raises(ArtifactError, match=r"test_pairs_paired\.txt, line 1"):
        DressCode(root, categories=["upper_body"])
    write_json(root / "fine_captions.json", [])
    with pytest.raises(ArtifactError, match=r"fine_captions\.json: holds a list"):
        DressCode(root, categories=["upper_body"])


def test_arguments_outside_their_range_are_refused(root):
    with pytest.raises(InvalidRequest, match="num_chunks: got 4"):
        DressCode(root, num_chunks=4)
    with pytest.raises(InvalidRequest, match=r"categories: got \['hats'\]"):
        DressCode(root, categories=["dresses", "hats"])
    with pytest.raises(InvalidRequest, match="num_retrieved: got 3; must be 0 without"):
        DressCode(root, num_retrieved=3)


def test_garments_are_listed_once_with_caption_and_picture(root):
    pairs = root / "upper_body/test_pairs_paired.txt"
    pairs.write_text(pairs.read_text() + "12_0.jpg 10_1.jpg\n")
    write_json(root / "coarse_captions.json", {})
    assert list(garments(root, categories=["upper_body", "dresses"])) == [
        InShopGarment("20", "dresses", "", root / "dresses/images/20_1.jpg"),
        InShopGarment(
            "10",
            "upper_body",
            "Cotton, long sleeves, red top",
            root / "upper_body/cleaned_inshop_imgs/10_1_cleaned.jpg",
        ),
        InShopGarment("11", "upper_body", "a neckline, blue top, wool", root / "upper_body/images/11_1.jpg"),
    ]
    (root / "dresses/images/20_1.jpg").unlink()
    with pytest.raises(ArtifactError, match=r"20_1_cleaned\.jpg: no such garment picture"):
        list(garments(root, categories=["dresses"]))


def test_labels_are_not_interpolated(root):
    labels = np.zeros((64, 48), np.uint8)
    labels[:, 24:] = 15
    Image.fromarray(labels).save(root / "upper_body/label_maps/10_4.png")
    assert set(np.unique(DressCode(root, categories=["upper_body"], size=(30, 21))[0].label_map)) == {0, 15}
