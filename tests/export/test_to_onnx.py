"""Tests of the ONNX files of a bundle: what is written, and what is refused."""

import json
from pathlib import Path

import onnx
import pytest
import torch

from export import parity, to_onnx
from export.modules import module_specs
from export.onnx_files import find_onnx, onnx_path
from export.onnx_module import load_onnx
from export.parity import measure, random_inputs
from fashion_rag.artifacts import sha256
from fashion_rag.bundle import Bundle
from fashion_rag.errors import ArtifactError
from tests.tiny import make_tiny_bundle

NAMES = ("unet", "unet_shallow", "vae_encoder", "vae_decoder", "text_encoder", "garment_encoder")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture
def only_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make exports take the smallest network alone."""
    monkeypatch.setattr(to_onnx, "module_specs", lambda bundle: {"text_encoder": module_specs(bundle)["text_encoder"]})


def test_the_folder_holds_every_network_and_how_far_off_it_is(onnx_folder: Path) -> None:
    files = {f"{name}.onnx" for name in NAMES} | {"manifest.json", "parity.json"}
    assert {path.name for path in onnx_folder.iterdir()} == files
    report = json.loads((onnx_folder / "parity.json").read_text())
    assert "ONNX Runtime" in report["run_by"]
    assert [entry["module"] for entry in report["modules"]] == list(NAMES)
    for entry in report["modules"]:
        assert 0 < entry["max_rel_error"] <= entry["tolerance"] == 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_the_border_is_the_modules(onnx_folder: Path, bundle: Bundle, name: str) -> None:
    spec = module_specs(bundle)[name]
    graph = onnx.load(onnx_path(onnx_folder, spec)).graph
    kinds = {torch.float32: onnx.TensorProto.FLOAT, torch.int64: onnx.TensorProto.INT64}
    for values, wanted in ((graph.input, spec.inputs), (graph.output, spec.outputs)):
        assert [value.name for value in values] == list(wanted)
        for value, expected in zip(values, wanted.values(), strict=True):
            tensor = value.type.tensor_type
            batch, *sides = tensor.shape.dim
            assert batch.dim_param and not batch.dim_value
            assert tuple(side.dim_value for side in sides) == expected.shape
            assert tensor.elem_type == kinds[expected.dtype]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_rows", [1, 3, 32])
def test_one_file_serves_any_number_of_rows(onnx_folder: Path, bundle: Bundle, name: str, num_rows: int) -> None:
    spec = module_specs(bundle)[name]
    inputs = random_inputs(spec, num_rows, torch.Generator().manual_seed(num_rows))
    with torch.inference_mode():
        expected = spec.load(bundle, torch.float32)(*inputs)
        torch.testing.assert_close(load_onnx(onnx_folder, bundle, name, 1)(*inputs), expected, rtol=1e-4, atol=1e-4)


def test_files_tell_nothing_of_the_machine_they_were_made_on(onnx_folder: Path) -> None:
    root = str(Path(torch.__file__).parents[2]).encode(), str(Path(__file__).parents[2]).encode()
    for path in onnx_folder.iterdir():
        assert not any(name in path.read_bytes() for name in root), path.name


@pytest.mark.usefixtures("only_text")
def test_large_weights_lie_in_a_file_of_their_own(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_onnx, "MAX_INLINE_BYTES", 1000)
    to_onnx.export_onnx(bundle, tmp_path / "onnx")
    files = find_onnx(tmp_path / "onnx", bundle, module_specs(bundle)["text_encoder"]).files
    assert list(files) == ["text_encoder.onnx", "text_encoder.onnx.data"]
    data = tmp_path / "onnx" / "text_encoder.onnx.data"
    assert files[data.name] == sha256(data)
    data.write_bytes(data.read_bytes()[:-1] + b"!")
    with pytest.raises(ArtifactError, match=r"text_encoder\.onnx\.data: has changed"):
        load_onnx(tmp_path / "onnx", bundle, "text_encoder", 1)


@pytest.mark.usefixtures("only_text")
def test_half_precision_keeps_float32_at_the_border(bundle: Bundle, tmp_path: Path) -> None:
    (measured,) = to_onnx.export_onnx(bundle, tmp_path / "onnx", torch.float16)
    assert 0 < measured.max_rel_error <= measured.tolerance == parity.TOLERANCES[torch.float16]
    spec = module_specs(bundle)["text_encoder"]
    graph = onnx.load(onnx_path(tmp_path / "onnx", spec)).graph
    kinds = [tensor.type.tensor_type.elem_type for tensor in (*graph.input, *graph.output)]
    assert kinds == [onnx.TensorProto.FLOAT] * 2
    matrices = {weight.data_type for weight in graph.initializer if len(weight.dims) == 2}
    assert matrices == {onnx.TensorProto.FLOAT16}


@pytest.mark.usefixtures("only_text")
def test_a_network_too_far_off_leaves_nothing_behind(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(parity.TOLERANCES, torch.float32, 1e-12)
    with pytest.raises(ArtifactError, match=r"text_encoder: differs from PyTorch by .* must be at most 1e-12"):
        to_onnx.export_onnx(bundle, tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [0.01, float("nan")])
def test_a_wrong_answer_is_found(bundle: Bundle, wrong: float) -> None:
    spec = module_specs(bundle)["unet"]
    unet = spec.load(bundle, torch.float32)

    def compiled(*inputs: torch.Tensor) -> torch.Tensor:
        answer = unet(*inputs)
        answer[-1, 0, 0, 0] += wrong if len(answer) == 2 else 0
        return answer

    with pytest.raises(ArtifactError, match="unet: differs from PyTorch"):
        measure(spec, unet, compiled)


def test_each_row_is_measured_at_a_timestep_of_its_own(bundle: Bundle) -> None:
    spec = module_specs(bundle)["unet"]
    _, timesteps, _ = random_inputs(spec, 5, torch.Generator().manual_seed(parity.SEED))
    assert len(timesteps.unique()) == 5


def test_progress_is_told_of_each_network(bundle: Bundle, tmp_path: Path, only_text: None) -> None:
    calls: list[None] = []
    to_onnx.export_onnx(bundle, tmp_path / "onnx", progress=lambda: calls.append(None))
    assert len(calls) == 1


def test_files_of_another_bundle_are_refused(onnx_folder: Path, tmp_path: Path) -> None:
    other_bundle = Bundle.open(make_tiny_bundle(tmp_path / "other", seed=1))
    for name, spec in module_specs(other_bundle).items():
        with pytest.raises(ArtifactError, match=rf"{name}\.onnx: was exported of other weights"):
            find_onnx(onnx_folder, other_bundle, spec)
