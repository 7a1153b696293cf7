"""How much a compiled module differs from the PyTorch module that it replaces. Every export is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export.modules import ModuleSpec
from fashion_rag.errors import ArtifactError

ROWS = (1, 2, 5)
SEED = 0
NUM_TIMESTEPS = 1000
# As shares of the output's standard deviation, against PyTorch in float32. The demo bundle's networks differ by at most
# 6e-6 in float32 and, run by ONNX Runtime, by at most 1e-2 in float16; `to_onnx.export_onnx` says what that means.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 3e-2}


@dataclass(frozen=True)
class Parity:
    """The largest differences of a module over all rows.

    max_rel_error: in standard deviations of the output. tolerance: what max_rel_error may be.
    """

    module: str
    max_abs_error: float
    max_rel_error: float
    tolerance: float


def measure(
    spec: ModuleSpec, reference: nn.Module, compiled: Callable[..., Tensor], dtype: torch.dtype = torch.float32
) -> Parity:
    """Return the differences between `compiled` and `reference`. Arguments and errors as `compare`."""
    return compare(spec, outputs(spec, reference), outputs(spec, compiled), dtype)


@torch.inference_mode()
def outputs(spec: ModuleSpec, network: Callable[..., Tensor]) -> Iterator[Tensor]:
    """Yield the outputs of `network` for random inputs of 1, 2 and 5 rows, which are always the same."""
    generator = torch.Generator().manual_seed(SEED)
    for num_rows in ROWS:
        yield network(*random_inputs(spec, num_rows, generator))


def compare(
    spec: ModuleSpec, expected: Iterable[Tensor], compiled: Iterable[Tensor], dtype: torch.dtype = torch.float32
) -> Parity:
    """Return the differences between the `outputs` of PyTorch and those of a compiled module.

    dtype: of the compiled weights, which sets the tolerance. Raises ArtifactError, naming module, error and tolerance,
    for a module that differs by more, or whose numbers are not finite.
    """
    errors, relative = [], []
    for wanted, got in zip(expected, compiled, strict=True):
        error = (got - wanted).abs().max().item()
        errors.append(error)
        relative.append(error / wanted.std().item())
    # The maximum is that of tensors, because Python's own may skip numbers that are not finite.
    worst_error = torch.tensor(errors, dtype=torch.float64).max().item()
    worst = torch.tensor(relative, dtype=torch.float64).max().item()
    tolerance = TOLERANCES[dtype]
    if not worst <= tolerance:
        raise ArtifactError(
            f"{spec.name}: differs from PyTorch by {worst:.2g} of the output's spread; must be at most {tolerance:g}"
        )
    return Parity(spec.name, worst_error, worst, tolerance)


def random_inputs(spec: ModuleSpec, num_rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return random inputs of a module: numbers from a unit normal, and a timestep of its own for each row."""
    inputs = []
    for tensor in spec.inputs.values():
        shape = (num_rows, *tensor.shape)
        if tensor.dtype.is_floating_point:
            inputs.append(torch.randn(shape, generator=generator))
        else:
            inputs.append(torch.randint(NUM_TIMESTEPS, shape, generator=generator))
    return tuple(inputs)
