"""A CLIP tokenizer with a small vocabulary, which keeps the token table of a small model small.

It has the real byte-pair merges of CLIP, but only the first of them. The training of the demo bundle calls it.
"""

from __future__ import annotations

import gzip
from pathlib import Path

from open_clip.tokenizer import bytes_to_unicode, default_bpe

from fashion_rag.artifacts import write_json

START, END, PAD = "<|startoftext|>", "<|endoftext|>", "!"
MAX_LENGTH = 77
# There are 256 byte symbols, and as many for a byte at the end of a word.
NUM_BYTE_SYMBOLS = 512
FULL_VOCAB_SIZE = 49408


def write_tokenizer(folder: Path, vocab_size: int) -> Path:
    """Write a CLIP tokenizer of `vocab_size` tokens to `folder`, in the layout that transformers reads, and return it.

    Ids 0 to 511 are the byte symbols; "$" alone is 259, as in the full vocabulary. Then come the first
    `vocab_size - 514` merges, the start token and the end token. Padding is "!" (id 0), as in Stable Diffusion 2.
    Raises ValueError for a size outside 514 to 49408.
    """
    if not NUM_BYTE_SYMBOLS + 2 <= vocab_size <= FULL_VOCAB_SIZE:
        raise ValueError(f"vocab_size: got {vocab_size}; must be from {NUM_BYTE_SYMBOLS + 2} to {FULL_VOCAB_SIZE}")
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1 : 1 + vocab_size - NUM_BYTE_SYMBOLS - 2]
    symbols = list(bytes_to_unicode().values())
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    tokens += [merge.replace(" ", "") for merge in merges] + [START, END]

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", {token: index for index, token in enumerate(tokens)})
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_LENGTH,
        "do_lower_case": True,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": PAD,
    }
    write_json(folder / "tokenizer_config.json", settings)
    return folder
