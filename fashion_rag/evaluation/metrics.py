"""The metrics of the paper, on edited samples a few at a time. `run` calls it; `networks` has what they look with.

Rows are what is kept of each sample: a figure, or the vectors that a distance between two sets is made of. The figures
of any group of samples are made of their rows. All pictures are those that a caller gets: repainted inside the mask,
the photo outside, as large as the model makes them.

fid, kid: of edited pictures and photos, by Inception v3. ssim, lpips: of edited picture and photo, which must be of the
same garment, so in the paired order only. clip_score: 100 times the cosine of the caption and the repainted part, at
least 0. clip_i: the cosine of the repainted part and the retrieved garment, the mean where there are several.
cmmd: of edited pictures and photos, by CLIP. What CLIP is to look at is not the same in all papers: compare rows of
one table.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from fashion_rag.errors import InvalidRequest
from fashion_rag.evaluation.edits import Outcome
from fashion_rag.evaluation.networks import Networks, pixels
from fashion_rag.evaluation.pictures import cut_out

# By name: the table's heading.
METRICS = {
    "fid": "FID ↓",
    "kid": "KID x1000 ↓",
    "ssim": "SSIM ↑",
    "lpips": "LPIPS ↓",
    "clip_score": "CLIP score ↑",
    "clip_i": "CLIP-I ↑",
    "cmmd": "CMMD ↓",
}
NEEDED_WEIGHTS = {
    "fid": ("inception", "--inception-weights"),
    "kid": ("inception", "--inception-weights"),
    "lpips": ("lpips", "--lpips-weights"),
}
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0

Rows = dict[str, NDArray[np.float64]]


def available(asked: Sequence[str] | None = None, *, has_inception: bool, has_lpips: bool) -> tuple[list[str], str]:
    """Return the metrics that can be measured, and a note on those left out, which is empty if there are none.

    asked: the names of the metrics that are wanted; None = all that can be measured. has_inception, has_lpips: whether
    these weights are there. Raises InvalidRequest for an unknown metric, and for one in `asked` without its weights.
    """
    has_weights = {"inception": has_inception, "lpips": has_lpips}
    for name in asked or ():
        if name not in METRICS:
            raise InvalidRequest("metrics", name, f"must be of {', '.join(METRICS)}")
    missing = {name: option for name, (part, option) in NEEDED_WEIGHTS.items() if not has_weights[part]}
    for name in asked or ():
        if name in missing:
            raise InvalidRequest("metrics", name, f"needs a file of weights: give {missing[name]}")
    if asked:
        return list(asked), ""
    left_out = ", ".join(f"{name} ({option} FILE)" for name, option in missing.items())
    found = [name for name in METRICS if name not in missing]
    return found, f"Left out, as these need files of weights: {left_out}." if missing else ""


@torch.inference_mode()
def measure(networks: Networks, metrics: Sequence[str], outcomes: Sequence[Outcome], paired: bool) -> Rows:
    """Return the rows of some outcomes: by name, an array of one row each; NaN where there is nothing to measure."""
    made = [outcome.picture for outcome in outcomes]
    real = [outcome.sample.image for outcome in outcomes]
    rows: dict[str, NDArray[Any]] = {}
    if networks.inception is not None and {"fid", "kid"} & set(metrics):
        rows["inception_made"], rows["inception_real"] = (networks.inception_vectors(each) for each in (made, real))
    if "cmmd" in metrics:
        rows["clip_made"], rows["clip_real"] = (networks.clip.encode_images(each) for each in (made, real))
    if {"clip_score", "clip_i"} & set(metrics):
        parts = [cut_out(np.asarray(outcome.picture), outcome.mask > 0) for outcome in outcomes]
        vectors = networks.clip.encode_images(parts)
        captions = networks.clip.encode_texts([outcome.sample.caption for outcome in outcomes])
        rows["clip_score"] = 100 * np.maximum((vectors * captions).sum(axis=1), 0)
        rows["clip_i"] = _likeness(networks, vectors, outcomes)
    if paired and "ssim" in metrics:
        # In float32, variances as the difference of two means cost the fourth digit.
        made_unit, real_unit = (pixels(each).double() / 255 for each in (made, real))
        ssim = structural_similarity_index_measure(made_unit, real_unit, data_range=1.0, reduction="none")
        rows["ssim"] = ssim.numpy()  # type: ignore[union-attr]
    if paired and "lpips" in metrics and networks.lpips is not None:
        rows["lpips"] = networks.perceptual_distances(made, real)
    return {name: np.asarray(values, np.float64) for name, values in rows.items()}


def summary(rows: Mapping[str, NDArray[np.float64]], metrics: Sequence[str]) -> dict[str, float | None]:
    """Return the metrics of a group of samples, from their rows; None where the group has nothing to measure.

    A distance of two sets needs two samples. Its size depends on how many there are: compare groups of one size.
    """
    values: dict[str, float | None] = {}
    for name in metrics:
        if name in DISTANCES:
            distance, part = DISTANCES[name]
            made, real = rows[f"{part}_made"], rows[f"{part}_real"]
            values[name] = distance(real, made) if len(made) > 1 else None
        else:
            values[name] = mean(rows[name]) if name in rows else None
    return values


def mean(values: NDArray[np.float64]) -> float | None:
    """Return the mean of what is not NaN; None where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def frechet_distance(real: NDArray[np.float64], made: NDArray[np.float64]) -> float:
    """Return FID of vectors [N, D]: the Frechet distance of two normal distributions (arXiv 1706.08500)."""
    metric = FrechetInceptionDistance(_vectors(real.shape[1]))
    metric.update(torch.from_numpy(real), real=True)
    metric.update(torch.from_numpy(made), real=False)
    return float(metric.compute())


def kernel_distance(real: NDArray[np.float64], made: NDArray[np.float64]) -> float:
    """Return KID times 1000 of vectors [N, D]: unbiased MMD^2 with a cubic kernel, mean over subsets (arXiv
    1801.01401).
    """
    size = min(KID_SUBSET_SIZE, len(real), len(made))
    # A subset of everything is always the same one.
    subsets = KID_SUBSETS if size < max(len(real), len(made)) else 1
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save")
        torch.manual_seed(0)
        metric = KernelInceptionDistance(_vectors(real.shape[1]), subsets=subsets, subset_size=size)
        metric.update(torch.from_numpy(real), real=True)
        metric.update(torch.from_numpy(made), real=False)
        return 1000 * float(metric.compute()[0])


def clip_distance(real: NDArray[np.float64], made: NDArray[np.float64]) -> float:
    """Return CMMD of unit vectors [N, D]: MMD^2 with a Gaussian kernel, times 1000 (arXiv 2401.09603, section 4)."""

    def kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T
        return float(np.exp(-squared / (2 * CMMD_SIGMA**2)).mean())

    return CMMD_SCALE * (kernel(real, real) + kernel(made, made) - 2 * kernel(real, made))


# By metric: the distance, and whose vectors.
DISTANCES = {
    "fid": (frechet_distance, "inception"),
    "kid": (kernel_distance, "inception"),
    "cmmd": (clip_distance, "clip"),
}


def _likeness(networks: Networks, vectors: NDArray[np.float32], outcomes: Sequence[Outcome]) -> NDArray[np.float64]:
    """Return the mean cosine of each vector and those of the outcome's garments, [N]; NaN where there is none."""
    likeness = np.full(len(outcomes), np.nan)
    for row, outcome in enumerate(outcomes):
        if outcome.garments:
            likeness[row] = (networks.clip.encode_images(outcome.garments) @ vectors[row]).mean()
    return likeness


def _vectors(num_features: int) -> nn.Module:
    """Return what the libraries' distances take for a network where they are given its vectors."""
    identity = nn.Identity()
    identity.num_features = num_features  # type: ignore[assignment]
    return identity
