"""The retrieval encoder: an OpenCLIP model that puts texts and garment pictures into one space.

The catalogue is built and searched with it; a bundle keeps its files in `retrieval/`. OpenCLIP is imported where an
encoder is loaded, because that takes seconds and 150 MB, and most processes load none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fashion_rag.artifacts import read_config, sha256
from fashion_rag.data.image import bordered
from fashion_rag.errors import ArtifactError
from fashion_rag.weights import StateFile, hollow, load_strict

if TYPE_CHECKING:
    import open_clip

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
BATCH_SIZE = 32


class RetrievalEncoder:
    """An encoder of texts and pictures as unit vectors, whose dot product is how alike they are.

    fingerprint: SHA-256 of the weights file; an index fits only the encoder that built it. dim: length of a vector.
    picture_size: the (height, width) in whose shape pictures are encoded; those of another shape get a border. With
    None, OpenCLIP's transform stretches or cuts them, as an evaluation that compares with published figures needs it.
    """

    def __init__(
        self,
        model: open_clip.CLIP,
        tokenizer: Callable[[Sequence[str]], Tensor],
        preprocess: Callable[[Image.Image], Tensor],
        fingerprint: str,
        picture_size: tuple[int, int] | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.fingerprint = fingerprint
        self.picture_size = picture_size
        self.dim: int = model.visual.output_dim

    @classmethod
    def load(
        cls, folder: Path, device: str | torch.device = "cpu", picture_size: tuple[int, int] | None = None
    ) -> RetrievalEncoder:
        """Return the encoder in `folder`, which has OpenCLIP's own layout: a configuration and a safetensors file.

        If the configuration's `text_cfg` has `hf_tokenizer_name`, the tokenizer's files are in the folder, too;
        otherwise the tokenizer is OpenCLIP's own. The encoder computes in float32. Raises ArtifactError for a file that
        is missing or does not fit the others.
        """
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2

        config = read_config(folder / CONFIG_FILE)
        try:
            with hollow():
                model = open_clip.CLIP(**config["model_cfg"])
            # OpenCLIP's own files give no size, or a size that the model does not use.
            preprocess_cfg = PreprocessCfg(**config["preprocess_cfg"] | {"size": model.visual.image_size})
            preprocess = image_transform_v2(preprocess_cfg, is_train=False)
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{folder / CONFIG_FILE}: no OpenCLIP model can be built: {error!r}") from error
        # OpenCLIP's own loading would resize tensors that do not fit, and go on if there were no weights.
        weights = folder / WEIGHTS_FILE
        load_strict(model, StateFile(weights), weights)
        tokenizer = _load_tokenizer(folder, model.vocab_size)
        return cls(model.eval().requires_grad_(False).to(device), tokenizer, preprocess, sha256(weights), picture_size)

    def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """Return the unit vectors [N, dim] of N texts; a text that is too long loses its end."""
        return self._encode(texts, self.tokenizer, self.model.encode_text)

    def encode_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Return the unit vectors [N, dim] of N garment pictures of any size."""
        return self._encode(images, self._pixels, self.model.encode_image)

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        if self.picture_size is not None:
            images = [bordered(image, self.picture_size) for image in images]
        return torch.stack([self.preprocess(image) for image in images])

    @torch.inference_mode()
    def _encode(
        self, items: Sequence[Any], to_input: Callable[[Sequence[Any]], Tensor], tower: Callable[..., Tensor]
    ) -> NDArray[np.float32]:
        device = self.model.logit_scale.device
        vectors = np.empty((len(items), self.dim), np.float32)
        for start in range(0, len(items), BATCH_SIZE):
            batch = to_input(items[start : start + BATCH_SIZE]).to(device)
            vectors[start : start + BATCH_SIZE] = tower(batch, normalize=True).float().cpu().numpy()
        return vectors


def _load_tokenizer(folder: Path, vocab_size: int) -> Callable[[Sequence[str]], Tensor]:
    """Return the tokenizer in `folder`. Raises ArtifactError if it does not fit a model of `vocab_size` tokens."""
    import open_clip

    try:
        tokenizer: Callable[[Sequence[str]], Tensor] = open_clip.get_tokenizer(f"local-dir:{folder}")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}: no readable tokenizer: {error}") from error
    # The model takes the vector of a text at the token with the highest id, which must be the end token.
    ids = tokenizer([""])[0].tolist()
    if ids[:2] != [vocab_size - 2, vocab_size - 1] or any(ids[2:]):
        raise ArtifactError(
            f"{folder}: the tokenizer gives {ids[:3]} for an empty text; the model's {vocab_size} tokens ask for "
            f"{[vocab_size - 2, vocab_size - 1, 0]}"
        )
    return tokenizer
