"""The training stages that only the demo bundle has: CLIP, the VAE, and the inversion adapter alone.

Each is a `fit.TrainingStage`: it has a network that learns, and computes the loss of a batch with the help of frozen
networks. `train` calls them; it trains the UNet in the same way as that of any other bundle.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fashion_rag.demo.model import recipe
from fashion_rag.demo.model.cases import ATTRIBUTES, NUM_VALUES, TrainingCases
from fashion_rag.models.adapter import InversionAdapter
from fashion_rag.models.prompt import PromptEncoder, prompt_text
from fashion_rag.request import Template
from fashion_rag.training.fit import Precision, autocast

# The logarithm of the largest scale of contrastive logits, which is exp(4) = 55.
CONTRASTIVE_SCALE_LIMIT = 4.0
# The share of captions that are shown whole to CLIP.
FULL_CAPTION_SHARE = 0.7
# On new CPUs and on GPUs, bfloat16 is two to three times as fast as float32.
PRECISION: Precision = "bfloat16"


def pictures(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return pictures of uint8 [B, H, W, 3] as a tensor [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


class AttributeHeads(nn.Module):
    """A linear classifier for each attribute, which keeps the attributes readable in an embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(width, NUM_VALUES[name]) for name in ATTRIBUTES])

    def forward(self, embedding: Tensor, attributes: Tensor) -> Tensor:
        """Return the mean cross-entropy of the four attributes.

        embedding: [B, D]. attributes: class numbers [B, 4], in the order of ATTRIBUTES.
        """
        losses = [functional.cross_entropy(head(embedding), attributes[:, i]) for i, head in enumerate(self.heads)]
        return torch.stack(losses).mean()


def contrastive_loss(a: Tensor, b: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """Return the symmetric InfoNCE loss of two sets of unit vectors.

    a, b: [B, D]. scale: the logarithm of the factor on the cosines. same: [B, B], 1 for a pair that describes the same
    thing and 0 for any other.
    """
    logits = scale.clamp(max=CONTRASTIVE_SCALE_LIMIT).exp() * a @ b.T
    target = same / same.sum(dim=1, keepdim=True)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


class ClipStage:
    """The training of CLIP on captions and in-shop pictures, with attribute heads on both embeddings."""

    name = "clip"

    def __init__(self, cases: TrainingCases, tokenizer: Any, device: torch.device) -> None:
        self.cases, self.tokenizer, self.device = cases, tokenizer, device
        self.clip = recipe.make_clip()
        width = recipe.CLIP["embed_dim"]
        self.heads = AttributeHeads(width)
        self.network = nn.ModuleDict({"clip": self.clip, "heads": self.heads}).to(device)

    def loss(self, rng: np.random.Generator, batch_size: int) -> Tensor:
        """Return the contrastive loss plus the attribute losses of pictures and captions."""
        rows, garments = rng.integers(len(self.cases), size=batch_size), rng.integers(3, size=batch_size)
        attributes = torch.from_numpy(self.cases.attributes[rows, garments]).to(self.device)
        images = clip_pixels(pictures(self.cases.garments[rows, garments], self.device), squash=rng.random() < 0.5)
        full = rng.random(batch_size) < FULL_CAPTION_SHARE
        captions = [self.cases.texts[row][f"caption_{garment}"] for row, garment in zip(rows, garments, strict=True)]
        texts = [self._text(rng, caption, whole) for caption, whole in zip(captions, full, strict=True)]
        same = (attributes[:, None] == attributes[None]).all(dim=2).float()
        with autocast(self.device, PRECISION)():
            image = self.clip.encode_image(images, normalize=True).float()
            text = self.clip.encode_text(self._ids(texts), normalize=True).float()
        whole = torch.from_numpy(full).to(self.device)
        readings = self.heads(8 * image, attributes) + self.heads(8 * text[whole], attributes[whole])
        loss: Tensor = contrastive_loss(image, text, self.clip.logit_scale, same) + 0.5 * readings
        return loss

    def _text(self, rng: np.random.Generator, caption: str, whole: bool) -> str:
        """Return the caption, or one or two of its chunks where it is not to be `whole`.

        A third of the texts begin like a prompt, because later text positions would otherwise stay untrained.
        """
        parts = caption.split(", ")
        if not whole:
            rng.shuffle(parts)
            parts = parts[: int(rng.integers(1, 3))]
        text = ", ".join(sorted(parts))
        if rng.random() < 1 / 3:
            return f"a photo of a model wearing an upper body garment made of {text}"
        return text

    def _ids(self, texts: list[str]) -> Tensor:
        ids = self.tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        return ids["input_ids"].to(self.device)  # type: ignore[no-any-return]


def clip_pixels(garments: Tensor, squash: bool) -> Tensor:
    """Return garment pictures in the square that a vision tower sees.

    garments: [B, 3, H, W] in [-1, 1]. squash: squeeze the whole picture; otherwise it is cropped as in the paper.
    """
    size = recipe.VISION_IMAGE
    if squash:
        return functional.interpolate(garments, size=(size, size), mode="bicubic", antialias=True)
    height = round(garments.shape[2] * size / garments.shape[3])
    resized = functional.interpolate(garments, size=(height, size), mode="bicubic", antialias=True)
    top = (height - size) // 2
    return resized[:, :, top : top + size]


class VaeStage:
    """The training of the VAE on pictures of persons, one in five with the mask cut out."""

    name = "vae"

    def __init__(self, cases: TrainingCases, device: torch.device) -> None:
        self.cases, self.device = cases, device
        self.network: AutoencoderKL = recipe.make_vae().to(device)

    def loss(self, rng: np.random.Generator, batch_size: int) -> Tensor:
        """Return the reconstruction loss plus a small KL term, which keeps the latents near unit scale.

        The reconstruction loss adds up the absolute error, the squared error and the error of the gradients.
        """
        rows = rng.integers(len(self.cases), size=batch_size)
        image = pictures(self.cases.images[rows], self.device)
        hole = torch.from_numpy(self.cases.masks[rows] * (rng.random(batch_size) < 0.2)[:, None, None])
        image = image * (1 - hole.to(self.device)[:, None].float())
        if rng.random() < 0.5:
            image = image.flip(3)
        with autocast(self.device, PRECISION)():
            posterior = self.network.encode(image).latent_dist
            decoded = self.network.decode(posterior.sample()).sample
        error = decoded.float() - image
        gradient_error = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
        loss: Tensor = error.abs().mean() + 2 * error.square().mean() + 0.5 * gradient_error + 1e-4 * kl
        return loss


class AdapterStage:
    """The training of the inversion adapter alone.

    CLIP's text embedding of a prompt with the pseudo-words is brought close to its embedding of the garment's picture.
    hidden: the vision tower's hidden states of the in-shop pictures, float16 [N, 3, T, D]. clip_stage: trained.
    """

    name = "adapter"

    def __init__(
        self,
        cases: TrainingCases,
        hidden: NDArray[np.float16],
        clip_stage: ClipStage,
        prompts: PromptEncoder,
        device: torch.device,
    ) -> None:
        self.cases, self.hidden, self.clip, self.heads = cases, hidden, clip_stage.clip, clip_stage.heads
        self.prompts, self.device = prompts, device
        self.network: InversionAdapter = recipe.make_adapter().to(device)
        self.clip.requires_grad_(False)
        self.heads.requires_grad_(False)

    def loss(self, rng: np.random.Generator, batch_size: int) -> Tensor:
        """Return the contrastive loss between prompts and garment pictures, plus the attribute loss of the prompts."""
        rows, garments = rng.integers(len(self.cases), size=batch_size), rng.integers(3, size=batch_size)
        attributes = torch.from_numpy(self.cases.attributes[rows, garments]).to(self.device)
        category = self.cases.texts[rows[0]]["category"]
        text = prompt_text(Template.GARMENTS, category, "", 1, recipe.MANIFEST.num_pseudo_words)
        end = int((self.prompts.tokenize([text])[0] == recipe.VOCAB_SIZE - 1).nonzero()[0, 0])
        words = self.network(torch.from_numpy(self.hidden[rows, garments]).to(self.device).float())
        pooled = self.prompts([text] * batch_size, words.unbind())[:, end] @ self.clip.text_projection
        with torch.no_grad():
            pixels = clip_pixels(pictures(self.cases.garments[rows, garments], self.device), squash=True)
            image = self.clip.encode_image(pixels, normalize=True)
        pooled = functional.normalize(pooled, dim=1)
        same = (attributes[:, None] == attributes[None]).all(dim=2).float()
        scale = self.clip.logit_scale.detach()
        loss: Tensor = contrastive_loss(image, pooled, scale, same) + self.heads(8 * pooled, attributes)
        return loss
