"""Each network alone, against what the published code computed with the same weights (cases 1 to 4 and 7)."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fashion_rag.data.image import open_image
from fashion_rag.demo.model.tokenizer import FULL_VOCAB_SIZE, write_tokenizer
from fashion_rag.errors import InvalidRequest
from fashion_rag.models.prompt import PLACEHOLDER_ID, PromptEncoder, insert_pseudo_words, prompt_text
from fashion_rag.models.unet import widen_conv_in
from fashion_rag.request import Template
from tests.golden.golden import Golden, difference


def test_inversion_adapter(golden: Golden) -> None:
    case = golden.tensors("case1_inversion_adapter")
    words = golden.adapter(case["input_last_hidden_state"])
    assert difference(words.flatten(1), case["output"]) < golden.tolerance("case1")


@pytest.mark.parametrize("name", ["nr1", "nr2", "nr3", "nr4"])
def test_text_encoder_with_pseudo_words(golden: Golden, name: str) -> None:
    case = golden.tensors("case2_text")
    ids, words = case[f"{name}.input_ids"], case[f"{name}.word_embeddings"]
    counts = (ids == PLACEHOLDER_ID).sum(dim=1)
    # A row whose placeholders do not all fit is none that the tokens here can have: it is refused.
    fits = (counts == words.shape[1]) | (counts == 0)
    assert int(fits.sum()) == (2 if name == "nr4" else 3)
    embeds = insert_pseudo_words(
        golden.prompt_encoder.token_embedding(ids[fits]), ids[fits], words[counts == words.shape[1]].flatten(0, 1)
    )
    assert difference(golden.prompt_encoder.text_encoder(embeds), case[f"{name}.last_hidden_state"][fits]) < (
        golden.tolerance("case2")
    )


def test_text_encoder_without_pseudo_words(golden: Golden) -> None:
    case = golden.tensors("case2_text")
    embeds = golden.prompt_encoder.token_embedding(case["no_dollar.input_ids"])
    hidden = golden.prompt_encoder.text_encoder(embeds)
    assert difference(hidden, case["no_dollar.last_hidden_state"]) < golden.tolerance("case2")


def test_tokens_of_the_small_vocabulary(golden: Golden) -> None:
    rows = [row for row in golden.json("case2b_tokens.json") if row["input_ids"][-1] == 0]
    assert len(rows) == 13  # all but the two that four garments overrun
    for row in rows:
        assert golden.prompt_encoder.tokenize([row["text"]]).tolist() == [row["input_ids"]], row["text"]


def test_wording(golden: Golden) -> None:
    rows = [row for row in golden.json("case2b_tokens.json") if row["category"]]
    for row in rows:
        text = prompt_text(Template.GARMENTS, row["category"], "", row["n_retrieved"], golden.num_pseudo_words)
        assert text == row["text"]
    assert len(rows) == 12


@pytest.fixture(scope="module")
def real_prompt_encoder(tmp_path_factory: pytest.TempPathFactory) -> PromptEncoder:
    """A prompt encoder with the whole CLIP vocabulary, of which only the tokens are of use."""
    tokenizer = CLIPTokenizer.from_pretrained(write_tokenizer(tmp_path_factory.mktemp("tokenizer"), FULL_VOCAB_SIZE))
    return PromptEncoder(tokenizer, CLIPTextModel(CLIPTextConfig(hidden_size=8, num_hidden_layers=1)))


def test_tokens_of_the_real_vocabulary(golden: Golden, real_prompt_encoder: PromptEncoder) -> None:
    rows = golden.json("case2c_real_clip_prompt_ids.json")["rows"]
    overrun = 0
    for row in rows:
        text = row.get("text")
        if text is None:
            text = prompt_text(Template.GARMENTS, row["category"], "", row["n_retrieved"], row["num_vstar"])
        if row["input_ids"].count(PLACEHOLDER_ID) < row.get("n_retrieved", 0) * row.get("num_vstar", 0):
            overrun += 1
            with pytest.raises(InvalidRequest, match=r"num_garments: .*needs 78 text positions of 77"):
                real_prompt_encoder.tokenize([text])
        else:
            assert real_prompt_encoder.tokenize([text]).tolist() == [row["input_ids"]], text
    assert (len(rows), overrun) == (14, 2)


def test_unet_with_a_timestep_for_each_row(golden: Golden) -> None:
    case = golden.tensors("case3_unet")
    assert len(set(case["timesteps"].tolist())) == 2
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
    files = golden.case("7_vision")["garment_files_in_order"]
    pixels = golden.garment_encoder.pixels([open_image(golden.folder / "dresscode" / name) for name in files])
    assert difference(pixels[..., ::7, ::7], case["pixel_values_stride7"]) < tolerance
    hidden = golden.garment_encoder.network.vision_encoder(pixel_values=pixels[:1]).last_hidden_state
    assert difference(hidden, case["last_hidden_state_first1"]) < tolerance
    words = golden.garment_encoder(pixels)
    assert difference(words.flatten(1), case["adapter_output"]) < tolerance
    # Three garments a sample: garment after garment.
    assert difference(words.reshape(2, 3 * golden.num_pseudo_words, -1), case["word_embeddings"]) < tolerance


def test_garment_pixels_of_a_crop(golden: Golden) -> None:
    encoder = golden.garment_encoder
    name = golden.case("7_vision")["garment_files_in_order"][0]
    pixels = encoder.pixels([open_image(golden.folder / "dresscode" / name)])[0]
    levels = (pixels * torch.tensor(encoder.std).view(3, 1, 1) + torch.tensor(encoder.mean).view(3, 1, 1)) * 255
    with Image.open(golden.folder / "case7_clip224" / "0.png") as crop:
        expected = torch.frombuffer(bytearray(crop.convert("RGB").tobytes()), dtype=torch.uint8)
    assert torch.equal(levels.round().to(torch.uint8).permute(1, 2, 0).flatten(), expected)
