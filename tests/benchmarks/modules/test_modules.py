import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from rich.console import Console
from torch import Tensor, nn

from benchmarks.modules import runners
from benchmarks.modules.models import MeasuredModel, Networks, TimedPictures, bundle_model, untrained_model
from benchmarks.modules.report import edit_table, module_table, plot
from benchmarks.modules.run import (
    QUICK,
    benchmark,
    compare,
    gpu_limit,
    in_turn,
    main,
    measure_edits,
    measure_network,
    with_shares,
)
from benchmarks.modules.runners import NetworkRunner, Workshop, batch_sizes, count_flops, why_not
from export.compiled_module import CompiledModule
from export.engines import EngineKey
from export.modules import ModuleSpec, blank_inputs
from export.parity import measure
from fashion_rag.bundle import Bundle
from fashion_rag.errors import ArtifactError
from fashion_rag.models.unet import IN_CHANNELS

CPU = torch.device("cpu")
TOY_UNET = {
    "sample_size": 16,
    "in_channels": IN_CHANNELS,
    "out_channels": 4,
    "cross_attention_dim": 16,
    "use_linear_projection": True,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_head_dim": (1, 2),
    "norm_num_groups": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
TOY_VAE = {
    "latent_channels": 4,
    "block_out_channels": (4, 4, 8),
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 2,
}
make_toy = partial(untrained_model, CPU, 2, (64, 48), TOY_UNET, TOY_VAE)


def make_workshop(model: MeasuredModel, folder: Path, compiled: dict[str, tuple[int, ...]] | None = None) -> Workshop:
    return Workshop(model.specs, model.bundle, CPU, folder, (1, 2), compiled or {}, 1, lambda text: None)


def printed(table: object) -> str:
    console = Console(width=120, file=io.StringIO())
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_each_round_begins_with_another_runner() -> None:
    names = (NetworkRunner.EAGER, NetworkRunner.ONNX, NetworkRunner.OPENVINO)
    orders = [in_turn(names, number) for number in range(4)]
    assert [order[0] for order in orders] == [*names, names[0]]
    assert orders[1] == (NetworkRunner.ONNX, NetworkRunner.OPENVINO, NetworkRunner.EAGER)


def test_a_runner_is_compared_with_eager_round_by_round() -> None:
    # The second round is slow for both, the third for eager alone.
    compared = compare({NetworkRunner.ONNX: [1.0, 5.0, 1.0], NetworkRunner.EAGER: [2.0, 15.0, 10.0]})
    assert compared["onnx"] == {
        "s": {"p25": 1.0, "median": 1.0, "p75": 3.0},
        "times_faster": {"p25": 2.5, "median": 3.0, "p75": 6.5},
    }
    assert compared["eager"]["times_faster"]["median"] == 1.0


def test_a_share_is_of_what_the_gpu_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    runners = {"eager": {"s": {"median": 0.5}}}
    assert with_shares(runners, 3e12, 10e12)["eager"]["share"] == pytest.approx(0.6)
    assert with_shares(runners, 3e12, None)["eager"]["share"] is None
    for name, limit in (("NVIDIA H100 80GB HBM3", 790e12), ("NVIDIA T4", None)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert gpu_limit(torch.device("cuda")) == limit
    assert gpu_limit(CPU) is None


class Recorder(nn.Module):
    """A network that remembers the rows of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def forward(self, *inputs: Tensor) -> Tensor:
        self.rows.append(len(inputs[0]))
        return inputs[0]


def test_every_runner_has_a_turn_in_every_round_at_the_rows_it_is_measured_at(tmp_path: Path) -> None:
    model = make_toy()
    networks = {NetworkRunner.EAGER: Recorder(), NetworkRunner.COMPILE: Recorder()}
    workshop = make_workshop(model, tmp_path, {"vae_decoder": (2,)})
    settings = replace(QUICK, num_rounds=4)
    seconds = measure_network(networks, model.specs["vae_decoder"], workshop, settings)
    assert {rows: {name: len(times) for name, times in by_runner.items()} for rows, by_runner in seconds.items()} == {
        1: {"eager": 4},
        2: {"eager": 4, "compile": 4},
    }
    assert set(networks[NetworkRunner.COMPILE].rows) == {2} and set(networks[NetworkRunner.EAGER].rows) == {1, 2}


def test_the_benchmark_of_a_bundle(
    tiny_bundle: Path, onnx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "CompiledModule", partial(CompiledModule, compile_backend="eager"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = bundle_model(Bundle.open(tiny_bundle), CPU, tmp_path, num_steps=2)
    workshop = make_workshop(model, onnx_folder, {"unet": (2,)})
    result = benchmark(model, workshop, replace(QUICK, num_rounds=2, turn_s=1e-4), tuple(NetworkRunner))
    result = json.loads(json.dumps(result))

    names = [name for name in ("eager", "compile", "onnx", "openvino") if name not in result["left_out"]]
    assert list(result["runners"]) == names and result["left_out"]["tensorrt"] == "needs a GPU"
    assert [module["module"] for module in result["modules"]] == list(model.specs)
    unet, encoder = result["modules"][:2]
    assert [list(level["runners"]) for level in unet["rows"]] == [[n for n in names if n != "compile"], names]
    assert "compile" not in encoder["max_rel_error"]
    for module in result["modules"]:
        assert all(error <= module["tolerance"] == 1e-4 for error in module["max_rel_error"].values())
    (edit,) = result["edits"]
    assert (edit["unet_rows"], edit["num_steps"], list(edit["runners"])) == (2, 2, names)
    # Both halves of the guidance in each of two steps; the prompt and the empty prompt.
    flops = {module["module"]: module["flops_per_row"] for module in result["modules"]}
    once = flops["vae_encoder"] + flops["vae_decoder"] + flops["garment_encoder"]
    assert result["flops_per_edit"] == 4 * flops["unet"] + 2 * flops["text_encoder"] + once

    rows = printed(module_table(result)).splitlines()
    assert any(row.split()[:2] == ["vae_decoder", "2"] for row in rows)
    assert any("tensorrt: left out, needs a GPU" in row for row in rows)
    assert any(row.split()[:2] == ["onnx", "1"] for row in printed(edit_table(result)).splitlines())
    plot(result).savefig(tmp_path / "plot.png")


def test_a_network_that_is_off_is_refused_by_name(
    tiny_bundle: Path, onnx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Off(runners.OnnxModule):
        def forward(self, *inputs: Tensor) -> Tensor:
            return super().forward(*inputs) * 1.01

    monkeypatch.setattr(runners, "OnnxModule", Off)
    model = bundle_model(Bundle.open(tiny_bundle), CPU, tmp_path, num_steps=2)
    with pytest.raises(ArtifactError, match=r"onnx: unet: differs from PyTorch by 0\.0.* must be at most 0\.0001"):
        benchmark(model, make_workshop(model, onnx_folder), QUICK, [NetworkRunner.ONNX])


def model_of_pictures(make_edit: Callable[[Networks, int], Callable[[], TimedPictures]]) -> MeasuredModel:
    return MeasuredModel("made up", {}, None, 5, {}, (2,), make_edit)


def test_edits_are_compared_by_time_and_picture() -> None:
    def make_edit(networks: Networks, batch: int) -> Callable[[], TimedPictures]:
        bright, slow = (2, 1.0) if "unet" in networks else (0, 4.0)
        return lambda: TimedPictures(
            np.full((batch, 2, 2, 3), 250 + bright, np.uint8), {"encode": slow, "denoise": slow}
        )

    networks = {NetworkRunner.EAGER: {}, NetworkRunner.ONNX: {"unet": Recorder()}}
    level = measure_edits(model_of_pictures(make_edit), 2, networks, QUICK, exact=True)
    assert (level["batch"], level["unet_rows"]) == (2, 4)
    record = level["runners"]["onnx"]
    assert record["s"]["median"] == 2.0 and record["times_faster"]["median"] == 4.0
    assert (record["edits_per_s"], record["max_difference_255"]) == (1.0, 2)
    assert record["stages_s"] == {"encode": 1.0, "denoise": 1.0}


def test_a_picture_that_is_off_is_refused_in_float32() -> None:
    def make_edit(networks: Networks, batch: int) -> Callable[[], TimedPictures]:
        return lambda: TimedPictures(np.full((batch, 2, 2, 3), 3 if networks else 0, np.uint8), {"denoise": 1.0})

    networks = {NetworkRunner.EAGER: {}, NetworkRunner.ONNX: {"unet": Recorder()}}
    with pytest.raises(ArtifactError, match="onnx: a picture is off by 3/255; must be at most 2/255"):
        measure_edits(model_of_pictures(make_edit), 1, networks, QUICK, exact=True)
    level = measure_edits(model_of_pictures(make_edit), 1, networks, QUICK, exact=False)
    assert level["runners"]["onnx"]["max_difference_255"] == 3


def test_an_untrained_model_of_toy_size(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    model, again = make_toy(), make_toy()
    assert torch.equal(torch.get_rng_state(), before)
    networks = {}
    for name, spec in model.specs.items():
        networks[name] = spec.load(None, torch.float32)
        inputs = blank_inputs(spec, 2)
        (output,) = spec.outputs.values()
        with torch.inference_mode():
            got = networks[name](*inputs)
            assert (tuple(got.shape), got.dtype) == ((2, *output.shape), output.dtype)
            assert torch.equal(got, again.specs[name].load(None, torch.float32)(*inputs))
        # On a GPU, float16 is what is timed.
        measure(spec, networks[name], spec.load(None, torch.float16), torch.float16)
    pictures, stages_s = model.make_edit(networks, 3)()
    assert pictures.shape == (3, 64, 48, 3) and pictures.std() > 10
    assert list(stages_s) == ["encode", "denoise", "decode"]


def test_the_benchmark_of_an_untrained_model(tmp_path: Path) -> None:
    model = make_toy(batches=(1, 2))
    settings = replace(QUICK, num_rounds=1, turn_s=1e-4)
    result = benchmark(model, make_workshop(model, tmp_path), settings, [NetworkRunner.EAGER])
    assert list(result["runners"]) == ["eager"]
    assert [module["module"] for module in result["modules"]] == ["unet", "vae_encoder", "vae_decoder"]
    # Two edits would take more rows than are measured.
    assert [edit["batch"] for edit in result["edits"]] == [1]
    plot(result).savefig(tmp_path / "plot.png")


def test_untrained_networks_are_exported_once(tmp_path: Path) -> None:
    model = make_toy()
    spec = model.specs["vae_decoder"]
    workshop = replace(make_workshop(model, tmp_path / "files"), specs={spec.name: spec})
    workshop.export()
    network = workshop.load(NetworkRunner.ONNX, spec)
    assert workshop.check(NetworkRunner.ONNX, spec, workshop.reference(spec), network).max_rel_error > 0
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "files").iterdir()}
    workshop.export()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "files").iterdir()} == written


def test_the_full_size_is_that_of_the_paper() -> None:
    with torch.device("meta"):
        model = untrained_model(CPU, 50)
    networks = {name: spec.load(None, torch.float16) for name, spec in model.specs.items()}
    assert sum(weight.numel() for weight in networks["unet"].parameters()) == pytest.approx(866e6, rel=1e-3)
    flops = {name: count_flops(spec, networks[name]) for name, spec in model.specs.items()}
    # An edit of 50 guided steps has 58.2e12 in the UNet, 0.8e12 for encoding and 1.9e12 for decoding.
    assert model.edit_rows["unet"] * flops["unet"] == pytest.approx(58.2e12, rel=2e-3)
    assert flops["vae_encoder"] == pytest.approx(0.83e12, rel=1e-2)
    assert flops["vae_decoder"] == pytest.approx(1.88e12, rel=1e-2)


def test_engines_are_built_once_for_the_rows_that_are_measured(
    tiny_bundle: Path, onnx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    built: list[tuple[int, ...]] = []

    def build(path: Path, spec: ModuleSpec, rows: tuple[int, ...], *others: object) -> bytes:
        assert path.is_file()
        built.append(rows)
        return b"engine"

    def module(path: Path, key: EngineKey, *others: object, runtime_cache: Path) -> tuple[bytes, tuple[int, ...]]:
        assert runtime_cache.parent == path.parent
        return path.read_bytes(), key.rows

    monkeypatch.setattr(runners, "build_engine", build)
    monkeypatch.setattr(runners, "TrtModule", module)
    model = bundle_model(Bundle.open(tiny_bundle), CPU, tmp_path)
    folder = Path(shutil.copytree(onnx_folder, tmp_path / "onnx"))
    workshop = replace(make_workshop(model, folder), rows=(1, 2, 16))
    for _ in range(2):
        assert workshop.load(NetworkRunner.TENSORRT, model.specs["unet"]) == (b"engine", (1, 2, 16))
        assert workshop.load(NetworkRunner.TENSORRT, model.specs["vae_decoder"]) == (b"engine", (1, 2, 8))
    assert built == [(1, 2, 16), (1, 2, 8)]


def test_batch_sizes_are_no_larger_than_those_of_replicas() -> None:
    assert batch_sizes("unet", (1, 2, 16)) == (1, 2, 16)
    assert batch_sizes("vae_decoder", (1, 2, 8, 16)) == (1, 2, 8)
    assert batch_sizes("vae_decoder", (16,)) == (8,)


def test_runners_have_their_devices() -> None:
    gpu = torch.device("cuda")
    assert [why_not(runner, CPU) for runner in (NetworkRunner.EAGER, NetworkRunner.COMPILE, NetworkRunner.ONNX)] == [
        None
    ] * 3
    assert [why_not(runner, gpu) for runner in (NetworkRunner.ONNX, NetworkRunner.OPENVINO)] == [
        "runs on the CPU only"
    ] * 2
    assert why_not(NetworkRunner.TENSORRT, CPU) == "needs a GPU"


def test_full_size_is_refused_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(typer.BadParameter, match="sd2 needs a GPU"):
        main(size="sd2")
    with pytest.raises(typer.BadParameter, match="sd2 on the CPU takes hours; add --quick"):
        main(size="sd2", device="cpu")
