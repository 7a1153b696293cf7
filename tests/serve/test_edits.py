"""Tests what the ingress finds of an edit itself, and that events keep the photo's colours, without Ray's workers."""

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fashion_rag.errors import InvalidRequest
from fashion_rag.person.completion import CategoryChoice, complete, find
from fashion_rag.request import EditRequest
from serve.edits import AnswerTimes, EditedPhoto, EditRunner, completed_event, partial_event
from serve.http.forms import EditForm
from serve.messages import Job, Partial
from tests.profiles import display_p3
from tests.serve.pictures import mask, photo


def test_previews_and_the_finished_picture_are_in_the_photos_colours() -> None:
    form = EditForm.model_validate({"image": b"1", "prompt": "red", "category": "dresses"})
    asked = EditRequest(image=photo(), mask=mask(), prompt="red", category="dresses", icc_profile=display_p3())
    found = find(asked, CategoryChoice("dresses"), (80, 60), None)
    request = complete(asked, found)
    preview = np.full((32, 24, 3), (215, 93, 31), np.uint8)
    events = [
        partial_event(form, request, Partial(5, 10, preview), 0),
        completed_event(form, request, EditedPhoto(photo(), (), found, {}, 0.0)),
    ]
    shown = []
    for event in events:
        data = json.loads(event.decode().splitlines()[1].removeprefix("data: "))
        image = Image.open(io.BytesIO(base64.b64decode(data["b64_json"])))
        assert image.info["icc_profile"] == display_p3()
        shown.append(np.asarray(image).astype(int))
    assert (shown[0][mask() == 0] == photo()[mask() == 0]).all()
    # What the model's colour is in Display P3.
    assert np.abs(shown[0][mask() != 0] - (200, 100, 50)).max() <= 1
    assert (shown[1] == photo()).all()


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    """Return what makes the job of a request as the ingress does, with the request in place of a reference to it."""
    monkeypatch.setattr("serve.edits.ray.put", lambda value: value)
    stage: Any = None

    def job_of(has_parser: bool = True, **fields: Any) -> Job:
        request = EditRequest(**{"image": photo(), "prompt": "a red dress"} | fields)
        return EditRunner(stage, stage, (64, 48), has_parser)._job(request, frozenset())

    return job_of


GIVEN: dict[str, Any] = {"mask": mask(), "category": "dresses", "keypoints": np.ones((18, 2))}


def test_an_edit_with_everything_given_is_complete_at_once(jobs: Callable[..., Job]) -> None:
    job = jobs(**GIVEN)
    assert job.choice == CategoryChoice("dresses", None)
    assert not job.is_read
    assert job.found is not None
    assert (job.found.choice, job.found.mask) == (job.choice, None)


@pytest.mark.parametrize("missing", ["mask", "keypoints"])
def test_the_photo_is_read_for_what_is_missing(jobs: Callable[..., Job], missing: str) -> None:
    job = jobs(**GIVEN | {missing: None})
    assert job.choice == CategoryChoice("dresses", None)
    assert (job.is_read, job.found) == (True, None)


@pytest.mark.parametrize("has_parser", [True, False])
def test_a_category_that_is_missing_is_chosen_by_another_stage(jobs: Callable[..., Job], has_parser: bool) -> None:
    job = jobs(has_parser, **GIVEN | {"category": None})
    assert (job.choice, job.is_read, job.found) == (None, False, None)


def test_without_a_parser_key_points_may_be_missing_but_no_mask(jobs: Callable[..., Job]) -> None:
    job = jobs(False, **GIVEN | {"keypoints": None})
    assert not job.is_read
    assert job.found is not None
    assert job.found.keypoints is None
    with pytest.raises(InvalidRequest, match="mask"):
        jobs(False, category="dresses")


class Answered:
    """Edits that are answered, on a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.times = AnswerTimes(lambda: self.now)

    def answer(self, took_s: float) -> None:
        found = find(EditRequest(**GIVEN, image=photo(), prompt="red"), CategoryChoice("dresses"), (80, 60), None)
        self.times.record(EditedPhoto(photo(), (), found, {}, self.now - took_s))


def test_the_answer_takes_as_long_as_the_slowest_but_few_have_taken_lately() -> None:
    edits = Answered()
    assert edits.times.high_s() == 0.0
    edits.answer(2.0)
    assert edits.times.high_s() == 2.0
    for _ in range(AnswerTimes.NUM_KEPT - 2):
        edits.answer(1.0)
    assert edits.times.high_s() == 1.0
    for _ in range(4):
        edits.answer(3.0)
    assert edits.times.high_s() == 3.0
    for _ in range(AnswerTimes.NUM_KEPT):
        edits.answer(0.5)
    assert edits.times.high_s() == 0.5


def test_answers_of_long_ago_do_not_count() -> None:
    edits = Answered()
    edits.answer(30.0)
    edits.now += AnswerTimes.KEPT_S
    edits.answer(1.0)
    assert edits.times.high_s() == 30.0
    edits.now += 1.0
    assert edits.times.high_s() == 1.0


def test_the_job_says_how_long_the_answer_will_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.edits.ray.put", lambda value: value)
    stage: Any = None
    runner, edits = EditRunner(stage, stage, (64, 48), True), Answered()
    runner.answer_times = edits.times
    edits.answer(1.5)
    assert runner._job(EditRequest(image=photo(), prompt="a red dress"), frozenset()).after_s == 1.5
