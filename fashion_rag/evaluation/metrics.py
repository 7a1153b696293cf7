"""The metrics of the paper, computed on a few edited samples at a time. `run` calls it; the networks are in `networks`.

For each sample some values are kept: figures, or the vectors from which a distance between two sets is computed. The
figures of any group of samples follow from these values. All pictures are as a caller gets them: repainted inside the
mask, the photo outside, in the size that the model makes.

fid, kid: distances between the edited pictures and the photos, on the vectors of Inception v3.
cmmd: a distance between the edited pictures and the photos, on the vectors of CLIP.
ssim, lpips: between each edited picture and its photo. Both must show the same garment, so these two are measured in
the paired order only.
clip_score: 100 times the cosine between the caption and the repainted part, at least 0.
clip_i: the cosine between the repainted part and the retrieved garment, averaged where there are several.
Papers differ in what they show to CLIP, so only figures of one table can be compared.
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
from fashion_rag.evaluation.edits import EditedSample
from fashion_rag.evaluation.networks import Networks, pixels
from fashion_rag.evaluation.pictures import cut_out

# The heading of each metric in the table.
METRICS = {
    "fid": "FID ↓",
    "kid": "KID x1000 ↓",
    "ssim": "SSIM ↑",
    "lpips": "LPIPS ↓",
    "clip_score": "CLIP score ↑",
    "clip_i": "CLIP-I ↑",
    "cmmd": "CMMD ↓",
}
# The network that each metric needs, and the option that names its file of weights.
NEEDED_WEIGHTS = {
    "fid": ("inception", "--inception-weights"),
    "kid": ("inception", "--inception-weights"),
    "lpips": ("lpips", "--lpips-weights"),
}
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0

# By name, an array with one row for each sample.
SampleValues = dict[str, NDArray[np.float64]]


def available(requested: Sequence[str] | None = None, *, has_inception: bool, has_lpips: bool) -> tuple[list[str], str]:
    """Return the metrics that can be measured, and a note on those left out, which is empty if there are none.

    requested: the names of the metrics that are wanted; None = all that can be measured. has_inception, has_lpips:
    whether these weights are there. Raises InvalidRequest for an unknown metric, and for one in `requested` without its
    weights.
    """
    has_weights = {"inception": has_inception, "lpips": has_lpips}
    for name in requested or ():
        if name not in METRICS:
            raise InvalidRequest("metrics", name, f"must be of {', '.join(METRICS)}")
    missing = {name: option for name, (part, option) in NEEDED_WEIGHTS.items() if not has_weights[part]}
    for name in requested or ():
        if name in missing:
            raise InvalidRequest("metrics", name, f"needs a file of weights: give {missing[name]}")
    if requested:
        return list(requested), ""
    names = [name for name in METRICS if name not in missing]
    if not missing:
        return names, ""
    left_out = ", ".join(f"{name} ({option} FILE)" for name, option in missing.items())
    return names, f"Left out, as these need files of weights: {left_out}."


@torch.inference_mode()
def measure(
    networks: Networks, metrics: Sequence[str], edited_samples: Sequence[EditedSample], paired: bool
) -> SampleValues:
    """Return the values of the samples that the metrics need; NaN where a sample has nothing to measure."""
    made = [edited.picture for edited in edited_samples]
    real = [edited.sample.image for edited in edited_samples]
    values: dict[str, NDArray[Any]] = {}
    if networks.inception is not None and {"fid", "kid"} & set(metrics):
        values["inception_made"] = networks.inception_vectors(made)
        values["inception_real"] = networks.inception_vectors(real)
    if "cmmd" in metrics:
        values["clip_made"] = networks.clip.encode_images(made)
        values["clip_real"] = networks.clip.encode_images(real)
    if {"clip_score", "clip_i"} & set(metrics):
        parts = [cut_out(np.asarray(edited.picture), edited.mask > 0) for edited in edited_samples]
        vectors = networks.clip.encode_images(parts)
        captions = networks.clip.encode_texts([edited.sample.caption for edited in edited_samples])
        values["clip_score"] = 100 * np.maximum((vectors * captions).sum(axis=1), 0)
        values["clip_i"] = _likeness(networks, vectors, edited_samples)
    if paired and "ssim" in metrics:
        # In float32 the variances, which are differences of two means, would be wrong in the fourth digit.
        made_unit, real_unit = pixels(made).double() / 255, pixels(real).double() / 255
        ssim = structural_similarity_index_measure(made_unit, real_unit, data_range=1.0, reduction="none")
        values["ssim"] = ssim.numpy()  # type: ignore[union-attr]
    if paired and "lpips" in metrics and networks.lpips is not None:
        values["lpips"] = networks.perceptual_distances(made, real)
    return {name: np.asarray(array, np.float64) for name, array in values.items()}


def summary(values: Mapping[str, NDArray[np.float64]], metrics: Sequence[str]) -> dict[str, float | None]:
    """Return the metrics of a group of samples from their values; None where the group has nothing to measure.

    A distance between two sets needs at least two samples. It depends on the number of samples, so only groups of the
    same size can be compared.
    """
    figures: dict[str, float | None] = {}
    for name in metrics:
        if name in DISTANCES:
            distance, part = DISTANCES[name]
            made, real = values[f"{part}_made"], values[f"{part}_real"]
            figures[name] = distance(real, made) if len(made) > 1 else None
        else:
            figures[name] = mean(values[name]) if name in values else None
    return figures


def mean(values: NDArray[np.float64]) -> float | None:
    """Return the mean of the values that are not NaN; None if all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def frechet_distance(real: NDArray[np.float64], made: NDArray[np.float64]) -> float:
    """Return the FID of vectors [N, D]: the Frechet distance between two normal distributions (arXiv 1706.08500)."""
    metric = FrechetInceptionDistance(_vectors(real.shape[1]))
    metric.update(torch.from_numpy(real), real=True)
    metric.update(torch.from_numpy(made), real=False)
    return float(metric.compute())


def kernel_distance(real: NDArray[np.float64], made: NDArray[np.float64]) -> float:
    """Return 1000 times the KID of vectors [N, D] (arXiv 1801.01401).

    It is the unbiased MMD^2 with a cubic kernel, averaged over random subsets.
    """
    size = min(KID_SUBSET_SIZE, len(real), len(made))
    # Where a subset is the whole set, all subsets are the same and one is enough.
    subsets = KID_SUBSETS if size < max(len(real), len(made)) else 1
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save")
        torch.manual_seed(0)
        metric = KernelInceptionDistance(_vectors(real.shape[1]), subsets=subsets, subset_size=size)
        metric.update(torch.from_numpy(real), real=True)
        metric.update(torch.from_numpy(made), real=False)
        return 1000 * float(metric.compute()[0])


def clip_distance(real: NDArray[np.float64], made: NDArray[np.float64]) -> float:
    """Return the CMMD of unit vectors [N, D]: 1000 times MMD^2 with a Gaussian kernel (arXiv 2401.09603, section 4)."""

    def kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T
        return float(np.exp(-squared / (2 * CMMD_SIGMA**2)).mean())

    return CMMD_SCALE * (kernel(real, real) + kernel(made, made) - 2 * kernel(real, made))


# The distance that each metric computes, and the network whose vectors it is computed from.
DISTANCES = {
    "fid": (frechet_distance, "inception"),
    "kid": (kernel_distance, "inception"),
    "cmmd": (clip_distance, "clip"),
}


def _likeness(
    networks: Networks, vectors: NDArray[np.float32], edited_samples: Sequence[EditedSample]
) -> NDArray[np.float64]:
    """Return for each sample the mean cosine between its vector and its garments, [N]; NaN where it has no garment."""
    likeness = np.full(len(edited_samples), np.nan)
    for row, edited in enumerate(edited_samples):
        if edited.garments:
            likeness[row] = (networks.clip.encode_images(edited.garments) @ vectors[row]).mean()
    return likeness


def _vectors(num_features: int) -> nn.Module:
    """Return a network that passes its input on: the libraries' distances want one, but are given finished vectors."""
    identity = nn.Identity()
    identity.num_features = num_features  # type: ignore[assignment]
    return identity
