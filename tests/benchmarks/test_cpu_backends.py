"""Tests of the comparison of the CPU's backends, with made-up networks and on a tiny bundle."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import cpu_backends
from benchmarks.cpu_backends import benchmark, differences, parity_table, times_table, turns
from export.modules import ModuleSpec, module_specs
from fashion_rag.bundle import Bundle
from fashion_rag.errors import ArtifactError


class Off(nn.Module):
    """A made-up network that returns its input, moved by a share of the input's spread."""

    def __init__(self, by: float, calls: list[float]) -> None:
        super().__init__()
        self.by = by
        self.calls = calls

    def forward(self, latents: Tensor) -> Tensor:
        self.calls.append(self.by)
        return latents + self.by * latents.std()


@pytest.fixture(scope="module")
def spec(tiny_bundle: Path) -> ModuleSpec:
    return module_specs(Bundle.open(tiny_bundle))["vae_decoder"]


def test_a_difference_is_a_share_of_the_spread(spec: ModuleSpec) -> None:
    networks = {"torch": Off(0, []), "onnx": Off(1e-5, []), "openvino-bfloat16": Off(0.25, [])}
    onnx, half = differences(spec, networks)
    assert onnx["max_rel_error"] == pytest.approx(1e-5, rel=0.1) and onnx["tolerance"] == 1e-4
    assert half["rms_rel_error"] == pytest.approx(0.25, rel=1e-3) and half["tolerance"] is None


def test_a_float32_network_that_is_off_is_refused(spec: ModuleSpec) -> None:
    with pytest.raises(ArtifactError, match=r"vae_decoder: differs from PyTorch by 0\.01"):
        differences(spec, {"torch": Off(0, []), "openvino": Off(0.01, [])})


def test_each_round_begins_with_another_backend(spec: ModuleSpec) -> None:
    calls: list[float] = []
    records = turns(spec, {"torch": Off(0, calls), "onnx": Off(1, calls), "openvino": Off(2, calls)}, 2, 3)
    # The first three calls are not timed.
    assert calls == [0, 1, 2, 0, 1, 2, 1, 2, 0, 2, 0, 1]
    assert [(record["backend"], record["rows"]) for record in records] == [("torch", 2), ("onnx", 2), ("openvino", 2)]
    assert records[0]["times_faster"] == 1
    assert records[1]["times_faster"] == records[0]["median_s"] / records[1]["median_s"]


@pytest.mark.parametrize("capable", [False, True])
def test_the_benchmark_of_a_bundle(
    tiny_bundle: Path, onnx_folder: Path, capable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(folder: Path, bundle: Bundle, name: str, num_threads: int, dtype: torch.dtype = torch.float32) -> Any:
        return module_specs(bundle)[name].load(bundle, dtype)

    monkeypatch.setattr(cpu_backends, "load_openvino", load)
    monkeypatch.setattr(cpu_backends, "has_bfloat16", lambda: capable)
    result = json.loads(json.dumps(benchmark(Bundle.open(tiny_bundle), onnx_folder, 1, (1, 2), 1)))
    backends = ["torch", "onnx", "openvino", *(["openvino-bfloat16"] if capable else [])]
    timed = [(record["module"], record["rows"], record["backend"]) for record in result["times"]]
    modules = [(module, rows) for module in ("unet", "vae_decoder") for rows in (1, 2)]
    assert timed == [(*module, backend) for module in modules for backend in backends]
    compared = {record["backend"] for record in result["parity"]}
    assert compared == {*backends[1:], *(["torch-bfloat16"] if capable else [])}
    assert len(result["parity"]) == 6 * len(compared)
    assert times_table(result["times"]).row_count == len(timed)
    assert parity_table(result["parity"]).row_count == len(result["parity"])
