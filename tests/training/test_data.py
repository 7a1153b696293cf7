"""Tests of what training keeps of a data set: what an edit would see, computed once, for each encoder apart."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fashion_rag.bundle import Bundle
from fashion_rag.data.image import to_tensor
from fashion_rag.data.masks import repaint_mask_for
from fashion_rag.data.pose import KEYPOINT_FRAME, scale_keypoints
from fashion_rag.data.prepare import prepare as prepare_edit
from fashion_rag.data.window import whole
from fashion_rag.errors import ArtifactError
from fashion_rag.pipeline import encode_person
from fashion_rag.request import CompleteRequest
from fashion_rag.training import data
from fashion_rag.training.data import Source, prepare
from fashion_rag.training.objective import TrainingSet
from fashion_rag.weights import read_state, write_state

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def prepared(source: Source, tiny_bundle: Path, work: Path) -> TrainingSet:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "CHUNK", 4)
        patch.setattr(data, "BATCH", 3)
        return prepare(source, Bundle.open(tiny_bundle), work, CPU)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "CHUNK", 4)


def test_a_sample_is_what_an_edit_sees(prepared: TrainingSet, source: Source, tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    vae, size = bundle.load_vae(), bundle.manifest.image_size
    people = source.open((512, 384))
    assert len(prepared) == len(people) == 9
    for row in (0, 5, 8):
        person, rows = people[row], np.array([row])
        image = np.asarray(person.image)
        mask = repaint_mask_for(person.label_map, person.keypoints, person.category, "bounding_box", size, (512, 384))
        points = scale_keypoints(person.keypoints, KEYPOINT_FRAME, (512, 384))
        everywhere = np.ones(image.shape[:2], np.uint8)
        request = CompleteRequest(
            image=image,
            mask=everywhere,
            window=whole(everywhere.shape),
            prompt="x",
            category=person.category,
            keypoints=points,
        )
        photo = prepare_edit(request, bundle.manifest)
        hole = torch.from_numpy(mask)[None, None].float()
        with torch.inference_mode():
            seen = encode_person(vae, photo.image, hole, photo.pose_map, torch.zeros(1))
            mean, _ = vae.encoder(to_tensor(person.image, size)[None]).chunk(2, dim=1)
        np.testing.assert_array_equal(prepared.mask[rows], seen.mask)
        assert 0 < prepared.mask[rows].mean() < 1
        np.testing.assert_allclose(prepared.pose[rows], seen.pose_map, atol=1e-3)
        masked_latents = prepared.scaling_factor * prepared.masked_moments[rows][:, :4].astype(np.float32)
        np.testing.assert_allclose(masked_latents, seen.masked_image_latents, atol=2e-3)
        np.testing.assert_allclose(prepared.moments[rows][:, :4], mean, atol=2e-3)
        assert (prepared.categories[row], prepared.captions[row]) == (person.category, (person.caption,))


def test_garments_are_the_worn_one_then_the_best_retrieved(
    prepared: TrainingSet, source: Source, tiny_bundle: Path
) -> None:
    encoder = Bundle.open(tiny_bundle).load_garment_encoder()
    for row, person in enumerate(source.open((128, 96))):
        retrieved = [path for path in person.retrieved_paths if path != person.garment_path]
        expected = data._hidden([person.garment_path, *retrieved], encoder)
        np.testing.assert_allclose(prepared.hidden[prepared.garments[row]], expected, atol=1e-2)
    assert prepared.garments.shape == (9, 3)
    assert len(np.unique(prepared.garments)) == 9


def test_without_retrieval_files_there_is_the_worn_garment(source: Source, tiny_bundle: Path, tmp_path: Path) -> None:
    alone = prepare(replace(source, retrieval=None), Bundle.open(tiny_bundle), tmp_path, CPU)
    assert alone.garments.tolist() == [[row] for row in range(9)]


def test_what_is_there_is_not_computed_again(
    prepared: TrainingSet, source: Source, tiny_bundle: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, int, int]] = []

    def report(stage: str, step: int, num_steps: int, loss: float) -> None:
        done.append((stage, step, num_steps))

    (folder,) = work.glob("cache-*")
    kept = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {name for name in kept if name.endswith(".npy")} == {
        f"{kind}-{number:04d}.npy" for kind in ("photos", "garments") for number in range(3)
    }
    again = prepare(source, Bundle.open(tiny_bundle), work, CPU, report)
    assert done == []
    np.testing.assert_array_equal(again.moments[np.arange(9)], prepared.moments[np.arange(9)])

    (folder / "photos-0001.npy").unlink()
    monkeypatch.setattr(data, "BATCH", 3)
    prepare(source, Bundle.open(tiny_bundle), work, CPU, report)
    assert done == [("photos", 3, 4), ("photos", 4, 4)]
    changed = {path.name for path in folder.iterdir() if path.stat().st_mtime_ns != kept[path.name]}
    assert changed == {"photos-0001.npy", "photos-0001.json"}


@pytest.mark.parametrize("part", ["vae", "vision_encoder"])
def test_another_encoder_gets_a_cache_of_its_own(source: Source, tiny_bundle: Path, tmp_path: Path, part: str) -> None:
    key = data.cache_key(source, Bundle.open(tiny_bundle))
    changed_bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (weights,) = (changed_bundle / part).glob("*.safetensors")
    write_state(weights, {name: tensor * 2 for name, tensor in read_state(weights).items()})
    assert data.cache_key(source, Bundle.open(changed_bundle)) != key


def test_only_what_is_cached_makes_a_cache_of_its_own(source: Source, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    key = data.cache_key(source, bundle)
    assert data.cache_key(replace(source, mask_type="mask"), bundle) != key
    assert data.cache_key(replace(source, retrieval=None), bundle) != key
    root = shutil.copytree(source.root, tmp_path / "world")
    assert data.cache_key(replace(source, root=root), bundle) == key
    captions = json.loads((root / "fine_captions.json").read_text())
    (root / "fine_captions.json").write_text(json.dumps(captions | {"000000": ["a", "b", "c"]}))
    assert data.cache_key(replace(source, root=root), bundle) != key
    changed_bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    weights = changed_bundle / "unet" / "diffusion_pytorch_model.safetensors"
    write_state(weights, {name: tensor * 2 for name, tensor in read_state(weights).items()})
    assert data.cache_key(source, Bundle.open(changed_bundle)) == key


def test_a_data_set_without_captions_is_refused(source: Source, tiny_bundle: Path, tmp_path: Path) -> None:
    root = shutil.copytree(source.root, tmp_path / "world")
    (root / "fine_captions.json").write_text("{}")
    with pytest.raises(ArtifactError, match="no training pair with a caption"):
        prepare(replace(source, root=root, retrieval=None), Bundle.open(tiny_bundle), tmp_path, CPU)
