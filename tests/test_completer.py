"""Tests of what makes complete requests: which photos are read, and which category decides."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fashion_rag import completer
from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.catalogue import Catalogue
from fashion_rag.catalogue.garments import Garment
from fashion_rag.completer import Completer, lazy_chooser
from fashion_rag.data.colour import to_srgb
from fashion_rag.errors import InvalidRequest
from fashion_rag.person.completion import CategoryChoice
from fashion_rag.person.reading import PhotoReading
from fashion_rag.request import CompleteRequest, EditRequest, Window
from tests.profiles import display_p3

SHAPE = (64, 48)
WINDOW = Window(2, 30, 56, 42)
POINTS = np.full((18, 2), 40.0)


class Chooser:
    """A chooser that takes every sentence for a dress, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[EditRequest] = []

    def choose(self, catalogue: Catalogue | None, requests: Sequence[EditRequest]) -> list[CategoryChoice]:
        self.asked += requests
        return [
            CategoryChoice(request.category or "dresses", None if request.category else 0.7) for request in requests
        ]


@pytest.fixture
def photos(monkeypatch: pytest.MonkeyPatch) -> list[Image.Image]:
    """Have every photo show a person, and return the photos that were read."""
    seen: list[Image.Image] = []

    def read(parser: Any, pose_estimator: Any, photos: Sequence[Image.Image], shape: Any) -> list[PhotoReading]:
        assert (parser, pose_estimator, shape) == ("parser", "pose estimator", SHAPE)
        seen.extend(photos)
        return [PhotoReading(WINDOW, np.full((512, 384), 4, np.uint8), POINTS, 1) for _ in photos]

    monkeypatch.setattr(completer, "read_photos", read)
    return seen


def asked(seed: int = 0, **options: Any) -> EditRequest:
    image = np.random.default_rng(seed).integers(0, 256, (64, 100, 3), dtype=np.uint8)
    mask = np.zeros((64, 100), np.uint8)
    mask[20:40, 40:60] = 1
    defaults: dict[str, Any] = {"image": image, "mask": mask, "prompt": "a red dress", "category": "upper_body"}
    return EditRequest(**defaults | options)


def with_parser(chooser: Chooser | None = None) -> Completer:
    parts: Any = "parser", "pose estimator", lambda: chooser
    return Completer(*parts)


def test_only_photos_with_something_to_find_are_read_all_together(photos: list[Image.Image]) -> None:
    requests = [asked(0), asked(1, keypoints=POINTS), asked(2)]
    completed = with_parser()(None, requests, SHAPE)
    assert len(photos) == 2
    np.testing.assert_array_equal(photos[0], requests[0].image)
    np.testing.assert_array_equal(photos[1], requests[2].image)
    assert [type(request) for request, _ in completed] == [CompleteRequest] * 3
    assert [request.window == WINDOW for request, _ in completed] == [True, False, True]
    assert all(request.keypoints is POINTS for request, _ in completed)


def test_photos_are_read_in_srgb(photos: list[Image.Image]) -> None:
    request = asked(icc_profile=display_p3())
    with_parser()(None, [request], SHAPE)
    np.testing.assert_array_equal(photos[0], to_srgb(Image.fromarray(request.image), display_p3()))
    assert not np.array_equal(photos[0], request.image)


def test_a_complete_request_is_not_read_again(photos: list[Image.Image]) -> None:
    ((known, _),) = Completer()(None, [asked()], SHAPE)
    ((again, _),) = with_parser()(None, [known], SHAPE)
    assert again.digest() == known.digest() and photos == []


def test_what_was_found_may_be_sent_back(photos: list[Image.Image]) -> None:
    ((found, _),) = with_parser()(None, [asked(mask=None)], SHAPE)
    sent_back = asked(mask=found.mask, keypoints=found.keypoints, window=found.window)
    ((again, _),) = with_parser()(None, [sent_back], SHAPE)
    assert again.digest() == found.digest() and len(photos) == 1


def test_without_a_parser_no_photo_is_read(photos: list[Image.Image]) -> None:
    ((request, _),) = Completer()(None, [asked()], SHAPE)
    assert request.keypoints is None and photos == []
    with pytest.raises(InvalidRequest, match="mask: is missing"):
        Completer()(None, [asked(mask=None)], SHAPE)


def test_the_chooser_is_loaded_only_for_requests_without_a_category() -> None:
    chooser = Chooser()
    loaded: list[Chooser] = []

    def load() -> Any:
        loaded.append(chooser)
        return chooser

    lazy = Completer(load_chooser=load)
    ((request, found),) = lazy(None, [asked()], SHAPE)
    assert (request.category, found.choice.confidence, loaded) == ("upper_body", None, [])
    completed = lazy(None, [asked(), asked(category=None)], SHAPE)
    assert [request.category for request, _ in completed] == ["upper_body", "dresses"]
    assert [found.choice.confidence for _, found in completed] == [None, 0.7]
    assert loaded == [chooser]


def test_garments_brought_along_decide_before_words_do() -> None:
    skirt, top = (Garment(category, category, "", Path("x.png")) for category in ("lower_body", "upper_body"))
    garments = [[skirt, skirt], [skirt, top], [top], []]
    requests = [asked(category=None), asked(category=None), asked(category="dresses"), asked(category=None)]
    load: Any = Chooser
    completed = Completer(load_chooser=load)(None, requests, SHAPE, garments)
    assert [request.category for request, _ in completed] == ["lower_body", "dresses", "dresses", "dresses"]


def test_without_a_chooser_a_category_is_needed() -> None:
    with pytest.raises(InvalidRequest, match="category: is missing; must be given"):
        Completer()(None, [asked(category=None)], SHAPE)


def test_the_category_chooser_uses_the_catalogues_encoder(tiny_bundle: Path, tiny_catalogue: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    catalogue = bundle.open_catalogue(tiny_catalogue)
    load = lazy_chooser(bundle, catalogue)
    assert load().encoder is catalogue.encoder and load() is load()
    assert lazy_chooser(bundle, None)().encoder is not catalogue.encoder


def test_the_completer_of_a_bundle_without_a_parser_reads_nothing(tiny_bundle: Path) -> None:
    loaded = Completer.load(Bundle.open(tiny_bundle), None)
    assert (loaded.parser, loaded.pose_estimator) == (None, None)
