from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from transformers import CLIPTokenizer

from fashion_rag.demo.model.tokenizer import FULL_VOCAB_SIZE, write_tokenizer
from fashion_rag.models.prompt import prompt_text
from fashion_rag.request import Template
from tests.golden.golden import Golden


@pytest.mark.parametrize("vocab_size", [514, 600, 2048])
def test_a_cut_vocabulary_keeps_the_ids_that_matter(tmp_path: Path, vocab_size: int) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(write_tokenizer(tmp_path, vocab_size))
    ids = tokenizer("A  $  $ é", padding="max_length", truncation=True, max_length=77)["input_ids"]
    start, *words, end = ids[: ids.index(tokenizer.eos_token_id) + 1]
    assert (len(tokenizer), start, end) == (vocab_size, vocab_size - 2, vocab_size - 1)
    assert words[:3] == [320, 259, 259]
    assert max(words) < start
    assert len(ids) == 77 and set(ids[len(words) + 2 :]) == {0}


def test_longer_merges_come_with_a_larger_vocabulary(tmp_path: Path) -> None:
    lengths = []
    for vocab_size in (514, 2048, FULL_VOCAB_SIZE):
        tokenizer = CLIPTokenizer.from_pretrained(write_tokenizer(tmp_path / str(vocab_size), vocab_size))
        lengths.append(len(tokenizer("striped garment")["input_ids"]) - 2)
    assert lengths[0] == len("stripedgarment") and lengths[2] == 2
    assert lengths[0] > lengths[1] > lengths[2]


def test_the_full_vocabulary_gives_the_ids_of_open_clip(tmp_path: Path) -> None:
    texts = ["Red striped shirt, flowing sleeves", "it's a café dress $ $", "long " * 200, ""]
    ours = HFTokenizer(write_tokenizer(tmp_path, FULL_VOCAB_SIZE))(texts)
    assert torch.equal(ours, open_clip.SimpleTokenizer()(texts))


def test_the_full_vocabulary_gives_the_golden_ids(golden: Golden, tmp_path: Path) -> None:
    rows = golden.rows("2c_real_clip_prompt_ids")["rows"]
    assert rows
    tokenizer = CLIPTokenizer.from_pretrained(write_tokenizer(tmp_path, FULL_VOCAB_SIZE))
    for row in rows:
        text = row.get("text")
        if text is None:
            text = prompt_text(Template.GARMENTS, row["category"], "", row["n_retrieved"], row["num_vstar"])
        ids = tokenizer(text, padding="max_length", truncation=True, max_length=len(row["input_ids"]))["input_ids"]
        assert ids == row["input_ids"], text


@pytest.mark.parametrize("vocab_size", [513, FULL_VOCAB_SIZE + 1])
def test_a_size_that_cannot_be_is_refused(tmp_path: Path, vocab_size: int) -> None:
    with pytest.raises(ValueError, match=f"vocab_size: got {vocab_size}; must be from 514 to {FULL_VOCAB_SIZE}"):
        write_tokenizer(tmp_path, vocab_size)
