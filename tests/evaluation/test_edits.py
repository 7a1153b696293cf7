"""Edits in a folder: what is asked of the editor, what is kept, and that a second run makes only what is missing."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fashion_rag.catalogue.garments import Garment
from fashion_rag.data.dresscode import RETRIEVAL_MODEL
from fashion_rag.errors import ArtifactError, InvalidRequest
from fashion_rag.evaluation.editors import Edited
from fashion_rag.evaluation.edits import EditFolder, EvaluationSettings
from fashion_rag.manifest import Manifest
from fashion_rag.request import EditRequest, Template
from tests.evaluation.conftest import Painter


def make(edits: EditFolder, painter: Painter, batch_size: int = 2) -> list[tuple[int, int]]:
    calls: list[tuple[int, int]] = []
    edits.make(painter, batch_size, lambda done, total: calls.append((done, total)))
    return calls


def pictures(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


def test_every_sample_gets_a_picture_in_its_category(
    tmp_path: Path, settings: EvaluationSettings, manifest: Manifest
) -> None:
    calls = make(EditFolder(tmp_path / "out", replace(settings, order="unpaired"), manifest), Painter())
    assert calls == [(0, 9), (2, 9), (4, 9), (6, 9), (8, 9), (9, 9)]
    names = ["dresses/000000_000001.png", "dresses/000001_000002.png", "dresses/000002_000000.png"]
    assert pictures(tmp_path / "out")[:3] == names
    assert len(pictures(tmp_path / "out")) == 9


def test_what_is_asked_follows_the_sample_and_the_settings(
    tmp_path: Path, settings: EvaluationSettings, manifest: Manifest
) -> None:
    settings = replace(settings, num_retrieved=2, num_chunks=1, guidance_scale=3.0, template=Template.GARMENTS)
    painter = Painter()
    edits = EditFolder(tmp_path / "out", settings, manifest)
    make(edits, painter)
    for request, sample in zip(painter.asked, edits.data, strict=True):
        assert (request.prompt, request.category) == (sample.caption, sample.category)
        assert "," not in request.prompt
        assert (request.num_garments, request.num_inference_steps, request.guidance_scale) == (2, 2, 3.0)
        np.testing.assert_array_equal(request.image, np.asarray(sample.image))
        assert request.keypoints is not None
        np.testing.assert_allclose(request.keypoints, sample.keypoints / 8)
        assert request.image.shape[:2] == request.mask.shape == manifest.image_size


def test_a_seed_depends_on_the_sample_and_the_settings_seed_alone(
    tmp_path: Path, settings: EvaluationSettings, manifest: Manifest
) -> None:
    def seeds(name: str, batch_size: int = 2, **changes: object) -> dict[bytes, int]:
        painter = Painter()
        make(EditFolder(tmp_path / name, replace(settings, **changes), manifest), painter, batch_size)  # type: ignore[arg-type]
        return {request.image.tobytes(): request.seed for request in painter.asked}

    first = seeds("first")
    assert len(set(first.values())) == 9
    assert seeds("same", batch_size=7, num_retrieved=3, steps=4) == first
    assert not set(seeds("other", seed=1).values()) & set(first.values())


def test_only_what_is_missing_is_made(tmp_path: Path, settings: EvaluationSettings, manifest: Manifest) -> None:
    make(EditFolder(tmp_path / "out", settings, manifest), Painter())
    kept = tmp_path / "out/dresses/000000_000000.png"
    before = kept.stat().st_mtime_ns
    (tmp_path / "out/lower_body/000004_000004.png").unlink()
    painter = Painter()
    edits = EditFolder(tmp_path / "out", settings, manifest)
    assert make(edits, painter) == [(8, 9), (9, 9)]
    assert [request.category for request in painter.asked] == ["lower_body"]
    assert kept.stat().st_mtime_ns == before
    assert len(edits.made()) == 9


def test_what_is_half_written_is_no_picture(
    tmp_path: Path, settings: EvaluationSettings, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(path: Path, target: Path) -> Path:
        if path.name.endswith(".png.part"):
            raise KeyboardInterrupt
        return rename(path, target)

    rename = Path.replace
    edits = EditFolder(tmp_path / "out", settings, manifest)
    monkeypatch.setattr(Path, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        make(edits, Painter())
    assert edits.made() == []


def test_edits_of_other_settings_are_refused(tmp_path: Path, settings: EvaluationSettings, manifest: Manifest) -> None:
    EditFolder(tmp_path / "out", settings, manifest)
    with pytest.raises(InvalidRequest, match=r"out: .* same settings; model is 'painter' there, steps is 2 there"):
        EditFolder(tmp_path / "out", replace(settings, steps=50, model="another"), manifest)


def test_more_categories_and_a_higher_limit_go_on_in_the_same_folder(
    tmp_path: Path, settings: EvaluationSettings, manifest: Manifest
) -> None:
    make(EditFolder(tmp_path / "out", settings, manifest, ["upper_body"], limit=1), Painter())
    assert pictures(tmp_path / "out") == ["upper_body/000006_000006.png"]
    painter = Painter()
    make(EditFolder(tmp_path / "out", settings, manifest, ["upper_body", "dresses"], limit=2), painter)
    assert [request.category for request in painter.asked] == ["dresses", "dresses", "upper_body"]


def test_an_outcome_has_the_sample_its_mask_the_picture_and_the_garments(
    tmp_path: Path, settings: EvaluationSettings, manifest: Manifest
) -> None:
    painter = Painter()
    edits = EditFolder(tmp_path / "out", replace(settings, num_retrieved=2), manifest, ["dresses"])
    make(edits, painter)
    edited = edits.edited_sample(edits.made()[1], painter)
    assert (edited.sample.person_id, edited.picture.mode) == ("000001", "RGB")
    np.testing.assert_array_equal(edited.mask, painter.asked[1].mask)
    assert (np.asarray(edited.picture)[edited.mask > 0] == (255, 0, 0)).all()
    assert [garment.getpixel((0, 0)) for garment in edited.garments] == [(255, 0, 0), (0, 128, 0)]


def test_a_picture_that_is_none_of_ours_is_named(
    tmp_path: Path, settings: EvaluationSettings, manifest: Manifest
) -> None:
    edits = EditFolder(tmp_path / "out", settings, manifest, ["dresses"], limit=1)
    make(edits, Painter())
    Image.new("RGB", (48, 64)).save(tmp_path / "out/dresses/000000_000000.png")
    with pytest.raises(ArtifactError, match=r"000000_000000\.png: not an edit of an evaluation"):
        edits.edited_sample(edits.made()[0], Painter())


def test_a_sample_whose_garment_is_not_in_the_photo_gets_no_picture(
    tmp_path: Path, world: Path, settings: EvaluationSettings, manifest: Manifest
) -> None:
    root = tmp_path / "world"
    shutil.copytree(world, root)
    Image.new("L", (48, 64)).save(root / "lower_body/label_maps/000003_4.png")
    edits = EditFolder(tmp_path / "out", replace(settings, root=str(root)), manifest, ["lower_body"])
    assert make(edits, Painter(), batch_size=1)[-1] == (3, 3)
    assert edits.made() == [1, 2]


def test_garments_come_from_the_retrieval_files_where_there_are_any(
    tmp_path: Path, world: Path, settings: EvaluationSettings, manifest: Manifest
) -> None:
    captions = {
        sample.garment_id: sample.caption
        for sample in EditFolder(tmp_path / "any", settings, manifest, ["dresses"]).data
    }
    listed = [f"dresses/cleaned_inshop_imgs/{name}_1_cleaned.jpg" for name in ("000002", "000001")]
    path = tmp_path / "retrieval" / RETRIEVAL_MODEL / "test_dresses_triplet.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"pred_files": dict.fromkeys(captions.values(), listed)}))
    settings = replace(settings, retrieval=str(tmp_path / "retrieval"), num_retrieved=2)
    painter = Painter()
    edits = EditFolder(tmp_path / "out", settings, manifest, ["dresses"])
    make(edits, painter)
    assert [[garment.id for garment in row] for row in painter.garments] == [["000002", "000001"]] * 3
    shown = edits.edited_sample(0, painter).garments
    assert [np.asarray(one).tobytes() for one in shown] == [
        np.asarray(Image.open(world / f"dresses/images/{name}_1.jpg")).tobytes() for name in ("000002", "000001")
    ]


def test_settings_that_do_not_fit_are_refused(settings: EvaluationSettings, tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises(InvalidRequest, match="num_retrieved: got 4; must be from 0 to 3"):
        replace(settings, num_retrieved=4)
    with pytest.raises(InvalidRequest, match="num_retrieved: got 1; must be 0 with the template caption"):
        replace(settings, template=Template.CAPTION)
    with pytest.raises(InvalidRequest, match=r"categories: .* must be upper_body in the layout vitonhd"):
        EditFolder(tmp_path / "out", replace(settings, layout="vitonhd"), manifest)


class Finder(Painter):
    """A painter that finds its masks, which it does in all photos but those of one sum of levels."""

    def __init__(self, blind: int) -> None:
        super().__init__()
        self.blind = blind

    def edit(self, requests: Sequence[EditRequest], garments: Sequence[Sequence[Garment]] | None) -> list[Edited]:
        assert all(request.mask is None and request.keypoints is None for request in requests)
        if any(int(request.image.sum()) == self.blind for request in requests):
            raise InvalidRequest("image", "a photo with hair", "must show the part to dress")
        everywhere = np.ones(requests[0].image.shape[:2], np.uint8)
        return super().edit([replace(request, mask=everywhere) for request in requests], garments)


def test_masks_may_be_found_and_photos_without_one_are_told(
    tmp_path: Path, settings: EvaluationSettings, manifest: Manifest
) -> None:
    edits = EditFolder(tmp_path / "out", replace(settings, mask_from="parser", mask_type="mask"), manifest, ["dresses"])
    finder = Finder(blind=int(np.asarray(edits.data[1].image).sum()))
    not_found = edits.make(finder, 3, lambda done, total: None)
    assert not_found == ["dresses/000001: image: got 'a photo with hair'; must show the part to dress"]
    assert edits.made() == [0, 2]
    assert {request.mask_type for request in finder.asked} == {"mask"}
    assert [request.category for request in finder.asked] == ["dresses"] * 2
    # What is measured lies where the data set says, so that figures of found and given masks can be compared.
    np.testing.assert_array_equal(edits.edited_sample(0, finder).mask, edits.mask(edits.data[0]))


def test_a_fault_of_the_photo_is_raised_where_masks_are_given(
    tmp_path: Path, settings: EvaluationSettings, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(requests: object, garments: object) -> list[Edited]:
        raise InvalidRequest("image", "a photo", "must be whole")

    painter = Painter()
    monkeypatch.setattr(painter, "edit", refuse)
    with pytest.raises(InvalidRequest, match="must be whole"):
        make(EditFolder(tmp_path / "out", settings, manifest), painter)


def test_edits_from_before_masks_could_be_found_go_on(
    tmp_path: Path, settings: EvaluationSettings, manifest: Manifest
) -> None:
    make(EditFolder(tmp_path / "out", settings, manifest), Painter())
    path = tmp_path / "out" / "settings.json"
    stored = json.loads(path.read_text())
    del stored["mask_from"]
    path.write_text(json.dumps(stored))
    assert len(EditFolder(tmp_path / "out", settings, manifest).made()) == 9
    with pytest.raises(InvalidRequest, match="mask_from is 'given' there"):
        EditFolder(tmp_path / "out", replace(settings, mask_from="parser"), manifest)
