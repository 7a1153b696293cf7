"""Tests of the human parser and the pose estimator as exported and compiled networks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from export import to_onnx
from export.compiled_module import CompiledModule
from export.flavours import find_flavour
from export.modules import ModuleSpec, module_specs
from export.onnx_files import onnx_path
from export.onnx_module import OnnxModule, load_onnx
from export.openvino_module import OpenVinoModule, load_openvino
from export.parity import random_inputs
from export.runtime import Runtime
from export.to_tensorrt import build_engine
from fashion_rag.bundle import Bundle
from fashion_rag.errors import ArtifactError
from fashion_rag.person.pose_estimator import PersonBox
from fashion_rag.person_import import add_parts
from tests.person import toy
from tests.tiny import make_tiny_bundle

NAMES = ("parser", "pose")


def person_specs(bundle: Bundle) -> dict[str, ModuleSpec]:
    return {name: spec for name, spec in module_specs(bundle).items() if name in NAMES}


@pytest.fixture(scope="module")
def bundle(tiny_person_bundle: Path) -> Bundle:
    return Bundle.open(tiny_person_bundle)


@pytest.fixture(scope="module")
def person_folder(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the human parser and the pose estimator of the bundle as ONNX files, without its other networks."""
    folder = tmp_path_factory.mktemp("person") / "onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(to_onnx, "module_specs", person_specs)
        to_onnx.export_onnx(bundle, folder)
    return folder


def photo(seed: int) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((90, 120), Image.Resampling.BICUBIC)


def test_a_bundle_has_the_networks_that_it_has_the_parts_of(bundle: Bundle, tiny_bundle: Path) -> None:
    without = set(module_specs(Bundle.open(tiny_bundle)))
    assert set(module_specs(bundle)) - without == set(NAMES) and not without & set(NAMES)


def test_every_export_is_compared_with_pytorch(person_folder: Path) -> None:
    report = json.loads((person_folder / "parity.json").read_text())
    assert [entry["module"] for entry in report["modules"]] == list(NAMES)
    for entry in report["modules"]:
        assert 0 < entry["max_rel_error"] <= entry["tolerance"] == 1e-4


@pytest.mark.parametrize("load", [load_onnx, load_openvino])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_rows", [1, 3, 9])
def test_one_file_serves_any_number_of_rows(
    person_folder: Path, bundle: Bundle, name: str, num_rows: int, load: Callable[..., nn.Module]
) -> None:
    spec = module_specs(bundle)[name]
    inputs = random_inputs(spec, num_rows, torch.Generator().manual_seed(num_rows))
    with torch.inference_mode():
        expected = spec.load(bundle, torch.float32)(*inputs)
        got = load(person_folder, bundle, name, 1)(*inputs)
    (output,) = spec.outputs.values()
    assert tuple(got.shape) == (num_rows, *output.shape)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * expected.std().item())


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_keeps_float32_at_the_border(bundle: Bundle, name: str) -> None:
    spec = module_specs(bundle)[name]
    (inputs,) = random_inputs(spec, 2, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        half, single = (spec.load(bundle, dtype)(inputs) for dtype in (torch.float16, torch.float32))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, single, rtol=0, atol=0.03 * single.std().item())


@pytest.mark.parametrize(("backend", "kind"), [("torch", None), ("onnx", OnnxModule), ("openvino", OpenVinoModule)])
def test_a_photo_is_read_alike_whatever_runs_the_networks(
    bundle: Bundle, person_folder: Path, backend: Any, kind: type | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.backend.cached_onnx", lambda bundle, progress: person_folder)
    parts = Runtime(str(bundle.path), backend).open()
    parser, estimator = parts.load_parser(), parts.load_pose_estimator()
    for part in (parser, estimator):
        assert kind is None or isinstance(part.network, kind)
        assert bool(part.state_dict()) == (backend == "torch")
    photos, boxes = [photo(0), photo(1)], [PersonBox(10, 10, 60, 100)] * 2
    with torch.inference_mode():
        maps, wanted_maps = (which.label_maps(photos, (128, 96)) for which in (parser, bundle.load_parser()))
        points, wanted = (which.coco_points(photos, boxes) for which in (estimator, bundle.load_pose_estimator()))
    # Rounding may decide where two classes are equally likely.
    assert np.mean(np.stack(maps) == np.stack(wanted_maps)) > 0.999
    for (_, confidences), (_, wanted_confidences) in zip(points, wanted, strict=True):
        np.testing.assert_allclose(confidences, wanted_confidences, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_compiled_networks_agree_with_pytorch(bundle: Bundle, name: str) -> None:
    spec = module_specs(bundle)[name]
    network = spec.load(bundle, torch.float32)
    compiled = CompiledModule(network, spec, (1, 2), torch.device("cpu"), compile_backend="eager")
    for num_rows in (1, 2, 3):
        inputs = random_inputs(spec, num_rows, torch.Generator().manual_seed(num_rows))
        with torch.inference_mode():
            torch.testing.assert_close(compiled(*inputs), network(*inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_engines_are_built_without_a_gpu(bundle: Bundle, person_folder: Path, name: str) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    spec = module_specs(bundle)[name]
    flavour = find_flavour("tensorrt_rtx")
    engine = bytes(build_engine(onnx_path(person_folder, spec), spec, (1, 2), flavour))
    _, diagnostics = flavour.api.Runtime(flavour.api.Logger(flavour.api.Logger.INTERNAL_ERROR)).get_engine_validity(
        engine
    )
    assert not diagnostics & int(flavour.api.EngineInvalidityDiagnostics.MALFORMED_ENGINE)


def test_an_engine_in_half_precision_is_built(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    for name, spec in person_specs(bundle).items():
        to_onnx.write_onnx(spec.load(bundle, torch.float16), spec, spec.weights(bundle), tmp_path)
        assert build_engine(onnx_path(tmp_path, spec), spec, (1,), find_flavour("tensorrt_rtx")), name


def test_a_bundle_without_the_parts_says_so(tiny_bundle: Path) -> None:
    parts = Runtime(str(tiny_bundle), "torch").open()
    with pytest.raises(ArtifactError, match=r"parser/config\.json: no such file"):
        parts.load_parser()
    with pytest.raises(ArtifactError, match=r"pose/config\.json: no such file"):
        parts.load_pose_estimator()


def test_files_of_another_parser_are_refused(person_folder: Path, tmp_path: Path, bundle: Bundle) -> None:
    other = add_parts(make_tiny_bundle(tmp_path / "other"), str(toy.write_parser(tmp_path / "parser", seed=5)))
    with pytest.raises(ArtifactError, match=r"parser\.onnx: was exported of other weights"):
        load_onnx(person_folder, other, "parser", 1)
