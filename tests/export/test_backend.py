"""Tests of the choice of what runs the networks, and that an edit gives the same picture whatever runs them."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from export import backend as export_backend
from export.engines import use_engines
from export.modules import ModuleSpec, module_specs
from export.onnx_module import OnnxModule, load_onnx
from export.openvino_module import OpenVinoModule
from export.parity import random_inputs
from export.runtime import CPU_BACKENDS, Runtime
from export.to_onnx import export_onnx
from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.garments import Garment
from fashion_rag.errors import ArtifactError
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.models.unet import WholeUNet
from fashion_rag.pipeline import Pipeline
from fashion_rag.request import EditRequest
from fashion_rag.weights import read_state, write_state
from tests.tiny import make_tiny_bundle

# What the networks of transformers, diffusers and OpenCLIP come from, and what these import beside PyTorch.
BUILDERS = {"transformers.modeling_utils", "diffusers", "open_clip", "torchvision", "sklearn", "torch._dynamo"}


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


def largest_difference(first: Pipeline, second: Pipeline, asked: EditRequest, garment: Garment) -> int:
    pictures = [pipeline(asked, [garment]).image.astype(int) for pipeline in (first, second)]
    return int(np.abs(pictures[0] - pictures[1]).max())


def shirt(catalogue: Path) -> Garment:
    pictures = catalogue.with_name(f"{catalogue.name}-pictures")
    return Garment("red-shirt", "upper_body", "", pictures / "upper_body" / "red-shirt.png")


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
@pytest.mark.parametrize("seed", range(4))
def test_an_edit_is_the_same_picture(
    onnx_folder: Path, tiny_catalogue: Path, tiny_bundle: Path, seed: int, backend: Any
) -> None:
    pipeline = Pipeline.load(tiny_bundle)
    compiled = Runtime(str(tiny_bundle), backend, compiled=str(onnx_folder)).open().load_pipeline()
    assert largest_difference(pipeline, compiled, request(seed, 4), shirt(tiny_catalogue)) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_edits_of_the_demo_bundle_are_the_same_pictures(tiny_catalogue: Path, backend: Any) -> None:
    pipeline = Pipeline.load(DEMO_BUNDLE)
    compiled = Runtime(str(DEMO_BUNDLE), backend).open().load_pipeline()
    steps, garment = pipeline.manifest.num_inference_steps, shirt(tiny_catalogue)
    differences = [largest_difference(pipeline, compiled, request(seed, steps), garment) for seed in range(20)]
    assert max(differences) <= 2, differences


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what is chosen without a GPU")
def test_without_a_gpu_networks_are_exported_once_and_kept(
    tiny_bundle: Path, onnx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = []

    def copy(bundle: Bundle, out: Path, progress: object) -> None:
        exported.append(bundle.path)
        shutil.copytree(onnx_folder, out, dirs_exist_ok=True)

    monkeypatch.setattr("export.to_onnx.export_onnx", copy)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runtime = Runtime(str(tiny_bundle))
    parts = runtime.open()
    assert (parts.backend, parts.device, parts.dtype) == ("onnx", torch.device("cpu"), torch.float32)
    assert isinstance(parts.load_unet().whole, OnnxModule)
    assert runtime.open().folder == parts.folder
    assert exported == [tiny_bundle]
    # A damaged file is exported again.
    assert parts.folder is not None and parts.folder.is_relative_to(tmp_path)
    unet = parts.folder / "unet.onnx"
    unet.write_bytes(unet.read_bytes()[:-1])
    runtime.open().load_unet()
    assert exported == [tiny_bundle, tiny_bundle]
    # Other weights have files of their own.
    other_parts = Runtime(str(make_tiny_bundle(tmp_path / "other", seed=1))).open()
    assert other_parts.folder != parts.folder


KINDS = [("torch", None), ("onnx", OnnxModule), ("openvino", OpenVinoModule)]


@pytest.mark.parametrize(("backend", "kind"), KINDS)
def test_a_part_runs_what_was_chosen(tiny_bundle: Path, onnx_folder: Path, backend: Any, kind: type | None) -> None:
    parts = Runtime(str(tiny_bundle), backend, compiled=str(onnx_folder)).open()
    vae = parts.load_vae()
    unet = parts.load_unet()
    networks = (
        unet.whole,
        unet.outermost,
        vae.encoder,
        vae.decoder,
        parts.load_prompt_encoder().text_encoder,
        parts.load_garment_encoder().network,
    )
    compiled = [type(network) if isinstance(network, OnnxModule | OpenVinoModule) else None for network in networks]
    assert compiled == [kind] * 6


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_openvino_computes_in_the_precision_asked_for(
    tiny_bundle: Path, onnx_folder: Path, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    asked: list[tuple[str, int, torch.dtype]] = []

    def load(folder: Path, bundle: Bundle, name: str, num_threads: int, dtype: torch.dtype) -> nn.Module:
        asked.append((name, num_threads, dtype))
        return load_onnx(folder, bundle, name, num_threads)

    monkeypatch.setattr("export.openvino_module.load_openvino", load)
    runtime = Runtime(str(tiny_bundle), "openvino", precision, str(onnx_folder), num_threads=2)
    runtime.open().load_garment_encoder()
    wanted = torch.bfloat16 if precision == "bfloat16" else torch.float32
    assert asked == [("garment_encoder", 2, wanted)]


@pytest.mark.parametrize("capabilities", [{}, {"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}])
def test_openvino_s_bfloat16_needs_a_processor_that_has_it(
    tiny_bundle: Path, onnx_folder: Path, capabilities: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    runtime = Runtime(str(tiny_bundle), "openvino", "bfloat16", str(onnx_folder))
    with pytest.raises(ArtifactError, match="precision: got bfloat16, which for openvino needs a processor with AVX"):
        runtime.open()
    assert replace(runtime, precision="auto").open().dtype == torch.float32
    # PyTorch computes in bfloat16 on every processor.
    assert replace(runtime, backend="torch").open().dtype == torch.bfloat16


def test_openvino_has_no_half_precision(tiny_bundle: Path, onnx_folder: Path) -> None:
    with pytest.raises(ArtifactError, match="precision: got float16; must be auto, float32 or bfloat16 for openvino"):
        Runtime(str(tiny_bundle), "openvino", "float16", str(onnx_folder)).open()


def test_the_outermost_layers_are_the_whole_unet_s_own(tiny_bundle: Path) -> None:
    unet = Runtime(str(tiny_bundle), "torch", precision="bfloat16").open().load_unet()
    whole = {weight.data_ptr() for weight in unet.whole.parameters()}
    outermost = [weight.data_ptr() for weight in unet.outermost.parameters()]
    assert outermost and set(outermost) < whole


def test_compiled_outermost_layers_are_the_whole_unet_s_own(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: dict[str, nn.Module] = {}

    def keep(module: nn.Module, spec: ModuleSpec, rows: object, device: object) -> nn.Module:
        compiled[spec.name] = module
        return module

    monkeypatch.setattr(export_backend, "CompiledModule", keep)
    Runtime(str(tiny_bundle), "compile").open().load_unet()
    whole = {weight.data_ptr() for weight in compiled["unet"].parameters()}
    assert {weight.data_ptr() for weight in compiled["unet_shallow"].parameters()} < whole


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_nothing_of_an_exported_network_is_held_in_pytorch(tiny_bundle: Path, onnx_folder: Path, backend: Any) -> None:
    parts = Runtime(str(tiny_bundle), backend, compiled=str(onnx_folder)).open()
    prompts = parts.load_prompt_encoder()
    unet = parts.load_unet()
    for module in (unet.whole, unet.outermost, parts.load_vae(), parts.load_garment_encoder()):
        assert list(module.state_dict()) == []
    assert list(prompts.state_dict()) == ["token_embedding.weight"]


def test_what_builds_networks_is_not_imported_where_compiled_ones_run(tiny_bundle: Path, onnx_folder: Path) -> None:
    script = f"""
import sys
from export.runtime import Runtime
parts = Runtime({str(tiny_bundle)!r}, "onnx", compiled={str(onnx_folder)!r}).open()
loaded = parts.load_unet(), parts.load_vae(), parts.load_prompt_encoder(), parts.load_garment_encoder()
print(*sorted({BUILDERS} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_weights_are_those_of_the_bundle_in_the_precision_asked_for(tiny_bundle: Path, precision: Any) -> None:
    parts = Runtime(str(tiny_bundle), "torch", precision=precision).open()
    bundle, dtype = parts.bundle, getattr(torch, precision)
    vae, prompts = parts.load_vae(), parts.load_prompt_encoder()
    whole, prompt_encoder = bundle.load_vae(), bundle.load_prompt_encoder()
    pairs = (
        (parts.load_unet().whole, WholeUNet(bundle.load_unet())),
        (vae.encoder, whole.encoder),
        (vae.decoder, whole.decoder),
        (prompts.text_encoder, prompt_encoder.text_encoder),
        (parts.load_garment_encoder().network, bundle.load_garment_encoder().network),
    )
    for loaded, plain in pairs:
        expected = plain.to(dtype).state_dict()
        assert expected.keys() == loaded.state_dict().keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert torch.equal(prompts.token_embedding.weight, prompt_encoder.token_embedding.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("backend", "message"),
    [("torch", r"extra \[3\] is unexpected"), ("onnx", "was exported of other weights")],
)
@pytest.mark.parametrize("part", ["vae", "text_encoder", "vision_encoder"])
def test_weights_that_do_not_fit_are_refused_whatever_runs_them(
    tiny_bundle: Path, onnx_folder: Path, tmp_path: Path, part: str, backend: Any, message: str
) -> None:
    path = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (weights,) = (path / part).glob("*.safetensors")
    write_state(weights, read_state(weights) | {"extra": torch.zeros(3)})
    parts = Runtime(str(path), backend, compiled=str(onnx_folder)).open()
    load = {"vae": parts.load_vae, "text_encoder": parts.load_prompt_encoder}.get(part, parts.load_garment_encoder)
    with pytest.raises(ArtifactError, match=message):
        load()


def test_a_student_is_run_like_its_teacher(tiny_student_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_student_bundle)
    export_onnx(bundle, tmp_path / "onnx")
    assert "unet_turbo" in module_specs(bundle)
    inputs = random_inputs(module_specs(bundle)["unet_turbo"], 3, torch.Generator().manual_seed(0))
    parts = Runtime(str(tiny_student_bundle), "onnx", compiled=str(tmp_path / "onnx")).open()
    with torch.inference_mode():
        expected, taught = WholeUNet(bundle.load_student())(*inputs), WholeUNet(bundle.load_unet())(*inputs)
        tolerance = 1e-4 * expected.std().item()
        torch.testing.assert_close(parts.load_unet("unet_turbo").whole(*inputs), expected, rtol=0, atol=tolerance)
        torch.testing.assert_close(parts.load_unet().whole(*inputs), taught, rtol=0, atol=tolerance)
        assert (expected - taught).abs().max() > 10 * tolerance


def test_a_folder_that_is_named_must_have_the_networks(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"manifest\.json: not a readable JSON file"):
        Runtime(str(tiny_bundle), "onnx", compiled=str(tmp_path)).open().load_unet()


def test_on_a_gpu_engines_are_taken_where_there_are_some(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    runtime = Runtime(str(tiny_bundle), compiled=str(tmp_path))
    parts = runtime.open()
    assert (parts.backend, parts.device.type, parts.dtype) == ("compile", "cuda", torch.float16)
    assert replace(runtime, precision="bfloat16").open().dtype == torch.bfloat16
    assert replace(runtime, backend="torch", precision="float32").open().dtype == torch.float32
    for backend in CPU_BACKENDS:
        on_cpu = replace(runtime, backend=backend).open()
        assert (on_cpu.device.type, on_cpu.dtype) == ("cpu", torch.float32)
    (tmp_path / "engines").mkdir()
    use_engines(tmp_path / "engines", {})
    assert runtime.open().backend == "tensorrt"
    with pytest.raises(ArtifactError, match="tensorrt, which needs compiled: a folder with engines"):
        Runtime(str(tiny_bundle), "tensorrt").open()


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what cannot be done without a GPU")
def test_tensorrt_needs_a_gpu(tiny_bundle: Path, onnx_folder: Path) -> None:
    with pytest.raises(ArtifactError, match="tensorrt, which needs a GPU"):
        Runtime(str(tiny_bundle), "tensorrt", compiled=str(onnx_folder)).open()


def test_what_is_missing_is_named(tiny_bundle: Path, onnx_folder: Path, tmp_path: Path) -> None:
    assert Runtime(str(tiny_bundle), compiled=str(onnx_folder)).missing() == []
    engines = [str(onnx_folder / "engines/manifest.json")]
    assert Runtime(str(tiny_bundle), "tensorrt", compiled=str(onnx_folder)).missing() == engines
    nothing = Runtime(str(tmp_path), "onnx", compiled=str(tmp_path / "compiled"))
    assert nothing.missing() == [str(tmp_path / "manifest.json"), str(tmp_path / "compiled/manifest.json")]


def test_networks_that_are_still_being_exported_are_waited_for(
    tiny_bundle: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "compiled"

    def export() -> None:
        shutil.copytree(onnx_folder, tmp_path / "new")
        (tmp_path / "new").rename(folder)

    Timer(0.2, export).start()
    parts = Runtime(str(tiny_bundle), "onnx", compiled=str(folder), wait_s=60).open()
    assert isinstance(parts.load_unet().whole, OnnxModule)
