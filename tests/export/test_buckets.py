"""Tests of networks that are called at fixed batch sizes, here compiled by torch.compile."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from export.buckets import split_rows
from export.compiled_module import CompiledModule
from export.modules import ModuleSpec, TensorSpec, module_specs
from export.parity import random_inputs
from fashion_rag.bundle import Bundle
from fashion_rag.errors import FashionRAGError

CPU = torch.device("cpu")
SPEC = ModuleSpec(
    "toy",
    {"sample": TensorSpec((3,)), "t": TensorSpec((), torch.int64)},
    {"sum": TensorSpec((3,))},
    lambda bundle, dtype: Toy(),
    (),
)


class Toy(nn.Module):
    """A network whose rows do not depend on each other."""

    def forward(self, sample: Tensor, t: Tensor) -> Tensor:
        return 2 * sample + t[:, None]


def toy_inputs(num_rows: int) -> tuple[Tensor, ...]:
    return random_inputs(SPEC, num_rows, torch.Generator().manual_seed(num_rows))


@given(st.integers(1, 200), st.sets(st.integers(1, 32), min_size=1))
def test_each_row_is_in_one_call_of_the_smallest_size_that_holds_it(num_rows: int, sizes: set[int]) -> None:
    rising = tuple(sorted(sizes))
    calls = split_rows(num_rows, rising)
    assert [row for rows, _ in calls for row in range(rows.start, rows.stop)] == list(range(num_rows))
    for rows, size in calls:
        held = rows.stop - rows.start
        assert size == min(size for size in rising if size >= held)
    # Only the last call may have fewer rows than the largest size.
    assert all(size == rising[-1] and after.start - rows.start == size for (rows, size), (after, _) in pairwise(calls))


def test_any_number_of_rows_is_padded_or_split() -> None:
    module = CompiledModule(Toy(), SPEC, (1, 2, 4), CPU, compile_backend="eager")
    for num_rows in range(1, 14):
        inputs = toy_inputs(num_rows)
        assert torch.equal(module(*inputs), Toy()(*inputs))


def test_a_size_is_compiled_before_it_is_asked_for_and_only_once() -> None:
    compiled = []

    def backend(graph: torch.fx.GraphModule, examples: list[Tensor]) -> torch.fx.GraphModule:
        compiled.append(next(len(example) for example in examples if isinstance(example, Tensor)))
        return graph

    module = CompiledModule(Toy(), SPEC, (1, 2, 4), CPU, compile_backend=backend)
    assert compiled == [1, 2, 4]
    for num_rows in range(1, 9):
        with torch.inference_mode():
            module(*toy_inputs(num_rows))
        with torch.no_grad():
            module(*toy_inputs(num_rows))
        module(*toy_inputs(num_rows))
    assert compiled == [1, 2, 4]


def test_an_answer_is_not_overwritten_and_rows_of_before_are_gone() -> None:
    module = CompiledModule(Toy(), SPEC, (4,), CPU, compile_backend="eager")
    full = module(*toy_inputs(4))
    kept = full.clone()
    alone = module(*toy_inputs(1))
    assert torch.equal(full, kept)
    assert torch.equal(alone, Toy()(*toy_inputs(1)))


def test_a_wrong_input_is_named() -> None:
    module = CompiledModule(Toy(), SPEC, (2,), CPU, compile_backend="eager")
    sample, t = toy_inputs(2)
    with pytest.raises(FashionRAGError, match=r"toy: t: got torch\.int32 \[2\]"):
        module(sample, t.int())


@pytest.mark.slow
def test_the_compiled_unet_agrees_with_pytorch(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    spec = module_specs(bundle)["unet"]
    module = CompiledModule(bundle.load_unet(), spec, (1, 2), CPU)
    unet = bundle.load_unet()
    for num_rows in (1, 2, 3):
        inputs = random_inputs(spec, num_rows, torch.Generator().manual_seed(num_rows))
        with torch.no_grad():
            torch.testing.assert_close(module(*inputs), unet(*inputs), rtol=1e-4, atol=1e-4)
