"""The metrics agree with their definitions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from torch import nn

from fashion_rag.errors import InvalidRequest
from fashion_rag.evaluation.edits import EditedSample, EditFolder, EvaluationSettings
from fashion_rag.evaluation.metrics import (
    METRICS,
    available,
    clip_distance,
    frechet_distance,
    kernel_distance,
    measure,
    summary,
)
from fashion_rag.evaluation.networks import Networks
from fashion_rag.evaluation.pictures import cut_out
from fashion_rag.manifest import Manifest
from tests.evaluation.conftest import Painter

RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(40, 6))
NEAR = RNG.normal(size=(40, 6))
FAR = RNG.normal(size=(40, 6)) * 1.5 + 2
CLIP_METRICS = ["clip_score", "clip_i", "cmmd"]


@pytest.fixture(scope="module")
def networks(tiny_bundle: Path) -> Networks:
    return Networks.load(tiny_bundle / "retrieval")


@pytest.fixture
def edited_samples(tmp_path: Path, settings: EvaluationSettings, manifest: Manifest) -> list[EditedSample]:
    """Return a sample of each category, edited in red, with two retrieved garments."""
    painter = Painter()
    edits = EditFolder(tmp_path / "out", replace(settings, num_retrieved=2), manifest, limit=1)
    edits.make(painter, 4, lambda done, total: None)
    return [edits.edited_sample(number, painter) for number in edits.made()]


class Means(nn.Module):
    """A network in place of Inception that returns the mean colour of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.uint8
        return images.float().mean(dim=(2, 3)) / 255


def test_frechet_distance_is_that_of_two_normal_distributions() -> None:
    mean = REAL.mean(axis=0) - FAR.mean(axis=0)
    first, second = (np.cov(each, rowvar=False) for each in (REAL, FAR))
    root = scipy.linalg.sqrtm(first @ second).real
    expected = mean @ mean + np.trace(first + second - 2 * root)
    assert frechet_distance(REAL, FAR) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(REAL, REAL) == pytest.approx(0, abs=1e-6)


def kernel_by_hand(real: np.ndarray, made: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)

    def without_diagonal(square: np.ndarray) -> float:
        return float((square.sum() - np.trace(square)) / (len(square) * (len(square) - 1)))

    within = without_diagonal(kernel(real, real)) + without_diagonal(kernel(made, made))
    return 1000 * (within - 2 * float(kernel(real, made).mean()))


def test_kernel_distance_is_the_unbiased_one() -> None:
    assert kernel_distance(REAL, FAR) == pytest.approx(kernel_by_hand(REAL, FAR), rel=1e-6)
    assert abs(kernel_distance(REAL, NEAR)) < kernel_distance(REAL, FAR) / 100


def test_kernel_distance_of_many_samples_is_a_mean_over_the_same_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fashion_rag.evaluation.metrics.KID_SUBSET_SIZE", 20)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    once = kernel_distance(REAL, FAR)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert kernel_distance(REAL, FAR) == once
    assert once == pytest.approx(kernel_by_hand(REAL, FAR), rel=0.2)
    assert once != pytest.approx(kernel_by_hand(REAL, FAR), rel=1e-6)


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def test_clip_distance_is_zero_for_equal_sets_and_grows_with_a_shift() -> None:
    assert clip_distance(unit(REAL), unit(REAL)) == 0
    shifts = [clip_distance(unit(REAL), unit(REAL + shift)) for shift in (0.2, 1, 4)]
    assert 0 < shifts[0] < shifts[1] < shifts[2]


def test_clip_distance_by_hand() -> None:
    a, b = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert clip_distance(a, b) == pytest.approx(1000 * (2 - 2 * np.exp(-2 / 200)))


def test_ssim_and_distances_are_of_edited_picture_and_photo(
    networks: Networks, edited_samples: list[EditedSample]
) -> None:
    with_inception = replace(networks, inception=Means())
    rows = measure(with_inception, ["fid", "ssim"], edited_samples, paired=True)
    assert set(rows) == {"inception_made", "inception_real", "ssim"}
    made, real = (np.stack([np.asarray(one) for one in each]) for each in zip(*pairs(edited_samples), strict=True))
    np.testing.assert_allclose(rows["inception_made"], made.mean(axis=(1, 2)) / 255, atol=1e-5)
    np.testing.assert_allclose(rows["inception_real"], real.mean(axis=(1, 2)) / 255, atol=1e-5)
    assert ((rows["ssim"] > 0) & (rows["ssim"] < 1)).all()
    true = [replace(edited, picture=edited.sample.image) for edited in edited_samples]
    np.testing.assert_allclose(measure(networks, ["ssim"], true, paired=True)["ssim"], 1, atol=1e-9)


def pairs(edited_samples: list[EditedSample]) -> list[tuple[Image.Image, Image.Image]]:
    return [(edited.picture, edited.sample.image) for edited in edited_samples]


def test_ssim_by_hand(networks: Networks, edited_samples: list[EditedSample]) -> None:
    # For two plain pictures, the first factor of SSIM is the only one that differs from 1.
    grey, lighter = (Image.new("RGB", (48, 64), (level,) * 3) for level in (102, 153))
    plain = replace(edited_samples[0], picture=lighter, sample=replace(edited_samples[0].sample, image=grey))
    expected = (2 * 0.4 * 0.6 + 1e-4) / (0.4**2 + 0.6**2 + 1e-4)
    assert measure(networks, ["ssim"], [plain], paired=True)["ssim"][0] == pytest.approx(expected, abs=1e-9)


def test_what_needs_the_truth_is_left_out_of_the_unpaired_order(
    networks: Networks, edited_samples: list[EditedSample]
) -> None:
    rows = measure(networks, ["ssim", "clip_score"], edited_samples, paired=False)
    assert "ssim" not in rows
    assert summary(rows, ["ssim", "clip_score"])["ssim"] is None


def test_clip_scores_are_cosines_of_the_repainted_part(networks: Networks, edited_samples: list[EditedSample]) -> None:
    rows = measure(networks, CLIP_METRICS, edited_samples, paired=False)
    for row, edited in enumerate(edited_samples):
        part = networks.clip.encode_images([cut_out(np.asarray(edited.picture), edited.mask > 0)])[0]
        caption = networks.clip.encode_texts([edited.sample.caption])[0]
        assert rows["clip_score"][row] == pytest.approx(100 * max(float(part @ caption), 0), abs=1e-3)
        garments = networks.clip.encode_images(edited.garments)
        assert rows["clip_i"][row] == pytest.approx(float((garments @ part).mean()), abs=1e-5)
    np.testing.assert_allclose(np.linalg.norm(rows["clip_made"], axis=1), 1, atol=1e-5)
    values = summary(rows, CLIP_METRICS)
    assert values["clip_score"] == pytest.approx(rows["clip_score"].mean())
    assert values["cmmd"] == pytest.approx(clip_distance(rows["clip_real"], rows["clip_made"]))


def test_where_nothing_was_retrieved_there_is_no_likeness(
    networks: Networks, edited_samples: list[EditedSample]
) -> None:
    some = [replace(edited_samples[0], garments=()), *edited_samples[1:]]
    rows = measure(networks, ["clip_i"], some, paired=False)
    assert np.isnan(rows["clip_i"]).tolist() == [True, False, False]
    assert summary(rows, ["clip_i"])["clip_i"] == pytest.approx(rows["clip_i"][1:].mean())
    assert summary({"clip_i": np.array([np.nan])}, ["clip_i"]) == {"clip_i": None}


def test_one_sample_makes_no_distance(networks: Networks, edited_samples: list[EditedSample]) -> None:
    assert summary(measure(networks, ["cmmd"], edited_samples[:1], paired=False), ["cmmd"]) == {"cmmd": None}


def test_metrics_without_weights_are_left_out_and_said_so() -> None:
    names, note = available(has_inception=False, has_lpips=False)
    assert names == ["ssim", "clip_score", "clip_i", "cmmd"]
    assert note == (
        "Left out, as these need files of weights: fid (--inception-weights FILE), kid (--inception-weights FILE), "
        "lpips (--lpips-weights FILE)."
    )
    assert available(has_inception=True, has_lpips=True) == (list(METRICS), "")
    assert available(["kid"], has_inception=True, has_lpips=True) == (["kid"], "")


def test_a_metric_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="metrics: got 'fid'; needs a file of weights: give --inception-weights"):
        available(["ssim", "fid"], has_inception=False, has_lpips=False)
    with pytest.raises(InvalidRequest, match="metrics: got 'psnr'; must be of fid, kid"):
        available(["psnr"], has_inception=False, has_lpips=False)


def test_a_cut_out_is_the_area_alone_on_white() -> None:
    image = np.zeros((64, 48, 3), np.uint8)
    image[10:20, 5:15] = (255, 0, 0)
    area = np.zeros((64, 48), bool)
    area[10:20, 5:15] = True
    part = np.asarray(cut_out(image, area))
    assert part.shape == (64, 48, 3)
    assert part[32, 24].tolist() == [255, 0, 0] and part[0, 0].tolist() == [255, 255, 255]
    side = round(0.84 * 48)
    assert int((part == (255, 0, 0)).all(axis=-1).sum()) == side * side
