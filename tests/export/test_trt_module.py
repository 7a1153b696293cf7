import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from export.engines import PORTABLE, EngineKey, get_or_build, read_engine, use_engines
from export.flavours import find_flavour
from export.modules import ModuleSpec, module_specs
from export.onnx_files import find_onnx, onnx_path
from export.runtime import ENGINES_FOLDER
from export.to_tensorrt import build_engine, build_targets
from export.trt_module import TrtModule, check_gpu, find_engine, load_tensorrt
from fashion_rag.artifacts import write_json
from fashion_rag.bundle import Bundle
from fashion_rag.errors import ArtifactError
from tests.tiny import make_tiny_bundle

Engine = tuple[Path, EngineKey, ModuleSpec]


@pytest.fixture
def exported(onnx_folder: Path, tiny_bundle: Path, tmp_path: Path) -> Path:
    """Return a copy of the ONNX files of `tiny_bundle`, with something in the place of the UNet's engine."""
    pytest.importorskip("tensorrt_rtx_bindings")
    folder = Path(shutil.copytree(onnx_folder, tmp_path / "exported"))
    bundle = Bundle.open(tiny_bundle)
    spec = module_specs(bundle)["unet"]
    key = EngineKey.of(spec, find_onnx(folder, bundle, spec), (1, 2), find_flavour("tensorrt_rtx"), PORTABLE)
    engines = folder / ENGINES_FOLDER
    use_engines(engines, {"unet": get_or_build(engines, key, lambda: b"engine")})
    return folder


def test_the_engine_in_use_is_found(exported: Path, tiny_bundle: Path) -> None:
    path, key, spec = find_engine(exported, Bundle.open(tiny_bundle), "unet")
    assert read_engine(path, key) == b"engine"
    assert (key.rows, spec.name) == ((1, 2), "unet")


def cut(engine: Path) -> None:
    engine.write_bytes(b"engin")


def built_by_another_version(engine: Path) -> None:
    manifest = engine.with_name(f"{engine.name}.json")
    write_json(manifest, json.loads(manifest.read_text()) | {"version": "1.0"})


def built_from_another_file(engine: Path) -> None:
    manifest = engine.with_name(f"{engine.name}.json")
    write_json(manifest, json.loads(manifest.read_text()) | {"onnx_sha256": "0" * 64})


def say_nothing_of_it(engine: Path) -> None:
    write_json(engine.with_name(f"{engine.name}.json"), {"size_bytes": 6})


def change_onnx(engine: Path) -> None:
    with (engine.parents[1] / "unet.onnx").open("ab") as file:
        file.write(b"!")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, "5 bytes, must be 6"),
        (built_by_another_version, r"version is '1\.0', must be '1\.7"),
        (built_from_another_file, "onnx_sha256 is '0000"),
        (say_nothing_of_it, "has no module, precision"),
        (change_onnx, r"unet\.onnx: has changed"),
        (Path.unlink, "no such engine"),
    ],
)
def test_what_is_not_the_bundles_engine_is_not_even_shown_to_tensorrt(
    exported: Path, tiny_bundle: Path, damage: Callable[[Path], None], reason: str
) -> None:
    (engine,) = (exported / ENGINES_FOLDER).glob("*.engine")
    damage(engine)
    with pytest.raises(ArtifactError, match=reason):
        load_tensorrt(exported, Bundle.open(tiny_bundle), "unet")


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what a machine without a GPU cannot do")
def test_a_sound_engine_needs_a_gpu(exported: Path, tiny_bundle: Path) -> None:
    with pytest.raises(ArtifactError, match="runs on an NVIDIA GPU only"):
        load_tensorrt(exported, Bundle.open(tiny_bundle), "unet")


def test_an_engine_of_other_weights_is_refused(exported: Path, tmp_path: Path) -> None:
    other_bundle = Bundle.open(make_tiny_bundle(tmp_path / "other", seed=1))
    with pytest.raises(ArtifactError, match="other weights"):
        load_tensorrt(exported, other_bundle, "unet")


def test_a_network_without_an_engine_is_named(exported: Path, tiny_bundle: Path) -> None:
    with pytest.raises(ArtifactError, match=r"engines\.vae_decoder is None; must be the name of a file"):
        load_tensorrt(exported, Bundle.open(tiny_bundle), "vae_decoder")


def test_what_tensorrt_cannot_run_here_is_refused_by_its_reason() -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    with pytest.raises(ArtifactError, match=r"unet.engine: this machine cannot run it: MALFORMED_ENGINE"):
        check_gpu(find_flavour("tensorrt_rtx"), b"no engine", Path("unet.engine"))


@pytest.fixture(scope="module")
def unet_engine(onnx_folder: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Return the tiny UNet built for the GPU of this machine, for 2 and 4 rows."""
    bundle = Bundle.open(tiny_bundle)
    spec = module_specs(bundle)["unet"]
    flavour = find_flavour()
    targets = build_targets(flavour)
    key = EngineKey.of(spec, find_onnx(onnx_folder, bundle, spec), (2, 4), flavour, "+".join(targets) or PORTABLE)
    build = partial(build_engine, onnx_path(onnx_folder, spec), spec, key.rows, flavour, targets)
    return get_or_build(tmp_path_factory.mktemp("engines"), key, build), key, spec


def unet_inputs(spec: ModuleSpec, num_rows: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(num_rows)
    sample, _, prompt_embeds = (
        torch.randn(num_rows, *tensor.shape, generator=generator) for tensor in spec.inputs.values()
    )
    timestep = torch.randint(1000, (num_rows,), generator=generator)
    return sample.cuda(), timestep.cuda(), prompt_embeds.cuda()


@pytest.mark.gpu
def test_any_number_of_rows_agrees_with_pytorch(tiny_bundle: Path, unet_engine: Engine) -> None:
    module = TrtModule(*unet_engine)
    unet = Bundle.open(tiny_bundle).load_unet("cuda")
    for num_rows in range(1, 9):
        inputs = unet_inputs(module.spec, num_rows)
        with torch.no_grad():
            expected = unet(*inputs)
        got = module(*inputs)
        assert (got.shape, got.dtype, got.device) == (expected.shape, torch.float32, expected.device)
        # Convolutions of PyTorch run in TensorFloat-32 on a GPU.
        torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2 * expected.std().item())


@pytest.mark.gpu
def test_a_row_does_not_depend_on_what_ran_before_or_beside_it(unet_engine: Engine) -> None:
    module = TrtModule(*unet_engine)
    inputs = unet_inputs(module.spec, 4)
    first = [tensor[:1] for tensor in inputs]
    alone = module(*first)
    module(*(tensor[2:] for tensor in inputs))
    assert torch.equal(module(*first), alone)
    torch.testing.assert_close(module(*inputs)[:1], alone, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_a_graph_gives_what_a_plain_run_gives(unet_engine: Engine) -> None:
    captured, plain = TrtModule(*unet_engine), TrtModule(*unet_engine, cuda_graphs=False)
    assert all(bucket.graph for bucket in captured.buckets.values())
    for num_rows in (1, 2, 3, 4):
        inputs = unet_inputs(captured.spec, num_rows)
        assert torch.equal(captured(*inputs), plain(*inputs))


@pytest.mark.gpu
def test_an_answer_is_not_overwritten_by_the_next_call(unet_engine: Engine) -> None:
    module = TrtModule(*unet_engine)
    inputs = unet_inputs(module.spec, 2)
    answer = module(*inputs)
    kept = answer.clone()
    module(*(tensor + 1 for tensor in inputs))
    assert torch.equal(answer, kept)


@pytest.mark.gpu
def test_compiled_kernels_are_kept(unet_engine: Engine, tmp_path: Path) -> None:
    if find_flavour().name != "tensorrt_rtx":
        pytest.skip("only TensorRT for RTX compiles where it runs")
    cache = tmp_path / "kernels"
    TrtModule(*unet_engine, runtime_cache=cache)
    written = cache.stat().st_mtime_ns
    TrtModule(*unet_engine, runtime_cache=cache)
    assert cache.stat().st_mtime_ns == written
    cache.write_bytes(b"of another GPU")
    TrtModule(*unet_engine, runtime_cache=cache)
    assert cache.read_bytes() != b"of another GPU"
