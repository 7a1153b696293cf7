"""The judge finds the kind, colours and pattern of the right garment on a paper doll, and not of a wrong one."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fashion_rag.demo.world.agreement import DollJudge, as_person, judge_of, read_kind
from fashion_rag.demo.world.attributes import dressed, sample_garment, sample_person
from fashion_rag.demo.world.draw import pattern_maps, render
from fashion_rag.demo.world.layout import write_dresscode
from fashion_rag.demo.world.measure import read_garment
from fashion_rag.errors import ArtifactError
from fashion_rag.evaluation.edits import EditedSample, EditFolder, EvaluationSettings
from fashion_rag.manifest import Manifest
from fashion_rag.request import CATEGORIES

SIZE = (96, 72)
MANIFEST = Manifest("dolls", image_size=SIZE)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agreement") / "world"
    write_dresscode(folder, 12, seed=5, size=SIZE)
    return folder


def edited_samples(root: Path, judge: DollJudge, out: Path, number_later: int) -> list[EditedSample]:
    """Return each sample of the unpaired order, edited perfectly to wear the garment of a later sample.

    number_later: how many samples later in the category that sample stands.
    """
    edits = EditFolder(out, EvaluationSettings(str(root), "the world", order="unpaired"), MANIFEST)
    edited = []
    for number, sample in enumerate(edits.data):
        garment_id = edits.data.pairs[number // 12 * 12 + (number + number_later) % 12].garment_id
        truth = render(dressed(judge.persons[sample.person_id], judge.garments[garment_id]), SIZE).image
        mask = edits.mask(sample)
        picture = np.where(mask[..., None] > 0, truth, np.asarray(sample.image)).astype(np.uint8)
        edited.append(EditedSample(sample, mask, Image.fromarray(picture), ()))
    return edited


def test_what_was_meant_is_found(root: Path, tmp_path: Path) -> None:
    judge = DollJudge(root)
    verdicts = judge(edited_samples(root, judge, tmp_path, number_later=0))
    assert set(verdicts) == {"kind", "colour", "pattern"}
    assert {len(values) for values in verdicts.values()} == {36}
    assert min(np.mean(values) for values in verdicts.values()) > 0.95


def test_what_was_not_meant_is_not_found(root: Path, tmp_path: Path) -> None:
    judge = DollJudge(root)
    worn = edited_samples(root, judge, tmp_path, number_later=1)
    verdicts = judge(worn)
    pairs = [edited.sample.garment_id for edited in worn]
    following = [pairs[number // 12 * 12 + (number + 1) % 12] for number in range(36)]
    for name, values in verdicts.items():
        differing = [
            value
            for value, meant, other in zip(values, pairs, following, strict=True)
            if getattr(judge.garments[meant], name) != getattr(judge.garments[other], name)
        ]
        assert len(differing) > 10
        assert np.mean(differing) < 0.25, name


def test_a_kind_is_read_in_colours_that_were_not_meant() -> None:
    rng = np.random.default_rng(2)
    right = []
    for number in range(30):
        category = CATEGORIES[number % 3]
        person = sample_person(rng, category)
        garment = sample_garment(rng, category)
        image = render(dressed(person, garment), SIZE).image
        reading = read_garment(image, *pattern_maps(dressed(person, garment), category, SIZE))
        mask = np.ones(SIZE, np.uint8)
        right.append(read_kind(image, mask, person, category, reading) == garment.kind)
    assert np.mean(right) == 1


def test_persons_come_back_from_json(root: Path) -> None:
    rng = np.random.default_rng(3)
    for category in CATEGORIES:
        person = sample_person(rng, category)
        assert as_person(json.loads(json.dumps(asdict(person)))) == person
    judge = DollJudge(root)
    drawn = render(judge.persons["000000"], SIZE).image
    stored = np.asarray(Image.open(root / "dresses/images/000000_0.jpg"), dtype=float)
    assert np.sqrt(((stored - drawn) ** 2).mean()) < 4


def test_only_a_drawn_data_set_has_a_judge(root: Path, tmp_path: Path) -> None:
    assert judge_of(tmp_path) is None
    assert isinstance(judge_of(root), DollJudge)
    (tmp_path / "persons.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"persons\.json"):
        judge_of(tmp_path)
