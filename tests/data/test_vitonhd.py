import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fashion_rag.data.dresscode import RETRIEVAL_MODEL
from fashion_rag.data.masks import repaint_mask
from fashion_rag.data.vitonhd import LABELS, VitonHD
from fashion_rag.errors import ArtifactError, InvalidRequest

IDS = ("00006_00", "00008_00")
CHUNKS = {"00006_00": ["red top", "long sleeves", "Cotton"], "00008_00": ["blue top", "a neckline", "wool"]}


def write_points(root: Path, person: str, points: list[list[float]]) -> None:
    path = root / f"test/openpose_json/{person}_keypoints.json"
    path.write_text(json.dumps({"people": [{"pose_keypoints_2d": np.ravel(points).tolist()}]}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return two persons, who wear each other's garments in the unpaired order; pictures are 96 wide and 128 high."""
    for name in ("image", "cloth", "image-parse-v3", "openpose_json"):
        (tmp_path / "test" / name).mkdir(parents=True)
    for number, person in enumerate(IDS):
        Image.new("RGB", (96, 128), ("red", "blue")[number]).save(tmp_path / f"test/image/{person}.jpg")
        Image.new("RGB", (96, 128), "white").save(tmp_path / f"test/cloth/{person}.jpg")
        labels = Image.new("P", (96, 128), 5)
        labels.putpalette(list(range(60)))
        labels.save(tmp_path / f"test/image-parse-v3/{person}.png")
        write_points(tmp_path, person, [[point, 2 * point, 0.9] for point in range(25)])
    (tmp_path / "test_pairs.txt").write_text(f"{IDS[0]}.jpg {IDS[1]}.jpg\n{IDS[1]}.jpg {IDS[0]}.jpg\n")
    (tmp_path / "captions.json").write_text(json.dumps(CHUNKS))
    return tmp_path


def test_a_sample_has_the_person_and_the_pair(root: Path) -> None:
    sample = VitonHD(root, "unpaired", size=(32, 24))[0]
    assert (sample.person_id, sample.garment_id, sample.category) == ("00006_00", "00008_00", "upper_body")
    assert sample.caption == "a neckline, blue top, wool"
    assert sample.image.size == (24, 32) and sample.image.getpixel((5, 5))[0] > 200  # type: ignore[index]
    assert sample.label_map.shape == (32, 24) and (sample.label_map == 4).all()
    assert sample.garment_path == root / "test/cloth/00008_00.jpg"
    assert sample.retrieved_paths == ()


def test_paired_keeps_the_garment_that_is_worn(root: Path) -> None:
    data = VitonHD(root, num_chunks=1)
    assert len(data) == 2
    assert [(sample.person_id, sample.garment_id) for sample in data] == [(person, person) for person in IDS]
    assert [sample.caption for sample in data] == ["Cotton", "a neckline"]


def test_points_are_the_18_in_dress_codes_frame(root: Path) -> None:
    points = VitonHD(root)[0].keypoints
    # The middle of the hips, 8, and the feet, 19 to 24, are not among them; 96x128 becomes 384x512.
    assert points[:, 0].tolist() == [4.0 * point for point in range(19) if point != 8]
    assert points[:, 1].tolist() == [8.0 * point for point in range(19) if point != 8]


def test_18_points_and_none_will_do(root: Path) -> None:
    write_points(root, IDS[0], [[point, 0, 0.9] for point in range(18)])
    (root / f"test/openpose_json/{IDS[1]}_keypoints.json").write_text('{"people": []}')
    data = VitonHD(root)
    assert data[0].keypoints[:, 0].tolist() == [4.0 * point for point in range(18)]
    assert not data[1].keypoints.any()


def test_labels_become_dress_codes() -> None:
    # Background, hat, hair, sunglasses, trousers, scarf, skirt; what is exchanged; neck and face; limbs; shoes.
    expected = {0: 0, 1: 1, 2: 2, 4: 3, 9: 6, 11: 17, 12: 5, 5: 4, 6: 4, 7: 4, 10: 11, 13: 11}
    expected |= {14: 14, 15: 15, 16: 12, 17: 13, 18: 9, 19: 10}
    assert {label: LABELS[label] for label in expected} == expected
    assert len(LABELS) == 20


def test_the_mask_rule_repaints_the_garment_and_keeps_the_face(root: Path) -> None:
    labels = np.zeros((128, 96), np.uint8)
    labels[10:30, 38:58] = 13
    labels[40:80, 30:66] = 5
    Image.fromarray(labels).save(root / f"test/image-parse-v3/{IDS[0]}.png")
    write_points(root, IDS[0], [[40 + point, 45, 0.9] for point in range(25)])
    sample = VitonHD(root, size=(512, 384))[0]
    mask = repaint_mask(sample.label_map, sample.keypoints, sample.category)
    assert mask[4 * 60, 4 * 48] == 1
    assert mask[4 * 15, 4 * 48] == 0


def test_retrieval_files_are_as_dress_codes(root: Path) -> None:
    path = root / "retrieval" / RETRIEVAL_MODEL / "test_upper_body_triplet.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"pred_files": {"a neckline, blue top, wool": ["test/cloth/00006_00.jpg"]}}))
    data = VitonHD(root, "unpaired", retrieval=root / "retrieval", num_retrieved=1)
    assert data[0].retrieved_paths == (root / "test/cloth/00006_00.jpg",)


@pytest.mark.parametrize("name", ["test_pairs.txt", "captions.json"])
def test_a_missing_list_is_named_at_once(root: Path, name: str) -> None:
    (root / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        VitonHD(root)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("openpose_json/00006_00_keypoints.json", b'{"people": [{}]}', "pose_keypoints_2d"),
        ("openpose_json/00006_00_keypoints.json", b'{"people": [{"pose_keypoints_2d": [1, 2, 3]}]}', "1 key points"),
        ("image/00006_00.jpg", b"nonsense", "not a readable picture"),
        ("image-parse-v3/00006_00.png", b"nonsense", "not a readable label map"),
    ],
)
def test_a_damaged_file_of_a_person_is_named(root: Path, name: str, content: bytes, fault: str) -> None:
    (root / "test" / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name}.*{fault}"):
        VitonHD(root)[0]


def test_an_unknown_label_is_named(root: Path) -> None:
    Image.new("L", (96, 128), 20).save(root / "test/image-parse-v3/00006_00.png")
    with pytest.raises(ArtifactError, match=r"00006_00\.png: has the label 20; the labels are 0 to 19"):
        VitonHD(root)[0]


def test_arguments_outside_their_range_are_refused(root: Path) -> None:
    with pytest.raises(InvalidRequest, match="num_chunks: got 4"):
        VitonHD(root, num_chunks=4)
    with pytest.raises(InvalidRequest, match="num_retrieved: got 3; must be 0 without"):
        VitonHD(root, num_retrieved=3)
