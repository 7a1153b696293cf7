"""Tests of the choice of the CPU's backend by measurement: what is chosen, what is refused, and when it is taken."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from export import cpu_choice
from export.backend import Parts, cpu_parts
from export.cpu_choice import CHOICE_FILE, measure_backends, measured_backend, take_turns, write_choice
from export.modules import module_specs
from export.runtime import Backend, Runtime
from fashion_rag.bundle import Bundle
from fashion_rag.errors import ArtifactError

NETWORKS = ("unet", "vae_decoder")
# Seconds of a call, by backend; made up, so that no test depends on the machine.
SECONDS: dict[str, float] = {"torch": 4.0, "onnx": 2.0, "openvino": 3.0}


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(autouse=True)
def two_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make measurements take two networks alone."""
    monkeypatch.setattr(
        cpu_choice, "module_specs", lambda bundle: {name: module_specs(bundle)[name] for name in NETWORKS}
    )


@pytest.fixture
def made_up_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each call take as long as SECONDS says, whatever the network and the rows."""

    def take(calls: dict[str, Any], num_rounds: int) -> dict[str, list[float]]:
        return {name: [SECONDS[name]] * num_rounds for name in calls}

    monkeypatch.setattr(cpu_choice, "take_turns", take)


def make_parts(bundle: Bundle, folder: Path) -> dict[Backend, Parts]:
    return {backend: cpu_parts(bundle, backend, folder, 1) for backend in cpu_choice.CANDIDATES}


class Off(nn.Module):
    """A network whose output is off by a hundredth."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        output: Tensor = self.network(*inputs) * 1.01
        return output


def test_each_round_begins_with_another() -> None:
    order: list[str] = []
    seconds = take_turns({name: lambda name=name: order.append(name) for name in "abc"}, 3)
    # The first three calls are not timed.
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}


@pytest.mark.usefixtures("made_up_times")
def test_the_backend_with_the_fewest_seconds_an_edit_is_chosen(bundle: Bundle, onnx_folder: Path) -> None:
    choice = measure_backends(make_parts(bundle, onnx_folder), (1, 2), 3)
    assert (choice.chosen, choice.refused, choice.num_threads) == ("onnx", {}, 1)
    # Two rows of the UNet a step, and one of the decoder; a call of two rows takes half as long a row.
    rows = 2 * bundle.manifest.num_inference_steps + 1
    for backend, call_s in SECONDS.items():
        assert choice.seconds_per_edit[backend] == pytest.approx({1: rows * call_s, 2: rows * call_s / 2})
    measured = {(timing.module, timing.backend, timing.rows) for timing in choice.timings}
    assert measured == {(name, backend, count) for name in NETWORKS for backend in SECONDS for count in (1, 2)}
    assert all(timing.max_rel_error <= 1e-4 for timing in choice.timings)


@pytest.mark.usefixtures("made_up_times")
def test_a_backend_that_differs_from_pytorch_is_never_chosen(
    bundle: Bundle, onnx_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Parts.load_network

    def off(self: Parts, name: str) -> nn.Module:
        network = load(self, name)
        return Off(network) if self.backend == "onnx" and name == "vae_decoder" else network

    monkeypatch.setattr(Parts, "load_network", off)
    choice = measure_backends(make_parts(bundle, onnx_folder), (2,), 1)
    assert choice.chosen == "openvino"
    assert list(choice.refused) == ["onnx"]
    assert choice.refused["onnx"].startswith("vae_decoder: differs from PyTorch by 0.0")
    assert set(choice.seconds_per_edit) == {"torch", "openvino"}


@pytest.mark.usefixtures("made_up_times")
def test_a_float16_export_is_not_chosen_for_float32(
    bundle: Bundle, onnx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(path: Path, bundle: Bundle, name: str, *others: Any) -> nn.Module:
        return module_specs(bundle)[name].load(bundle, torch.float16)

    monkeypatch.setattr("export.backend.load_onnx", half)
    choice = measure_backends({name: cpu_parts(bundle, name, onnx_folder, 1) for name in ("torch", "onnx")}, (1,), 1)
    assert (choice.chosen, list(choice.refused)) == ("torch", ["onnx"])


@pytest.fixture
def chosen_folder(bundle: Bundle, onnx_folder: Path, tmp_path: Path, made_up_times: None) -> Path:
    """Return a folder of exported networks in which OpenVINO was chosen."""
    folder = Path(shutil.copytree(onnx_folder, tmp_path / "onnx"))
    parts = make_parts(bundle, folder)
    write_choice(folder, measure_backends({name: parts[name] for name in ("torch", "openvino")}, (2,), 1))
    return folder


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what is chosen without a GPU")
def test_what_serves_takes_what_was_measured(tiny_bundle: Path, onnx_folder: Path, chosen_folder: Path) -> None:
    assert Runtime(str(tiny_bundle), compiled=str(chosen_folder)).open().backend == "openvino"
    assert Runtime(str(tiny_bundle), precision="float32", compiled=str(chosen_folder)).open().backend == "openvino"
    # Only float32 was measured, and a backend that is named goes before any measurement.
    assert Runtime(str(tiny_bundle), precision="bfloat16", compiled=str(chosen_folder)).open().backend == "onnx"
    assert Runtime(str(tiny_bundle), "torch", compiled=str(chosen_folder)).open().backend == "torch"
    assert Runtime(str(tiny_bundle), compiled=str(onnx_folder)).open().backend == "onnx"


def test_a_measurement_of_another_processor_is_not_used(
    chosen_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert measured_backend(chosen_folder) == "openvino"
    monkeypatch.setattr(cpu_choice, "cpu_name", lambda: "another")
    assert measured_backend(chosen_folder) is None
    assert "this is another; it is not used" in caplog.text


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"from": {}, "chosen": "magic"}', '{"from": 1, "chosen": "onnx"}']
)
def test_a_damaged_measurement_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / CHOICE_FILE).write_text(content)
    with pytest.raises(ArtifactError, match=r"cpu_backend\.json"):
        measured_backend(tmp_path)


def test_the_figures_are_kept_beside_the_networks(chosen_folder: Path) -> None:
    written = json.loads((chosen_folder / CHOICE_FILE).read_text())
    assert written["chosen"] == "openvino"
    assert set(written["seconds_per_edit"]) == {"torch", "openvino"}
    assert {"cpu", "packages", "command"} <= set(written["from"])
    assert {timing["module"] for timing in written["timings"]} == set(NETWORKS)
