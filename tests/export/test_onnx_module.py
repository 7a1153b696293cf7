"""Tests of exported networks that ONNX Runtime runs, and of files that it must not run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from export.onnx_module import OnnxModule, load_onnx
from export.parity import random_inputs
from fashion_rag.bundle import Bundle
from fashion_rag.errors import ArtifactError, FashionRAGError


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def unet(onnx_folder: Path, bundle: Bundle) -> OnnxModule:
    return load_onnx(onnx_folder, bundle, "unet", num_threads=1)


def test_inputs_need_not_be_contiguous(unet: OnnxModule) -> None:
    sample, _, prompt_embeds = random_inputs(unet.spec, 3, torch.Generator().manual_seed(0))
    t = torch.tensor(7)
    with torch.inference_mode():
        expected = unet(sample, t.repeat(3), prompt_embeds)
        strided = sample.mT.contiguous().mT
        assert not strided.is_contiguous()
        assert torch.equal(unet(strided, t.expand(3), prompt_embeds), expected)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("sample", lambda sample, t, prompt: (sample[:, :4], t, prompt)),
        ("sample", lambda sample, t, prompt: (sample[:0], t[:0], prompt[:0])),
        ("timestep", lambda sample, t, prompt: (sample, t.int(), prompt)),
        ("timestep", lambda sample, t, prompt: (sample, t[:1], prompt)),
        ("prompt_embeds", lambda sample, t, prompt: (sample, t, prompt.double())),
    ],
)
def test_a_wrong_input_is_named(unet: OnnxModule, name: str, spoil: Callable) -> None:
    inputs = random_inputs(unet.spec, 2, torch.Generator().manual_seed(0))
    with pytest.raises(FashionRAGError, match=rf"^unet: {name}: got torch\.\w+ \[.*; must be torch\.\w+ \["):
        unet(*spoil(*inputs))
    with pytest.raises(FashionRAGError, match="unet: got 2 inputs; must be sample, timestep, prompt_embeds"):
        unet(*inputs[:2])


def cut_short(folder: Path) -> None:
    path = folder / "unet.onnx"
    path.write_bytes(path.read_bytes()[:-100])


def change_a_byte(folder: Path) -> None:
    content = bytearray((folder / "unet.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "unet.onnx").write_bytes(content)


def resize(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["modules"]["unet"]["inputs"]["sample"][1] += 8
    (folder / "manifest.json").write_text(json.dumps(manifest))


def forget(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["modules"]["unet"]["weights"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (cut_short, r"unet\.onnx: has changed since it was exported: SHA-256"),
        (change_a_byte, r"unet\.onnx: has changed since it was exported: SHA-256"),
        (lambda folder: (folder / "unet.onnx").unlink(), r"unet\.onnx: no such file"),
        (lambda folder: (folder / "manifest.json").unlink(), r"manifest\.json: not a readable JSON file"),
        (resize, r"unet\.onnx: inputs are"),
        (forget, r"manifest\.json: modules\.unet is"),
    ],
)
def test_unsound_files_are_not_run(
    onnx_folder: Path, bundle: Bundle, tmp_path: Path, spoil: Callable, reason: str
) -> None:
    folder = tmp_path / "onnx"
    shutil.copytree(onnx_folder, folder)
    spoil(folder)
    with pytest.raises(ArtifactError, match=reason):
        load_onnx(folder, bundle, "unet", 1)


def test_a_module_is_checked_by_its_own_files_alone(onnx_folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "onnx"
    shutil.copytree(onnx_folder, folder)
    cut_short(folder)
    assert load_onnx(folder, bundle, "text_encoder", 1).spec.name == "text_encoder"
