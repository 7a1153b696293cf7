"""The wording of prompts, their tokens, and the text encoder for words and pseudo-words.

The pipeline and the garment-encoding replica call `PromptEncoder`; training and export call `TextEncoder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from fashion_rag.errors import InvalidRequest
from fashion_rag.request import Template

if TYPE_CHECKING:
    from transformers import CLIPTextModel

GARMENT_WORDS = {
    "dresses": "a dress",
    "upper_body": "an upper body garment",
    "lower_body": "a lower body garment",
}
# Spaces keep the dollars apart, because "$$" is a single token of its own.
PLACEHOLDER = " $ "
PLACEHOLDER_ID = 259
# Stable Diffusion 2 pads with "!" in place of the end token, and no mask hides the padding from the UNet.
PAD_ID = 0
MAX_TOKENS = 77


def prompt_text(template: Template, category: str, caption: str, num_garments: int, num_pseudo_words: int) -> str:
    """Return the prompt of an edit, with `num_garments * num_pseudo_words` placeholders for pseudo-words.

    The default template leaves the caption out where garments were retrieved, because the caption has chosen them.
    """
    # A dollar in the caption would be taken for a placeholder.
    caption = caption.replace("$", " ").strip()
    placeholders = PLACEHOLDER * (num_garments * num_pseudo_words)
    if template is Template.CAPTION_AND_GARMENTS and num_garments:
        return f"{caption}. {placeholders}"
    if template is Template.GARMENTS and num_garments:
        return f"a photo of a model wearing {GARMENT_WORDS[category]} made of {placeholders}"
    return f"a photo of a model wearing {GARMENT_WORDS[category]}. {caption}"


def insert_pseudo_words(token_embeds: Tensor, token_ids: Tensor, pseudo_words: Tensor) -> Tensor:
    """Return a copy of the token embeddings in which pseudo-words replace the placeholders, row after row.

    token_embeds: [B, 77, D]. token_ids: [B, 77], with P placeholders in all. pseudo_words: [P, D].
    """
    filled = token_embeds.clone()
    filled[token_ids == PLACEHOLDER_ID] = pseudo_words.to(token_embeds)
    return filled


class TextEncoder(nn.Module):
    """The CLIP text encoder without its token lookup, so that pseudo-words can take the place of token embeddings."""

    def __init__(self, text_model: CLIPTextModel) -> None:
        super().__init__()
        self.position_embedding = text_model.embeddings.position_embedding
        self.encoder = text_model.encoder
        self.final_layer_norm = text_model.final_layer_norm

    def forward(self, token_embeds: Tensor) -> Tensor:
        """Return the final hidden states [B, 77, D] of token embeddings [B, 77, D], under a causal mask only."""
        positions = self.position_embedding.weight[: token_embeds.shape[1]]
        hidden = token_embeds.to(positions.dtype) + positions
        lowest = torch.finfo(positions.dtype).min
        causal_mask = positions.new_full((len(positions), len(positions)), lowest).triu(1)
        hidden = self.encoder(inputs_embeds=hidden, attention_mask=causal_mask[None, None]).last_hidden_state
        embeds: Tensor = self.final_layer_norm(hidden)
        return embeds.float()


class PromptEncoder(nn.Module):
    """The encoder of prompts and pseudo-words into the embeddings that the UNet attends to.

    A compiled module may replace `text_encoder`.
    """

    def __init__(self, tokenizer: Any, token_embedding: nn.Module, text_encoder: nn.Module) -> None:
        """Take a tokenizer of transformers, the table of its tokens' embeddings, and the network after the table."""
        super().__init__()
        self.tokenizer = tokenizer
        self.token_embedding = token_embedding
        self.text_encoder = text_encoder

    @classmethod
    def of(cls, tokenizer: Any, text_model: CLIPTextModel) -> Self:
        """Return the encoder whose table and network are those of `text_model`."""
        return cls(tokenizer, text_model.embeddings.token_embedding, TextEncoder(text_model))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return the token ids of the texts, int64 [B, 77] on the CPU, padded with PAD_ID.

        A text that is too long loses the last words of its caption, but no placeholder. Raises InvalidRequest if the
        placeholders do not fit in any case.
        """
        return torch.tensor([self._token_ids(text) for text in texts])

    def _token_ids(self, text: str) -> list[int]:
        """Return the 77 token ids of a text."""
        words, first_placeholder, further_placeholders = text.partition(PLACEHOLDER)
        placeholders = first_placeholder + further_placeholders
        word_ids = self.tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"]
        num_placeholders = placeholders.count(PLACEHOLDER)
        room = MAX_TOKENS - 2 - num_placeholders
        if len(word_ids) > room:
            # Only a caption may be cut. Before placeholders, a caption ends with the full stop of `prompt_text`.
            if room < 1 or (placeholders and not words.rstrip().endswith(".")):
                needed = len(word_ids) + num_placeholders + 2
                raise InvalidRequest("num_garments", text, f"needs {needed} text positions of {MAX_TOKENS}; use fewer")
            # The full stop is kept.
            word_ids = word_ids[: room - 1] + word_ids[-1:] if placeholders else word_ids[:room]
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        ids = [begin, *word_ids, *[PLACEHOLDER_ID] * num_placeholders, end]
        return ids + [PAD_ID] * (MAX_TOKENS - len(ids))

    def forward(self, texts: Sequence[str], pseudo_words: Sequence[Tensor | None] | None = None) -> Tensor:
        """Return the prompt embeddings [B, 77, D] of the texts, with pseudo-words in the place of their placeholders.

        pseudo_words: for each text [P, D], or None for none; P may differ between texts. A text must hold P
        placeholders, or none, in which case its pseudo-words are ignored. Raises InvalidRequest otherwise.
        """
        token_ids = self.tokenize(texts)
        counts = (token_ids == PLACEHOLDER_ID).sum(dim=1).tolist()
        inserted: list[Tensor] = []
        for text, count, words in zip(texts, counts, pseudo_words or [None] * len(texts), strict=True):
            num_words = 0 if words is None else len(words)
            if count not in (0, num_words):
                raise InvalidRequest("prompt", text, f"has {count} placeholders for {num_words} pseudo-words")
            if count and words is not None:
                inserted.append(words)
        token_ids = token_ids.to(next(self.token_embedding.parameters()).device)
        token_embeds: Tensor = self.token_embedding(token_ids)
        if inserted:
            token_embeds = insert_pseudo_words(token_embeds, token_ids, torch.cat(inserted))
        embeds: Tensor = self.text_encoder(token_embeds)
        return embeds
