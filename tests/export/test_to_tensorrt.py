import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from export.engines import read_engine
from export.flavours import Flavour, find_flavour
from export.modules import ModuleSpec, module_specs
from export.onnx_files import onnx_path
from export.to_onnx import write_onnx
from export.to_tensorrt import build_engine, build_targets, current_capability, export_tensorrt
from export.trt_module import find_engine
from fashion_rag.bundle import Bundle
from fashion_rag.errors import ArtifactError
from fashion_rag.manifest import DEMO_BUNDLE

Networks = dict[str, tuple[Path, ModuleSpec]]

pytest.importorskip("tensorrt_rtx_bindings")
NEEDS_NO_GPU_HERE = pytest.mark.skipif(torch.cuda.is_available(), reason="tells what a machine without a GPU cannot do")


@pytest.fixture(scope="module")
def rtx() -> Flavour:
    return find_flavour("tensorrt_rtx")


@pytest.fixture(scope="module")
def networks(onnx_folder: Path, tiny_bundle: Path) -> Networks:
    """Return the ONNX file and the spec of each network of `tiny_bundle`."""
    specs = module_specs(Bundle.open(tiny_bundle))
    return {name: (onnx_path(onnx_folder, spec), spec) for name, spec in specs.items()}


def test_the_unet_is_built_without_a_gpu(rtx: Flavour, networks: Networks) -> None:
    path, spec = networks["unet"]
    phases: dict[str, list[tuple[int, int]]] = {}

    def progress(phase: str, done: int, total: int) -> None:
        phases.setdefault(phase, []).append((done, total))

    engine = bytes(build_engine(path, spec, (1, 3), rtx, progress=progress))
    _, diagnostics = rtx.api.Runtime(rtx.api.Logger(rtx.api.Logger.INTERNAL_ERROR)).get_engine_validity(engine)
    assert not diagnostics & int(rtx.api.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    # The whole build is one phase, whose number of steps done only grows; each batch size has phases of its own.
    (whole,) = (steps for phase, steps in phases.items() if phase == "unet: Building engine")
    assert whole[0] == (0, whole[0][1]) and whole[-1] == (whole[0][1], whole[0][1])
    assert [done for done, _ in whole] == sorted(done for done, _ in whole)
    assert Counter(done for done, _ in phases["unet: Timing tactics"])[0] == 2


def test_the_vae_decoder_is_built_for_named_gpus(rtx: Flavour, networks: Networks) -> None:
    path, spec = networks["vae_decoder"]
    engine = build_engine(path, spec, (2,), rtx, build_targets(rtx, ("8.9", "12.0")))
    assert isinstance(engine, memoryview) and len(engine) > 1_000_000


def test_what_tensorrt_cannot_build_is_told_in_its_words(onnx_folder: Path, tiny_bundle: Path) -> None:
    script = f"""
from export.flavours import find_flavour
from export.modules import module_specs
from export.to_tensorrt import build_engine
from fashion_rag.bundle import Bundle
from pathlib import Path
spec = module_specs(Bundle.open(Path({str(tiny_bundle)!r})))["unet"]
build_engine(Path({str(onnx_folder / "unet.onnx")!r}), spec, (1,), find_flavour("tensorrt_rtx"), ("7.5",))
"""
    # In a process of its own, because after a failure TensorRT for RTX cannot build everything any more.
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    wanted = r"ArtifactError: .*unet\.onnx: tensorrt_rtx .* cannot build unet: .*FP32 GEMM is not supp"
    assert run.returncode == 1 and re.search(wanted, run.stderr), run.stderr


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(("damage", "reason"), [(cut, "Failed to parse"), (Path.unlink, "cannot be found")])
def test_an_onnx_file_that_cannot_be_read_is_refused(
    rtx: Flavour, networks: Networks, tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    path, spec = networks["unet"]
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(path.read_bytes())
    damage(copy)
    with pytest.raises(ArtifactError, match=rf"copy\.onnx: .*{reason}"):
        build_engine(copy, spec, (1,), rtx)


def test_an_onnx_file_of_another_network_is_refused(rtx: Flavour, networks: Networks) -> None:
    with pytest.raises(ArtifactError, match=r"inputs of unet are .*latents.*, must be .*sample"):
        build_engine(networks["vae_decoder"][0], networks["unet"][1], (1,), rtx)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no room on the screen")])
def test_what_the_progress_raises_ends_the_build(rtx: Flavour, networks: Networks, error: BaseException) -> None:
    calls = 0

    def progress(phase: str, done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise error

    with pytest.raises(type(error)) as raised:
        build_engine(*networks["unet"], (1,), rtx, progress=progress)
    assert raised.value is error
    assert calls == 3


@pytest.mark.parametrize("rows", [(), (0, 1), (2, 1), (1, 1)])
def test_rows_that_do_not_rise_are_refused(rtx: Flavour, networks: Networks, rows: tuple[int, ...]) -> None:
    with pytest.raises(ArtifactError, match="must rise from 1 or more"):
        build_engine(*networks["unet"], rows, rtx)


def test_engines_for_rtx_are_portable_unless_gpus_are_named(rtx: Flavour) -> None:
    assert build_targets(rtx) == ()
    assert build_targets(rtx, ("8.6", "12.0")) == ("8.6", "12.0")


def test_all_networks_of_a_bundle_are_built_once(
    rtx: Flavour, onnx_folder: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(onnx_folder, tmp_path / "exported"))
    bundle = Bundle.open(tiny_bundle)
    built: list[tuple[object, ...]] = []
    # The build itself is tested above.
    monkeypatch.setattr("export.to_tensorrt.build_engine", lambda *given, **options: built.append(given) or b"engine")
    engines = export_tensorrt(bundle, folder, rtx, ("8.6", "12.0"))
    assert export_tensorrt(bundle, folder, rtx, ("8.6", "12.0")) == engines
    assert [given[1].name for given in built] == list(engines) == list(module_specs(bundle))
    for name, path in engines.items():
        engine, key, _ = find_engine(folder, bundle, name)
        assert engine == path and read_engine(engine, key) == b"engine"
        assert key.architecture == "8.6+12.0"
        assert max(key.rows) == (32 if name.startswith("unet") else 8)


@pytest.mark.parametrize("name", ["unet", "unet_shallow", "vae_encoder", "vae_decoder"])
def test_the_demo_bundle_is_built_in_half_precision(rtx: Flavour, tmp_path: Path, name: str) -> None:
    bundle = Bundle.open(DEMO_BUNDLE)
    spec = module_specs(bundle)[name]
    write_onnx(spec.load(bundle, torch.float16), spec, spec.weights(bundle), tmp_path)
    engine = build_engine(onnx_path(tmp_path, spec), spec, (1, 2, 8), rtx)
    num_bytes = sum(weight.nbytes for weight in spec.load(bundle, torch.float16).state_dict().values())
    assert len(engine) > num_bytes  # the weights are in it


# TensorRT for RTX keeps the calls, though it has no use for them.
@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
@pytest.mark.parametrize("before", [None, b"", b"of another GPU"])
def test_timings_are_kept(rtx: Flavour, networks: Networks, tmp_path: Path, before: bytes | None) -> None:
    path, spec = networks["vae_encoder"]
    cache = tmp_path / "timings"
    if before is not None:
        cache.write_bytes(before)
    assert build_engine(path, spec, (1,), Flavour("tensorrt", rtx.api), timing_cache=cache)
    kept = cache.read_bytes()
    assert kept and kept != before
    assert build_engine(path, spec, (1,), Flavour("tensorrt", rtx.api), timing_cache=cache)
    assert cache.read_bytes() == kept


@pytest.mark.slow
def test_every_network_can_be_built(rtx: Flavour, networks: Networks) -> None:
    for path, spec in networks.values():
        assert build_engine(path, spec, (1, 2), rtx)


@NEEDS_NO_GPU_HERE
def test_what_has_no_name_is_built_on_such_a_machine_only(rtx: Flavour) -> None:
    assert current_capability() is None
    with pytest.raises(ArtifactError, match=r"got 9\.0; .* 8\.0, 8\.6, .*or else only for .*which is absent"):
        build_targets(rtx, ("9.0",))
    with pytest.raises(ArtifactError, match=r"got 8\.9, 9\.0"):
        build_targets(rtx, ("8.9", "9.0"))


@pytest.mark.parametrize("here", ["9.0", "8.9"])
def test_this_machines_gpu_may_always_be_built_for(rtx: Flavour, monkeypatch: pytest.MonkeyPatch, here: str) -> None:
    monkeypatch.setattr("export.to_tensorrt.current_capability", lambda: here)
    tensorrt = Flavour("tensorrt", rtx.api)
    assert build_targets(rtx, (here,)) == build_targets(tensorrt) == build_targets(tensorrt, (here,)) == (here,)
    with pytest.raises(ArtifactError, match=rf"got 12\.0; tensorrt .* builds for the GPU .*which is {here}"):
        build_targets(tensorrt, ("12.0",))


@NEEDS_NO_GPU_HERE
def test_tensorrt_itself_builds_on_a_gpu_only(rtx: Flavour) -> None:
    with pytest.raises(ArtifactError, match="GPU of this machine, which is absent"):
        build_targets(Flavour("tensorrt", rtx.api))


def test_a_flavour_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtifactError, match="got 'tensorflow'; must be one of tensorrt, tensorrt_rtx"):
        find_flavour("tensorflow")
    monkeypatch.setattr("export.flavours.MODULES", {"tensorrt": "no_such_module", "tensorrt_rtx": "nor_this"})
    with pytest.raises(ArtifactError, match="flavour tensorrt or tensorrt_rtx: not installed"):
        find_flavour()
