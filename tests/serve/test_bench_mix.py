"""Tests that planned edits follow their mix, their seed and their files."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fashion_rag.data.pose import parse_keypoints
from fashion_rag.errors import InvalidRequest
from fashion_rag.manifest import Manifest
from fashion_rag.request import CATEGORIES
from serve.bench.drawn import draw_photos, drawn_prompts
from serve.bench.mix import EditMix, Planned, draw, poisson, read_prompts, read_trace, write_trace
from serve.http.forms import EditForm
from tests.tiny import MANIFEST

PROMPTS = {category: [f"red {category}", f"blue {category}"] for category in CATEGORIES}


def plan(number: int = 2000, seed: int = 0, **fields: Any) -> list[Planned]:
    return draw(EditMix(PROMPTS, **fields), [float(second) for second in range(number)], seed)


def share(planned: list[Planned], name: str, value: object) -> float:
    return sum(getattr(edit, name) == value for edit in planned) / len(planned)


def test_arrivals_are_a_poisson_process() -> None:
    arrivals = poisson(4.0, 1000.0, seed=3)
    assert arrivals[-1] < 1000
    gaps = [after - before for before, after in pairwise(arrivals)]
    assert min([arrivals[0], *gaps]) > 0
    # An exponential distribution has the same mean and deviation.
    assert np.mean(gaps) == pytest.approx(0.25, rel=0.05)
    assert np.std(gaps) == pytest.approx(0.25, rel=0.05)


def test_arrivals_at_twice_the_rate_are_the_same_in_half_the_time() -> None:
    slow, fast = poisson(1.0, 100.0, seed=5), poisson(2.0, 50.0, seed=5)
    assert fast == pytest.approx([at_s / 2 for at_s in slow])
    assert poisson(1.0, 100.0, seed=6) != slow


def test_the_same_seed_gives_the_same_edits_whenever_they_arrive() -> None:
    mix = EditMix(PROMPTS, steps=(10, 50), num_garments=(0, 3), unguided=0.5, repeat_person=0.5, stream=0.5)
    early, late = (draw(mix, arrivals, 7) for arrivals in (range(50), range(100, 200)))
    assert [edit.form() for edit in early] == [edit.form() for edit in late[:50]]
    assert [edit.at_s for edit in early] == list(range(50))
    assert [edit.form() for edit in draw(mix, range(50), 8)] != [edit.form() for edit in early]


def test_edits_are_drawn_as_the_mix_says() -> None:
    planned = plan(
        categories=("dresses", "dresses", "upper_body"),
        steps=(10, 20, 50),
        num_garments=(0, 1),
        unguided=0.2,
        stream=0.7,
        deadline_s=9.0,
    )
    assert share(planned, "category", "dresses") == pytest.approx(2 / 3, abs=0.05)
    assert share(planned, "steps", 50) == pytest.approx(1 / 3, abs=0.05)
    assert share(planned, "num_garments", 0) == pytest.approx(1 / 2, abs=0.05)
    assert share(planned, "guidance_scale", 1.0) == pytest.approx(0.2, abs=0.05)
    assert share(planned, "guidance_scale", None) == pytest.approx(0.8, abs=0.05)
    assert share(planned, "stream", True) == share(planned, "partial_images", 3) == pytest.approx(0.7, abs=0.05)
    assert share(planned, "deadline_s", 9.0) == 1
    assert all(edit.prompt in PROMPTS[edit.category] for edit in planned)
    assert len({edit.seed for edit in planned}) == len(planned)
    assert len({edit.prompt for edit in planned}) == 4


@pytest.mark.parametrize("wanted", [0.0, 0.3, 1.0])
def test_persons_come_again_as_often_as_the_mix_says(wanted: float) -> None:
    planned = plan(repeat_person=wanted)
    times = Counter((edit.category, edit.person) for edit in planned)
    # The first person of each category is always new.
    assert 1 - len(times) / len(planned) == pytest.approx(wanted, abs=0.03)
    if wanted < 1:
        # A person who comes again is any of those who were there, not always the same.
        assert max(times.values()) < 20
    for category in CATEGORIES:
        numbers = sorted(person for name, person in times if name == category)
        assert numbers == list(range(len(numbers)))


def test_rows_are_two_for_each_guided_step() -> None:
    guided, unguided = (Planned(0.0, "dresses", "red", steps=10, guidance_scale=scale) for scale in (None, 1.0))
    assert (guided.num_rows, unguided.num_rows) == (20, 10)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompts": {}}, "categories"),
        ({"categories": ("hats",)}, "categories"),
        ({"categories": ()}, "categories"),
        ({"prompts": {"dresses": ["red"]}}, "categories"),
        ({"steps": ()}, "steps"),
        ({"steps": (10, 0)}, "steps"),
        ({"num_garments": (4,)}, "num_garments"),
        ({"stream": 1.5}, "stream"),
        ({"unguided": -0.1}, "unguided"),
        ({"repeat_person": float("nan")}, "repeat_person"),
    ],
)
def test_a_mix_that_cannot_be_is_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        EditMix(**{"prompts": PROMPTS} | fields)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("rate", "duration_s", "field"), [(0.0, 1.0, "rate"), (1.0, float("inf"), "duration"), (1e-9, 1.0, "duration")]
)
def test_a_rate_that_sends_nothing_is_refused(rate: float, duration_s: float, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        poisson(rate, duration_s, 0)
    assert caught.value.field == field


def test_a_trace_is_read_as_it_was_written(tmp_path: Path) -> None:
    planned = plan(20, steps=(10, 50), unguided=0.5, repeat_person=0.5, stream=0.5)
    write_trace(tmp_path / "new" / "trace.jsonl", planned)
    assert read_trace(tmp_path / "new" / "trace.jsonl") == planned


def test_a_trace_needs_little_and_is_sorted(tmp_path: Path) -> None:
    lines = [{"at_s": at_s, "category": "dresses", "prompt": "red"} for at_s in (2.5, 0)]
    (tmp_path / "trace").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_trace(tmp_path / "trace") == [Planned(0.0, "dresses", "red"), Planned(2.5, "dresses", "red")]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("nonsense", "line 2"),
        ('{"at_s": 1, "category": "dresses"}', "line 2: .*prompt"),
        ('{"at_s": 1, "category": "dresses", "prompt": "red", "colour": "red"}', "line 2: .*colour"),
        ('{"at_s": "soon", "category": "dresses", "prompt": "red"}', "line 2: .*at_s"),
        ('{"at_s": -1, "category": "dresses", "prompt": "red"}', "at_s"),
    ],
)
def test_a_trace_that_is_none_is_refused(tmp_path: Path, line: str, named: str) -> None:
    (tmp_path / "trace").write_text(f'{{"at_s": 0, "category": "dresses", "prompt": "red"}}\n{line}\n')
    with pytest.raises(InvalidRequest, match=named):
        read_trace(tmp_path / "trace")


def test_files_that_are_not_there_are_refused(tmp_path: Path) -> None:
    for read in (read_trace, read_prompts):
        with pytest.raises(InvalidRequest, match="must be a file that can be read"):
            read(tmp_path / "nowhere")


def test_prompts_are_for_all_categories_or_for_each(tmp_path: Path) -> None:
    (tmp_path / "all").write_text(json.dumps(["red shirt", ["blue shirt", "long sleeves"]]))
    joined = ["red shirt", "blue shirt, long sleeves"]
    assert read_prompts(tmp_path / "all") == {category: joined for category in CATEGORIES}
    (tmp_path / "each").write_text(json.dumps({"dresses": ["red dress"]}))
    assert read_prompts(tmp_path / "each") == {"dresses": ["red dress"]}


@pytest.mark.parametrize("content", ["nonsense", "[1]", '{"dresses": "red dress"}'])
def test_prompts_that_are_none_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "prompts").write_text(content)
    with pytest.raises(InvalidRequest, match="must hold JSON"):
        read_prompts(tmp_path / "prompts")


def test_drawn_prompts_are_noun_chunks() -> None:
    prompts = drawn_prompts()
    assert set(prompts) == set(CATEGORIES)
    assert all(prompt.count(", ") == 2 for listed in prompts.values() for prompt in listed)
    assert drawn_prompts() == prompts


@pytest.mark.parametrize("manifest", [MANIFEST, Manifest("full", image_size=(512, 384))], ids=["tiny", "full"])
def test_a_photo_is_what_the_form_takes(manifest: Manifest) -> None:
    planned = [Planned(0.0, category, "red", person=person) for category in CATEGORIES for person in (0, 1)]
    drawn = list[int]()
    photos = draw_photos(planned, manifest, lambda: drawn.append(1))
    assert len(photos) == len(drawn) == 6
    assert len({photo.image for photo in photos.values()}) == 6
    assert draw_photos(planned[-1:], manifest) == {("upper_body", 1): photos["upper_body", 1]}
    for edit in planned:
        photo = photos[edit.category, edit.person]
        EditForm(image=photo.image, mask=photo.mask, keypoints=photo.keypoints, **edit.form())
        points = parse_keypoints(photo.keypoints, manifest.image_size)
        height, width = manifest.image_size
        assert ((points >= 0) & (points <= (width, height))).all()
