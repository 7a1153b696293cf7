"""The networks that metrics need, filled from local files only: nothing is ever downloaded. `metrics` calls them.

The libraries would fetch weights by themselves, or unpickle whatever a file holds. Here a file is read as tensors and
nothing else, and the libraries are given those tensors.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lpips  # type: ignore[import-untyped]
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchmetrics.image.fid import NoTrainInceptionV3

from fashion_rag.catalogue.retrieval_encoder import RetrievalEncoder
from fashion_rag.errors import ArtifactError
from fashion_rag.published import read_pth
from fashion_rag.weights import load_strict, read_state

BATCH_SIZE = 16
INCEPTION_FEATURES = "2048"


@dataclass(frozen=True)
class Networks:
    """The networks to measure with; None for one whose file of weights was not given."""

    clip: RetrievalEncoder
    inception: nn.Module | None = None
    lpips: nn.Module | None = None

    @classmethod
    def load(
        cls, clip: Path, inception_weights: Path | None = None, lpips_weights: Path | None = None, device: str = "cpu"
    ) -> Networks:
        """Return the networks of an OpenCLIP folder and two files of weights.

        inception_weights: torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`. lpips_weights: torchvision's
        AlexNet, `alexnet-owt-7be5be79.pth`; what LPIPS has learnt on top comes with its package. Both may be
        safetensors files with the same keys. Raises ArtifactError for weights that do not fit.
        """
        return cls(
            RetrievalEncoder.load(clip, device),
            load_inception(inception_weights).to(device) if inception_weights else None,
            load_lpips(lpips_weights).to(device) if lpips_weights else None,
        )

    def inception_vectors(self, pictures: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Return the vectors [N, 2048] of N pictures of one size."""
        assert self.inception is not None
        device = next(self.inception.parameters()).device
        batches = pixels(pictures).split(BATCH_SIZE)
        return torch.cat([self.inception(batch.to(device)).cpu() for batch in batches]).double().numpy()

    def perceptual_distances(self, made: Sequence[Image.Image], real: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Return the LPIPS distances [N] of N pairs of pictures of one size."""
        assert self.lpips is not None
        device = next(self.lpips.parameters()).device
        distances = []
        for made_batch, real_batch in zip(pixels(made).split(BATCH_SIZE), pixels(real).split(BATCH_SIZE), strict=True):
            distance = self.lpips(made_batch.to(device) / 127.5 - 1, real_batch.to(device) / 127.5 - 1)
            distances.append(distance.flatten().cpu())
        return torch.cat(distances).double().numpy()


def pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Return RGB pictures of one size as uint8 [N, 3, H, W]."""
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2).contiguous()


def load_inception(path: Path) -> nn.Module:
    """Return Inception v3 as FID knows it: uint8 [B, 3, H, W] to [B, 2048]. Raises ArtifactError."""
    content = io.BytesIO()
    torch.save(_read_weights(path), content)
    content.seek(0)
    # Typed as a path, but it goes to torch.load as it is.
    source: Any = content
    try:
        return NoTrainInceptionV3("inception-v3-compat", [INCEPTION_FEATURES], feature_extractor_weights_path=source)
    except RuntimeError as error:
        raise ArtifactError(f"{path}: not the weights of torch-fidelity's Inception v3: {error}") from error


def load_lpips(path: Path) -> nn.Module:
    """Return LPIPS 0.1 on AlexNet: two float [B, 3, H, W] in [-1, 1] to [B, 1, 1, 1]. Raises ArtifactError."""
    with warnings.catch_warnings():
        # LPIPS asks torchvision in an old way for an AlexNet without weights.
        warnings.filterwarnings("ignore", module="torchvision.models._utils")
        model = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    # AlexNet's layers keep their numbers but lie in slices here; its classifier is not used.
    state = _read_weights(path)
    names = {name: f"features.{name.partition('.')[2]}" for name in model.net.state_dict()}
    load_strict(model.net, {name: state[key] for name, key in names.items() if key in state}, path)
    evaluated: nn.Module = model.eval().requires_grad_(False)
    return evaluated


def _read_weights(path: Path) -> dict[str, Tensor]:
    return read_state(path) if path.suffix == ".safetensors" else read_pth(path)
