"""Exported networks in the place of PyTorch's, and files that are not run."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from export.backend import choose
from export.onnx_module import OnnxModule, load_onnx
from export.parity import random_inputs
from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.store import Garment
from fashion_rag.config import DEMO_BUNDLE
from fashion_rag.errors import ArtifactError, FashionRAGError
from fashion_rag.pipeline import Pipeline
from fashion_rag.request import EditRequest


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def unet(onnx_folder: Path, bundle: Bundle) -> OnnxModule:
    return load_onnx(onnx_folder, bundle, "unet", num_threads=1)


def compiled_pipeline(pipeline: Pipeline, bundle: Bundle, folder: Path) -> Pipeline:
    parts = choose(bundle, "onnx", folder)
    return replace(
        pipeline,
        unet=parts.load_unet(),
        vae=parts.load_vae(),
        prompt_encoder=parts.load_prompt_encoder(),
        garment_encoder=parts.load_garment_encoder(),
    )


def request(seed: int, num_inference_steps: int) -> EditRequest:
    rng = np.random.default_rng(seed)
    mask = np.zeros((64, 48), np.uint8)
    mask[16:48, 12:36] = 255
    return EditRequest(
        image=rng.integers(0, 256, (64, 48, 3), dtype=np.uint8),
        mask=mask,
        prompt="red shirt",
        category="upper_body",
        keypoints=rng.uniform(0, 48, (18, 2)),
        seed=seed,
        num_inference_steps=num_inference_steps,
        guidance_scale=3.0,
    )


def largest_difference(one: Pipeline, other: Pipeline, asked: EditRequest, garment: Garment) -> int:
    pictures = [pipeline(asked, [garment]).image.astype(int) for pipeline in (one, other)]
    return int(np.abs(pictures[0] - pictures[1]).max())


def shirt(catalogue: Path) -> Garment:
    pictures = catalogue.with_name(f"{catalogue.name}-pictures")
    return Garment("red-shirt", "upper_body", "", pictures / "upper_body" / "red-shirt.png")


@pytest.mark.parametrize("seed", range(4))
def test_an_edit_is_the_same_picture(
    bundle: Bundle, onnx_folder: Path, tiny_catalogue: Path, tiny_bundle: Path, seed: int
) -> None:
    pipeline = Pipeline.load(tiny_bundle)
    compiled = compiled_pipeline(pipeline, bundle, onnx_folder)
    assert largest_difference(pipeline, compiled, request(seed, 4), shirt(tiny_catalogue)) <= 2


@pytest.mark.slow
def test_edits_of_the_demo_bundle_are_the_same_pictures(tmp_path: Path, tiny_catalogue: Path) -> None:
    from export.to_onnx import export_onnx

    bundle = Bundle.open(DEMO_BUNDLE)
    export_onnx(bundle, tmp_path / "onnx")
    pipeline = Pipeline.load(DEMO_BUNDLE)
    compiled = compiled_pipeline(pipeline, bundle, tmp_path / "onnx")
    steps, garment = bundle.manifest.num_inference_steps, shirt(tiny_catalogue)
    differences = [largest_difference(pipeline, compiled, request(seed, steps), garment) for seed in range(20)]
    assert max(differences) <= 2, differences


def test_a_part_runs_what_was_chosen(bundle: Bundle, onnx_folder: Path) -> None:
    torch_parts, onnx_parts = choose(bundle, "torch"), choose(bundle, "onnx", onnx_folder)
    for parts, compiled in ((torch_parts, False), (onnx_parts, True)):
        vae = parts.load_vae()
        networks = (
            parts.load_unet(),
            vae.encoder,
            vae.decoder,
            parts.load_prompt_encoder().text_encoder,
            parts.load_garment_encoder().network,
        )
        assert [isinstance(network, OnnxModule) for network in networks] == [compiled] * 5
    with pytest.raises(ArtifactError, match="onnx: needs the folder"):
        choose(bundle, "onnx")


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
