"""Each network alone, against what the published code computed with the same weights (cases 1 to 4 and 7)."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fashion_rag.demo.model.tokenizer import FULL_VOCAB_SIZE, write_tokenizer
from fashion_rag.errors import InvalidRequest
from fashion_rag.models.prompt import PLACEHOLDER_ID, PromptEncoder, insert_pseudo_words, prompt_text
from fashion_rag.models.unet import widen_conv_in
from fashion_rag.request import Template
from tests.golden.golden import Golden, difference, first_rows, named, strided


def test_inversion_adapter(golden: Golden) -> None:
    case = golden.tensors("case1_inversion_adapter")
    words = golden.adapter(case["input_last_hidden_state"])
    assert difference(words.flatten(1), case["output"]) < golden.tolerance("case1")


def test_text_encoder_with_pseudo_words(golden: Golden) -> None:
    case = golden.tensors("case2_text")
    for name, (group,) in named(case, r"(.+)\.word_embeddings").items():
        about = golden.case("2_text")[group]
        ids, words = case[f"{group}.input_ids"], case[name]
        counts = (ids == PLACEHOLDER_ID).sum(dim=1)
        assert counts.tolist() == about["dollars_per_row"]
        assert words.shape[1] == about["num_vstar_arg"]
        # A row whose placeholders do not all fit is none that the tokens here can have: it is refused.
        full = counts == words.shape[1]
        fits = full | (counts == 0)
        embeds = golden.prompt_encoder.token_embedding(ids[fits])
        hidden = golden.prompt_encoder.text_encoder(
            insert_pseudo_words(embeds, ids[fits], words[full].flatten(0, 1)),
        )
        assert difference(hidden, case[f"{group}.last_hidden_state"][fits]) < golden.tolerance("case2"), group


def test_text_encoder_without_pseudo_words(golden: Golden) -> None:
    case = golden.tensors("case2_text")
    embeds = golden.prompt_encoder.token_embedding(case["no_dollar.input_ids"])
    hidden = golden.prompt_encoder.text_encoder(embeds)
    assert difference(hidden, case["no_dollar.last_hidden_state"]) < golden.tolerance("case2")


def check_tokens(encoder: PromptEncoder, rows: list[dict[str, Any]], num_pseudo_words: int) -> None:
    """Hold each row's tokens to the published ones; a prompt with more placeholders than fit must be refused."""
    assert rows
    for row in rows:
        num_garments, num_words = row.get("n_retrieved", 0), row.get("num_vstar", num_pseudo_words)
        text = row.get("text")
        if text is None:
            text = prompt_text(Template.GARMENTS, row["category"], "", num_garments, num_words)
        if row["input_ids"].count(PLACEHOLDER_ID) < num_garments * num_words:
            with pytest.raises(InvalidRequest, match=rf"num_garments: .*text positions of {len(row['input_ids'])}"):
                encoder.tokenize([text])
        else:
            assert encoder.tokenize([text]).tolist() == [row["input_ids"]], text


def test_tokens_of_the_small_vocabulary(golden: Golden) -> None:
    check_tokens(golden.prompt_encoder, golden.rows("2b_tokens"), golden.num_pseudo_words)


def test_wording(golden: Golden) -> None:
    rows = [row for row in golden.rows("2b_tokens") if row["category"]]
    assert rows
    for row in rows:
        text = prompt_text(Template.GARMENTS, row["category"], "", row["n_retrieved"], golden.num_pseudo_words)
        assert text == row["text"]


@pytest.fixture(scope="module")
def real_prompt_encoder(tmp_path_factory: pytest.TempPathFactory) -> PromptEncoder:
    """Return a prompt encoder with the whole CLIP vocabulary, of which only the tokens are of use."""
    tokenizer = CLIPTokenizer.from_pretrained(write_tokenizer(tmp_path_factory.mktemp("tokenizer"), FULL_VOCAB_SIZE))
    return PromptEncoder.of(tokenizer, CLIPTextModel(CLIPTextConfig(hidden_size=8, num_hidden_layers=1)))


def test_tokens_of_the_real_vocabulary(golden: Golden, real_prompt_encoder: PromptEncoder) -> None:
    check_tokens(real_prompt_encoder, golden.rows("2c_real_clip_prompt_ids")["rows"], golden.num_pseudo_words)


def test_unet_with_a_timestep_for_each_row(golden: Golden) -> None:
    case = golden.tensors("case3_unet")
    assert case["timesteps"].tolist() == golden.case("3_unet")["per_batch_timesteps"]
    assert len(case["timesteps"].unique()) > 1
    noise_pred = golden.unet(case["sample"], case["timesteps"], case["encoder_hidden_states"])
    assert difference(noise_pred, case["output"]) < golden.tolerance("case3")


def test_widened_unet(golden: Golden) -> None:
    case = golden.tensors("case3_unet")
    unet = UNet2DConditionModel(**golden.config("unet") | {"in_channels": case["widen_old_weight"].shape[1]})
    unet.conv_in.load_state_dict({"weight": case["widen_old_weight"], "bias": case["widen_old_bias"]})
    widen_conv_in(unet)
    assert torch.equal(unet.conv_in.weight, case["widen_new_weight"])
    assert torch.equal(unet.conv_in.bias, case["widen_new_bias"])
    assert unet.config.in_channels == golden.config("unet")["in_channels"]


def test_vae(golden: Golden) -> None:
    case, tolerance = golden.tensors("case4_vae"), golden.tolerance("case4")
    vae = golden.vae
    mean, logvar = vae.encoder(case["image"]).chunk(2, dim=1)
    assert difference(mean, case["mean"]) < tolerance
    assert difference(logvar, case["logvar"]) < tolerance
    assert difference(vae.decoder(case["latent"]), case["decoded"]) < tolerance
    assert difference(vae.decode(case["latent"] * vae.scaling_factor), case["decoded"]) < tolerance


def test_garment_encoder(golden: Golden) -> None:
    case, tolerance = golden.tensors("case7_vision"), golden.tolerance("case7")
    pixels = golden.garment_encoder.pixels(golden.garments())
    expected, kept = strided(case, "pixel_values")
    assert difference(pixels[..., kept, kept], expected) < tolerance
    expected = first_rows(case, "last_hidden_state")
    hidden = golden.garment_encoder.network.vision_encoder(pixel_values=pixels[: len(expected)]).last_hidden_state
    assert difference(hidden, expected) < tolerance
    words = golden.garment_encoder(pixels)
    assert difference(words.flatten(1), case["adapter_output"]) < tolerance
    # Several garments a sample: garment after garment.
    samples = words.reshape(len(case["word_embeddings"]), -1, words.shape[-1])
    assert difference(samples, case["word_embeddings"]) < tolerance


def test_garment_pixels_of_a_crop(golden: Golden) -> None:
    encoder = golden.garment_encoder
    crop, *_ = golden.crops()
    pixels = encoder.pixels(golden.garments()[:1])[0]
    levels = (pixels * torch.tensor(encoder.std).view(3, 1, 1) + torch.tensor(encoder.mean).view(3, 1, 1)) * 255
    np.testing.assert_array_equal(levels.round().to(torch.uint8).movedim(0, -1), crop)
