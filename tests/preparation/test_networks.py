"""The networks of a bundle, as a preparation uses them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.category import CategoryChooser
from fashion_rag.errors import InvalidRequest
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.preparation.networks import WordsChooser, networks_of
from tests.preparation.knowing import drawn_pairs, truth_of


def test_the_demo_bundle_reads_a_drawn_photo() -> None:
    networks = networks_of(Bundle.open(DEMO_BUNDLE), "cpu")
    pair = next(pair for pair in drawn_pairs() if pair.photo.image.shape[1] > pair.photo.image.shape[0])
    (reading,) = networks.load()([Image.fromarray(pair.photo.image)])
    assert reading.num_persons == 1
    truth = truth_of(pair.photo)
    np.testing.assert_allclose(reading.window, truth.window, atol=12)
    assert ((reading.label_map > 0) == (truth.label_map > 0)).mean() > 0.9
    assert reading.keypoints is not None
    assert np.median(np.linalg.norm(reading.keypoints - truth.keypoints, axis=1)) < 6


def test_a_bundle_without_a_pose_estimator_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"bundle: got .*pose estimator"):
        networks_of(Bundle.open(tiny_bundle), "cpu")


def test_words_that_name_a_garment_need_no_encoder(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(bundle: Bundle) -> None:
        raise AssertionError("no encoder is needed")

    monkeypatch.setattr(Bundle, "load_retrieval_encoder", refuse)
    choose = WordsChooser(Bundle.open(tiny_bundle))
    assert [choose("blue, denim skirt"), choose("a red shirt")] == ["lower_body", "upper_body"]


def test_other_words_are_compared_and_an_unclear_caption_is_refused(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = {"long sleeves": [0.1, 0.1, 0.8], "high neck": [0.35, 0.3, 0.35]}
    monkeypatch.setattr(CategoryChooser, "likeness", lambda chooser, texts: np.array([shares[text] for text in texts]))
    choose = WordsChooser(Bundle.open(tiny_bundle))
    assert choose("long sleeves") == "upper_body"
    with pytest.raises(InvalidRequest, match=r"dresses \(0\.35\) and upper_body \(0\.35\)"):
        choose("high neck")
