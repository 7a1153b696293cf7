"""Tests of weights: read tensor by tensor, into networks that hold none before, and only where they fit."""

import re
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from fashion_rag.errors import ArtifactError
from fashion_rag.weights import StateFile, hollow, load_strict, no_keys, read_state, write_state

SOURCE = Path("some.file")


@pytest.mark.parametrize("content", [None, b"", b"\x08\0\0\0\0\0\0\0garbage!"])
def test_a_damaged_weights_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=re.escape(str(path))):
        read_state(path)


def test_weights_are_stored_at_the_asked_precision_and_indices_as_they_are(tmp_path: Path) -> None:
    state = {"weight": torch.tensor([[1.0, 2.0]]).T, "index": torch.tensor([70000])}
    write_state(tmp_path / "x.safetensors", state, torch.float16)
    stored = read_state(tmp_path / "x.safetensors")
    assert stored["weight"].dtype == torch.float16 and stored["weight"].tolist() == [[1.0], [2.0]]
    assert stored["index"].dtype == torch.int64 and stored["index"].tolist() == [70000]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"bias": None}, "bias is missing, expected [2]"),
        ({"scale": torch.zeros(7)}, "scale [7] is unexpected"),
        ({"weight": torch.zeros(3, 2)}, "weight is [3, 2], expected [2, 3]"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_not_loaded(change: dict[str, torch.Tensor | None], fault: str) -> None:
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    state = {"weight": torch.ones(2, 3), "bias": torch.ones(2)} | change
    with pytest.raises(ArtifactError, match=re.escape(f"some.file: does not fit its configuration: {fault}")):
        load_strict(module, {key: tensor for key, tensor in state.items() if tensor is not None}, SOURCE)
    assert torch.equal(module.weight, before)


def test_a_long_list_of_faults_is_cut() -> None:
    state = {f"layer{index}": torch.zeros(1) for index in range(20)}
    with pytest.raises(ArtifactError, match=r"; and 18 more$"):
        load_strict(nn.Linear(3, 2), state, SOURCE)


class Counting(nn.Module):
    """A layer, and a buffer that files do not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("positions", torch.arange(4), persistent=False)


def test_a_hollow_network_has_buffers_and_no_weights() -> None:
    with hollow():
        module = Counting()
    assert all(parameter.is_meta for parameter in module.parameters())
    assert module.positions.tolist() == [0, 1, 2, 3]
    assert not nn.Linear(3, 2).weight.is_meta


def test_a_network_built_meanwhile_in_another_thread_has_its_weights() -> None:
    built: list[nn.Linear] = []
    with hollow():
        thread = threading.Thread(target=lambda: built.append(nn.Linear(3, 2)))
        thread.start()
        thread.join()
    assert not built[0].weight.is_meta


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_a_hollow_network_is_filled_bit_for_bit_like_one_that_is_not(
    tmp_path: Path, stored: torch.dtype, dtype: torch.dtype
) -> None:
    path = tmp_path / "model.safetensors"
    write_state(path, nn.Linear(3, 2).state_dict(), stored)
    with hollow():
        module = nn.Linear(3, 2)
    load_strict(module, StateFile(path), path, dtype)
    expected = nn.Linear(3, 2)
    expected.load_state_dict(read_state(path))
    expected = expected.to(dtype)
    for name, tensor in expected.state_dict().items():
        assert module.state_dict()[name].dtype == dtype and torch.equal(module.state_dict()[name], tensor)


def test_a_filled_network_does_not_change_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_state(path, {"weight": torch.ones(2, 3), "bias": torch.ones(2)})
    with hollow():
        module = nn.Linear(3, 2)
    load_strict(module, StateFile(path), path)
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.write(b"\xff" * len(content))
    assert torch.equal(module.weight, torch.ones(2, 3))


def test_weights_that_nobody_wants_are_checked_and_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_state(path, {"weight": torch.ones(2, 3), "bias": torch.ones(2)})
    with hollow():
        module = nn.Linear(3, 2)
    load_strict(module, StateFile(path), path, wanted=lambda key: key == "bias")
    assert module.weight.is_meta and torch.equal(module.bias, torch.ones(2))
    write_state(path, {"weight": torch.ones(3, 2), "bias": torch.ones(2)})
    with pytest.raises(ArtifactError, match=re.escape("weight is [3, 2], expected [2, 3]")):
        load_strict(module, StateFile(path), path, wanted=no_keys)
