import pytest
import torch
from torch import Tensor

from fashion_rag.errors import InvalidRequest
from fashion_rag.models.prompt import MAX_TOKENS, PAD_ID, PLACEHOLDER_ID, PromptEncoder, prompt_text
from fashion_rag.request import Template
from tests.models import toy

NUM_PSEUDO_WORDS = 12
LONG_CAPTION = ", ".join(f"garment number {number}" for number in range(60))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> PromptEncoder:
    return toy.prompt_encoder(tmp_path_factory.mktemp("tokenizer"))


def ids_of(encoder: PromptEncoder, template: Template, caption: str, num_garments: int) -> list[int]:
    text = prompt_text(template, "upper_body", caption, num_garments, NUM_PSEUDO_WORDS)
    ids: list[int] = encoder.tokenize([text])[0].tolist()
    return ids


def pseudo_words(num_garments: int) -> Tensor:
    """Return random pseudo-words [P, D]."""
    generator = torch.Generator().manual_seed(num_garments)
    return torch.randn(num_garments * NUM_PSEUDO_WORDS, toy.TEXT_WIDTH, generator=generator)


@pytest.mark.parametrize(
    ("template", "num_garments", "expected"),
    [
        (Template.GARMENTS, 1, "a photo of a model wearing an upper body garment made of  $  $ "),
        (Template.GARMENTS, 0, "a photo of a model wearing an upper body garment. red top"),
        (Template.CAPTION_AND_GARMENTS, 1, "red top.  $  $ "),
        (Template.CAPTION_AND_GARMENTS, 0, "a photo of a model wearing an upper body garment. red top"),
        (Template.CAPTION, 0, "a photo of a model wearing an upper body garment. red top"),
        (Template.CAPTION, 1, "a photo of a model wearing an upper body garment. red top"),
    ],
)
def test_wording(template: Template, num_garments: int, expected: str) -> None:
    assert prompt_text(template, "upper_body", "red top", num_garments, num_pseudo_words=2) == expected


@pytest.mark.parametrize("num_garments", [0, 1, 2, 3])
@pytest.mark.parametrize("template", list(Template))
@pytest.mark.parametrize("caption", ["red top", LONG_CAPTION, "cheap $ top for $5, $$", "$"])
def test_every_pseudo_word_has_its_place(
    encoder: PromptEncoder, template: Template, caption: str, num_garments: int
) -> None:
    ids = ids_of(encoder, template, caption, num_garments)
    expected = 0 if template is Template.CAPTION else num_garments * NUM_PSEUDO_WORDS
    assert len(ids) == MAX_TOKENS
    assert ids.count(PLACEHOLDER_ID) == expected
    end = ids.index(encoder.tokenizer.eos_token_id)
    assert ids[end - expected : end] == [PLACEHOLDER_ID] * expected
    assert ids[end + 1 :] == [PAD_ID] * (MAX_TOKENS - end - 1)


def test_a_long_caption_before_garments_loses_its_last_words_and_keeps_the_full_stop(encoder: PromptEncoder) -> None:
    ids = ids_of(encoder, Template.CAPTION_AND_GARMENTS, LONG_CAPTION, 2)
    full_stop = encoder.tokenizer("red.", add_special_tokens=False)["input_ids"][-1]
    caption = encoder.tokenizer(LONG_CAPTION, add_special_tokens=False, verbose=False)["input_ids"]
    room = MAX_TOKENS - 2 - 2 * NUM_PSEUDO_WORDS
    assert ids[1 : 1 + room] == [*caption[: room - 1], full_stop]
    assert ids[-1] == encoder.tokenizer.eos_token_id


def test_a_long_caption_without_garments_is_cut_like_the_tokenizer_cuts(encoder: PromptEncoder) -> None:
    text = prompt_text(Template.CAPTION, "dresses", LONG_CAPTION, 0, NUM_PSEUDO_WORDS)
    assert encoder.tokenize([text])[0].tolist() == encoder.tokenizer(text, truncation=True, max_length=77)["input_ids"]


@pytest.mark.parametrize("template", [Template.GARMENTS, Template.CAPTION_AND_GARMENTS])
def test_more_pseudo_words_than_positions_are_refused(encoder: PromptEncoder, template: Template) -> None:
    text = prompt_text(template, "upper_body", "red top", 3, num_pseudo_words=25)
    with pytest.raises(InvalidRequest, match=r"num_garments: .* text positions of 77; use fewer"):
        encoder.tokenize([text])


def test_the_template_itself_is_never_cut(encoder: PromptEncoder) -> None:
    # 70 placeholders fit the 75 positions, but not with the template's own words before them.
    text = prompt_text(Template.GARMENTS, "upper_body", "red top", 2, num_pseudo_words=35)
    with pytest.raises(InvalidRequest, match="num_garments"):
        encoder.tokenize([text])


def test_pseudo_words_replace_embeddings_from_the_first_placeholder_on(encoder: PromptEncoder) -> None:
    text = prompt_text(Template.GARMENTS, "dresses", "", 1, NUM_PSEUDO_WORDS)
    token_ids = encoder.tokenize([text])
    words = encoder.token_embedding(token_ids)[token_ids == PLACEHOLDER_ID]
    plain = encoder.text_encoder(encoder.token_embedding(token_ids))
    assert torch.equal(encoder([text], [words]), plain)
    shift = torch.randn(words.shape, generator=torch.Generator().manual_seed(0))
    shift[0] = 0
    changed = encoder([text], [words + shift])
    # The first pseudo-word is the old one, and the mask is causal: the positions up to it do not depend on the others.
    first = token_ids[0].tolist().index(PLACEHOLDER_ID)
    torch.testing.assert_close(changed[:, : first + 1], plain[:, : first + 1])
    assert (changed[:, first + 1 :] - plain[:, first + 1 :]).abs().amax(dim=2).min() > 1e-3


def test_a_row_without_placeholders_ignores_its_pseudo_words(encoder: PromptEncoder) -> None:
    text = prompt_text(Template.GARMENTS, "dresses", "", 1, NUM_PSEUDO_WORDS)
    embeds = encoder(["", text], [pseudo_words(1), pseudo_words(1)])
    torch.testing.assert_close(embeds[:1], encoder([""]))
    torch.testing.assert_close(embeds[1:], encoder([text], [pseudo_words(1)]))


def test_rows_with_different_numbers_of_pseudo_words_are_what_they_are_alone(encoder: PromptEncoder) -> None:
    rows = [
        (prompt_text(template, "upper_body", "red top", count, NUM_PSEUDO_WORDS), pseudo_words(count))
        for template, count in ((Template.GARMENTS, 3), (Template.CAPTION_AND_GARMENTS, 1), (Template.GARMENTS, 2))
    ]
    rows[1:1] = [("", None), (prompt_text(Template.CAPTION, "dresses", LONG_CAPTION, 0, NUM_PSEUDO_WORDS), None)]
    texts, words = zip(*rows, strict=True)
    alone = torch.cat([encoder([text], [own]) for text, own in rows])
    torch.testing.assert_close(encoder(texts, words), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_words", [0, 11, 13])
def test_a_wrong_number_of_pseudo_words_is_refused(encoder: PromptEncoder, num_words: int) -> None:
    text = prompt_text(Template.GARMENTS, "dresses", "", 1, NUM_PSEUDO_WORDS)
    words = torch.zeros(num_words, toy.TEXT_WIDTH) if num_words else None
    # With these, the batch as a whole has as many pseudo-words as placeholders.
    others = torch.zeros(NUM_PSEUDO_WORDS * 2 - num_words, toy.TEXT_WIDTH)
    for texts, given in (([text], [words]), ([text, text], [words, others])):
        with pytest.raises(InvalidRequest, match=f"prompt: .*12 placeholders for {num_words} pseudo-words"):
            encoder(texts, given)


def test_gradients_reach_the_pseudo_words(encoder: PromptEncoder) -> None:
    text = prompt_text(Template.GARMENTS, "dresses", "", 1, NUM_PSEUDO_WORDS)
    words = torch.zeros(NUM_PSEUDO_WORDS, toy.TEXT_WIDTH, requires_grad=True)
    encoder([text], [words])[..., 0].sum().backward()
    assert words.grad is not None
    assert words.grad.abs().amax(dim=1).min() > 0
