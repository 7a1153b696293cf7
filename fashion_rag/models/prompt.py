"""The prompt: its wording, its tokens, and the text encoder that reads words and pseudo-words alike.

The pipeline and the garment-encoding replica call `PromptEncoder`; training and export reach into `TextEncoder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel

from fashion_rag.errors import InvalidRequest
from fashion_rag.request import Template

GARMENT_WORDS = {
    "dresses": "a dress",
    "upper_body": "an upper body garment",
    "lower_body": "a lower body garment",
}
# Spaces keep the dollars apart: "$$" without one between is a single, different token.
PLACEHOLDER = " $ "
PLACEHOLDER_ID = 259
# Stable Diffusion 2 pads with "!", not with the end token, and no mask hides the padding from the UNet.
PAD_ID = 0
MAX_TOKENS = 77


def prompt_text(template: Template, category: str, caption: str, num_garments: int, num_pseudo_words: int) -> str:
    """Return the prompt of an edit, with `num_garments * num_pseudo_words` placeholders for pseudo-words.

    The default template says nothing of the caption: with garments retrieved, the text has only chosen them.
    """
    # A dollar of the caption's own would be taken for a placeholder.
    caption = caption.replace("$", " ").strip()
    placeholders = PLACEHOLDER * (num_garments * num_pseudo_words)
    if template is Template.CAPTION_AND_GARMENTS and num_garments:
        return f"{caption}. {placeholders}"
    if template is Template.GARMENTS and num_garments:
        return f"a photo of a model wearing {GARMENT_WORDS[category]} made of {placeholders}"
    return f"a photo of a model wearing {GARMENT_WORDS[category]}. {caption}"


def insert_pseudo_words(token_embeds: Tensor, token_ids: Tensor, pseudo_words: Tensor) -> Tensor:
    """Return `token_embeds` [B, 77, D] with `pseudo_words` [P, D], row after row, in the places of the placeholders.

    `token_ids` [B, 77] must hold P placeholders in all.
    """
    filled = token_embeds.clone()
    filled[token_ids == PLACEHOLDER_ID] = pseudo_words.to(token_embeds)
    return filled


class TextEncoder(nn.Module):
    """The CLIP text encoder entered after its token lookup, so that pseudo-words can take part."""

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
    """Prompts and pseudo-words to what the UNet attends to. `text_encoder` may be replaced by a compiled module."""

    def __init__(self, tokenizer: Any, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.token_embedding: nn.Module = text_encoder.embeddings.token_embedding
        self.text_encoder: nn.Module = TextEncoder(text_encoder)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return the token ids [B, 77] int64 on the CPU, padded with id 0.

        A prompt too long loses the last words of its caption, never a placeholder. Raises InvalidRequest if the
        placeholders do not fit even so.
        """
        return torch.tensor([self._token_ids(text) for text in texts])

    def _token_ids(self, text: str) -> list[int]:
        start = text.find(PLACEHOLDER)
        words, placeholders = (text, "") if start < 0 else (text[:start], text[start:])
        word_ids = self.tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"]
        num_placeholders = placeholders.count(PLACEHOLDER)
        room = MAX_TOKENS - 2 - num_placeholders
        if len(word_ids) > room:
            # Only a caption may be cut; before placeholders, one ends with the full stop that `prompt_text` sets.
            if room < 1 or (placeholders and not words.rstrip().endswith(".")):
                needed = len(word_ids) + num_placeholders + 2
                raise InvalidRequest("num_garments", text, f"needs {needed} text positions of {MAX_TOKENS}; use fewer")
            word_ids = word_ids[: room - 1] + word_ids[-1:] if placeholders else word_ids[:room]
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        ids = [begin, *word_ids, *[PLACEHOLDER_ID] * num_placeholders, end]
        return ids + [PAD_ID] * (MAX_TOKENS - len(ids))

    def forward(self, texts: Sequence[str], pseudo_words: Sequence[Tensor | None] | None = None) -> Tensor:
        """Return the prompt embeddings [B, 77, D] of `texts`, whose placeholders stand for `pseudo_words`, a [P, D] for
        each text.

        P may differ from text to text. A text must hold P placeholders, or none: then its pseudo-words are ignored.
        Raises InvalidRequest otherwise.
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
