import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from fashion_rag.artifacts import write_json
from fashion_rag.catalogue.retrieval_encoder import BATCH_SIZE, CONFIG_FILE, WEIGHTS_FILE, RetrievalEncoder
from fashion_rag.data.image import bordered
from fashion_rag.demo.model.tokenizer import write_tokenizer
from fashion_rag.errors import ArtifactError
from fashion_rag.weights import read_state, write_state


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    """Return a copy of the encoder's folder that a test may change."""
    return Path(shutil.copytree(tiny_bundle / "retrieval", tmp_path / "retrieval"))


def change_config(folder: Path, section: str, **changes: Any) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    config[section] |= changes
    write_json(folder / CONFIG_FILE, config)


def picture(size: tuple[int, int] = (40, 60)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_vectors_are_those_of_open_clip(folder: Path) -> None:
    ours = RetrievalEncoder.load(folder)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    texts = ["a red dress", "Blue JEANS, flared", ""]
    with torch.inference_mode():
        ids = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
        np.testing.assert_allclose(ours.encode_texts(texts), model.encode_text(ids, normalize=True), atol=1e-6)
        wanted = model.encode_image(preprocess(picture())[None], normalize=True)
        np.testing.assert_allclose(ours.encode_images([picture()]), wanted, atol=1e-6)


def test_vectors_have_unit_length_and_do_not_depend_on_their_batch(folder: Path) -> None:
    encoder = RetrievalEncoder.load(folder)
    texts = [f"garment number {index}" for index in range(BATCH_SIZE + 3)]
    vectors = encoder.encode_texts(texts)
    assert vectors.shape == (BATCH_SIZE + 3, encoder.dim) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors[-1], encoder.encode_texts(texts[-1:])[0], atol=1e-6)
    images = [picture((20 + index, 50)) for index in range(BATCH_SIZE + 3)]
    vectors = encoder.encode_images(images)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors[-1], encoder.encode_images(images[-1:])[0], atol=1e-6)
    assert encoder.encode_images([]).shape == encoder.encode_texts([]).shape == (0, encoder.dim)


def test_a_picture_of_another_shape_than_the_bundles_gets_a_border(folder: Path) -> None:
    plain, ours = RetrievalEncoder.load(folder), RetrievalEncoder.load(folder, picture_size=(64, 48))
    shaped, square = picture((48, 64)), picture((60, 60))
    np.testing.assert_array_equal(ours.encode_images([shaped]), plain.encode_images([shaped]))
    wanted = plain.encode_images([bordered(square, (64, 48))])
    np.testing.assert_array_equal(ours.encode_images([square]), wanted)
    assert not np.allclose(plain.encode_images([square]), wanted, atol=1e-4)


def test_token_ids_begin_end_and_pad_as_clip(folder: Path) -> None:
    ids = RetrievalEncoder.load(folder).tokenizer(["a dress", "word " * 200])
    assert ids.shape == (2, 77)
    end = ids[0].argmax().item()
    assert (ids[0, 0].item(), ids[0, end].item(), set(ids[0, end + 1 :].tolist())) == (598, 599, {0})
    assert ids[1, -1].item() == 599


@pytest.mark.parametrize(("mode", "same"), [("squash", False), ("shortest", True)])
def test_pictures_are_prepared_as_the_configuration_says(folder: Path, mode: str, same: bool) -> None:
    change_config(folder, "preprocess_cfg", resize_mode=mode, mean=[0.0] * 3, std=[0.5] * 3)
    encoder = RetrievalEncoder.load(folder)
    tall = Image.new("RGB", (32, 64), "red")
    tall.paste("blue", (0, 0, 32, 8))
    pixels = encoder.preprocess(tall)
    assert pixels.shape == (3, 32, 32)
    assert pixels.max().item() == 2
    # The blue edge stays in the picture only if it is squashed and not cropped.
    assert (pixels[0, 0].max().item() == 2) == same


def test_the_size_is_the_models_whatever_the_file_says(folder: Path) -> None:
    change_config(folder, "preprocess_cfg", size=224)
    assert RetrievalEncoder.load(folder).preprocess(picture()).shape == (3, 32, 32)


def test_the_fingerprint_follows_the_weights(folder: Path) -> None:
    before = RetrievalEncoder.load(folder).fingerprint
    assert RetrievalEncoder.load(folder).fingerprint == before
    state = read_state(folder / WEIGHTS_FILE)
    state["logit_scale"] += 1
    write_state(folder / WEIGHTS_FILE, state)
    assert RetrievalEncoder.load(folder).fingerprint != before


def test_weights_that_open_clip_itself_would_adapt_are_refused(folder: Path) -> None:
    state = read_state(folder / WEIGHTS_FILE)
    state["visual.positional_embedding"] = torch.zeros(17, 16)
    write_state(folder / WEIGHTS_FILE, state)
    message = f"{folder / WEIGHTS_FILE}: does not fit its configuration: visual.positional_embedding is [17, 16]"
    with pytest.raises(ArtifactError, match=re.escape(message)):
        RetrievalEncoder.load(folder)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, "vocab.json"])
def test_a_missing_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=re.escape(str(folder))):
        RetrievalEncoder.load(folder)


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("model_cfg", {"colour": "red"}),
        ("model_cfg", {"embed_dim": None}),
        ("preprocess_cfg", {"resize_mode": "stretch"}),
        ("preprocess_cfg", {"colour": "red"}),
    ],
)
def test_a_configuration_of_no_model_is_refused(folder: Path, section: str, changes: dict[str, Any]) -> None:
    change_config(folder, section, **changes)
    with pytest.raises(ArtifactError, match=re.escape(str(folder / CONFIG_FILE))):
        RetrievalEncoder.load(folder)


def test_a_tokenizer_of_another_vocabulary_is_refused(folder: Path) -> None:
    write_tokenizer(folder, 610)
    with pytest.raises(ArtifactError, match=re.escape("[608, 609, 0] for an empty text; the model's 600 tokens")):
        RetrievalEncoder.load(folder)
