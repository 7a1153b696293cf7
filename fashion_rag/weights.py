"""Weights on disk and in networks: read one tensor at a time, and only where they fit exactly.

Called by all modules that load or write a network; every network of the project is filled by `load_strict`. A network
that is built inside `hollow` takes no memory before it is filled, and each tensor is read, converted and freed before
the next is read. So loading needs memory for the weights in the wanted type, and for one tensor more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from fashion_rag.errors import ArtifactError

MAX_NAMED = 4  # how many faults a message lists; a wrong file has hundreds

# Takes the name of a weight in its network, and says whether it is read.
Wanted = Callable[[str], bool]


def all_keys(key: str) -> bool:
    """Return True: no weight is left out."""
    return True


def no_keys(key: str) -> bool:
    """Return False: no weight is read. They are checked all the same."""
    return False


class StateFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file by name. A tensor is read when it is asked for, and is not kept."""

    def __init__(self, path: Path) -> None:
        """Read the names in the file `path`. Raises ArtifactError for a file that is missing or damaged."""
        self.path = path
        try:
            with safe_open(path, "pt") as file:
                self._names = list(file.keys())
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{path}: not a readable safetensors file: {error}") from error

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor that is mapped from the file, and whose memory is freed with it. Copy what is to be kept."""
        # The file is opened anew for each tensor, because all that has been mapped stays mapped until it is closed.
        with safe_open(self.path, "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_state(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file by name. Raises ArtifactError for one that is missing or damaged."""
    return dict(StateFile(path))


def write_state(path: Path, state: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
    """Write `state` as a safetensors file, floating-point tensors as `dtype`. Raises OSError, as on a full disk."""
    stored = {}
    for key, tensor in state.items():
        converted = tensor.to(dtype) if tensor.is_floating_point() else tensor
        stored[key] = converted.detach().cpu().contiguous()
    try:
        save_file(stored, path, {"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path}: could not be written: {error}") from error
    # safetensors writes files that only their owner may read.
    path.chmod(0o644)


@contextmanager
def hollow() -> Iterator[None]:
    """Build the networks of the block without memory for their parameters, which `load_strict` must then fill.

    Buffers take memory as usual, because files lack those that a network computes itself.
    """
    builder = threading.get_ident()

    def emptied(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        # The hook is called in all threads.
        if parameter is None or threading.get_ident() != builder:
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    # PyTorch declares that hooks return None, and documents that they may return a parameter.
    hook = register_module_parameter_registration_hook(cast("Callable[..., None]", emptied))
    try:
        yield
    finally:
        hook.remove()


def load_strict(
    module: nn.Module,
    state: Mapping[str, Tensor],
    source: Path,
    dtype: torch.dtype | None = None,
    wanted: Wanted = all_keys,
) -> None:
    """Fill the parameters and buffers of `module` with copies of the tensors of `state`.

    source: the file that `state` comes from.
    dtype: the type of floating-point tensors; None = as they are in the module.
    wanted: which keys are filled; the others are checked all the same.

    Raises ArtifactError, naming `source`, the keys and the shapes, unless keys and shapes are exactly the module's.
    """
    expected = module.state_dict()
    if faults := _faults(expected, state):
        more = f"; and {len(faults) - MAX_NAMED} more" if len(faults) > MAX_NAMED else ""
        raise ArtifactError(f"{source}: does not fit its configuration: {'; '.join(faults[:MAX_NAMED])}{more}")
    filled = {}
    for key, tensor in expected.items():
        if wanted(key):
            target = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            # Copied even where nothing is converted, as a network must not change with the file.
            filled[key] = state[key].to(target, copy=True)
    module.load_state_dict(filled, strict=False, assign=True)


def _faults(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Return how the keys and shapes of `state` differ from those expected: missing, unexpected, then wrong ones."""
    shapes = {key: list(state[key].shape) for key in state}
    missing, wrong = [], []
    for key, tensor in expected.items():
        wanted_shape = list(tensor.shape)
        if key not in shapes:
            missing.append(f"{key} is missing, expected {wanted_shape}")
        elif shapes[key] != wanted_shape:
            wrong.append(f"{key} is {shapes[key]}, expected {wanted_shape}")
    unexpected = [f"{key} {shape} is unexpected" for key, shape in shapes.items() if key not in expected]
    return missing + unexpected + wrong
