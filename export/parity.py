"""How far a compiled module is from the PyTorch module it stands in for. Every export is measured before it is kept."""

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
# Of the output's standard deviation, against PyTorch in float32. The demo bundle's networks are within 6e-6 in float32
# and, run by ONNX Runtime, within 1e-2 of float16 files: see `to_onnx.export_onnx` for what the latter does not tell.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 3e-2}


@dataclass(frozen=True)
class Parity:
    """The largest differences over all rows. max_rel_error: max_abs_error in standard deviations of the output."""

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
    """Yield what `network` makes of random inputs, always the same ones, of 1, 2 and 5 rows."""
    generator = torch.Generator().manual_seed(SEED)
    for num_rows in ROWS:
        yield network(*random_inputs(spec, num_rows, generator))


def compare(
    spec: ModuleSpec, expected: Iterable[Tensor], found: Iterable[Tensor], dtype: torch.dtype = torch.float32
) -> Parity:
    """Return the differences between what PyTorch and a compiled module made of the same inputs, see `outputs`.

    dtype: of the compiled weights, which sets the tolerance. Raises ArtifactError, naming module, error and tolerance,
    for a module that is further off, or that gives numbers that are not finite.
    """
    errors, relative = [], []
    for wanted, got in zip(expected, found, strict=True):
        error = (got - wanted).abs().max().item()
        errors.append(error)
        relative.append(error / wanted.std().item())
    # Of tensors, as Python's own max may skip what is not a number.
    worst_error, worst = (torch.tensor(values, dtype=torch.float64).max().item() for values in (errors, relative))
    tolerance = TOLERANCES[dtype]
    if not worst <= tolerance:
        raise ArtifactError(
            f"{spec.name}: differs from PyTorch by {worst:.2g} of the output's spread; must be at most {tolerance:g}"
        )
    return Parity(spec.name, worst_error, worst, tolerance)


def random_inputs(spec: ModuleSpec, num_rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return the inputs of a module: unit normal, and a timestep of its own for each row."""
    return tuple(
        torch.randn(num_rows, *tensor.shape, generator=generator)
        if tensor.dtype.is_floating_point
        else torch.randint(NUM_TIMESTEPS, (num_rows, *tensor.shape), generator=generator)
        for tensor in spec.inputs.values()
    )
