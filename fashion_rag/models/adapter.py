"""The networks that turn garment pictures into pseudo-words: the CLIP vision tower and the inversion adapter.

The pipeline and the garment-encoding replica call `GarmentEncoder`, and the training calls `InversionAdapter`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor, nn

from fashion_rag.data.image import vision_pixels

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig, CLIPVisionModel

# A new adapter's inner width as a multiple of the vision tower's; in the paper they are 5120 and 1280.
HIDDEN_RATIO = 4


class InversionAdapter(nn.Module):
    """The network from a garment's patch features to the token embeddings of its pseudo-words.

    Its parameters have the names of the released file.
    """

    def __init__(
        self,
        vision_config: CLIPVisionConfig,
        hidden_dim: int,
        text_width: int,
        num_pseudo_words: int,
        dropout: float = 0.5,
    ) -> None:
        # Imported here, because a process that runs compiled networks does without those of transformers.
        from transformers.models.clip.modeling_clip import CLIPEncoderLayer

        super().__init__()
        # Without this setting, a layer that is used on its own warns and takes the slow attention.
        config = type(vision_config).from_dict(vision_config.to_dict(), attn_implementation="sdpa")
        width = config.hidden_size
        self.num_pseudo_words = num_pseudo_words
        self.encoder_layers = nn.ModuleList([CLIPEncoderLayer(config)])
        self.post_layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.layers = nn.Sequential(
            nn.Linear(width, hidden_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, num_pseudo_words * text_width),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the pseudo-words [N, num_pseudo_words, text_width] for the vision tower's hidden states [N, T, D].

        hidden: output of the last encoder layer, class token first, before the tower's own post layer norm.
        """
        for layer in self.encoder_layers:
            hidden = layer(hidden, None)
        words: Tensor = self.layers(self.post_layernorm(hidden[:, 0]))
        words = words.unflatten(1, (self.num_pseudo_words, -1))
        return words.float()


def new_adapter_sizes(vision_config: CLIPVisionConfig, text_width: int, num_pseudo_words: int) -> dict[str, int]:
    """Return the sizes of a new adapter, as arguments of InversionAdapter."""
    hidden_dim = HIDDEN_RATIO * vision_config.hidden_size
    return {"hidden_dim": hidden_dim, "text_width": text_width, "num_pseudo_words": num_pseudo_words}


def new_adapter(vision_config: CLIPVisionConfig, text_width: int, num_pseudo_words: int, seed: int) -> InversionAdapter:
    """Return an adapter that is not trained yet.

    Every layer has the random weights that PyTorch gives it by default, drawn from `seed`. The state of PyTorch's own
    generator is left as it is.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return InversionAdapter(vision_config, **new_adapter_sizes(vision_config, text_width, num_pseudo_words))


class GarmentNetwork(nn.Module):
    """A network that runs the vision tower and then the adapter."""

    def __init__(self, vision_encoder: CLIPVisionModel, adapter: InversionAdapter) -> None:
        super().__init__()
        self.vision_encoder = vision_encoder
        self.adapter = adapter

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the pseudo-words [N, num_pseudo_words, text_width] for garment pixels [N, 3, crop, crop].

        The pixels may be on any device.
        """
        # Only the pooled output passes through `post_layernorm`; `last_hidden_state` comes before it.
        hidden = self.vision_encoder(pixel_values=pixels.to(self.vision_encoder.device)).last_hidden_state
        words: Tensor = self.adapter(hidden)
        return words


class GarmentEncoder(nn.Module):
    """The encoder of garment pictures into pseudo-words. A compiled module may replace `network`."""

    def __init__(
        self,
        network: nn.Module,
        picture_size: tuple[int, int],
        crop: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        """Take the network, and how pictures become its pixels, as `vision_pixels` has it."""
        super().__init__()
        self.network = network
        self.picture_size = picture_size
        self.crop = crop
        self.mean = tuple(mean)
        self.std = tuple(std)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the pixels [N, 3, crop, crop] of N >= 1 RGB garment pictures, cropped and normalised, on the CPU."""
        rule = (self.picture_size, self.crop, self.mean, self.std)
        return torch.stack([vision_pixels(image, *rule) for image in images])

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the pseudo-words [N, num_pseudo_words, text_width] for garment pixels [N, 3, crop, crop]."""
        words: Tensor = self.network(pixels)
        return words
