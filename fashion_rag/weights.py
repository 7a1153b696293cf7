"""Weights on disk and in networks: read one tensor at a time, and only where they fit exactly.

Called by whatever loads or writes a network; every network of the project is filled by `load_strict`. A network that
is built inside `hollow` takes no memory before it is filled, and each tensor is read, converted and let go before the
next. So loading needs the memory of the weights in the type that is asked for, and of one tensor.
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

MAX_NAMED = 4  # faults that a message lists; a wrong file has hundreds

# Which weights of a network are read, by their names in it.
Wanted = Callable[[str], bool]


def all_keys(key: str) -> bool:
    """Return True: no weight is left out."""
    return True


def no_keys(key: str) -> bool:
    """Return False: the weights are checked and none is read."""
    return False


class StateFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file by name, each read when it is asked for and not kept."""

    def __init__(self, path: Path) -> None:
        """Read the names. Raises ArtifactError for a file that is missing or damaged."""
        self.path = path
        try:
            with safe_open(path, "pt") as file:
                self._names = list(file.keys())
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{path}: not a readable safetensors file: {error}") from error

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor that maps its part of the file, whose pages are freed with it. Copy what is to be kept."""
        # The file is opened anew, because what one opening has mapped stays mapped until it is closed.
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
    stored = {key: (tensor.to(dtype) if tensor.is_floating_point() else tensor) for key, tensor in state.items()}
    try:
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in stored.items()}, path, {"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path}: could not be written: {error}") from error
    # safetensors makes files that only their owner may read.
    path.chmod(0o644)


@contextmanager
def hollow() -> Iterator[None]:
    """Build the networks of the block without memory for their parameters, which `load_strict` must then fill.

    Buffers are real, because no file has those that a network computes itself.
    """
    builder = threading.get_ident()

    def emptied(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        # The hook is one for all threads.
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

    dtype: of floating-point tensors; None = as they are in the module. wanted: which keys are filled; the others are
    checked all the same. Raises ArtifactError, naming `source`, the keys and the shapes, unless keys and shapes are
    exactly the module's.
    """
    expected = module.state_dict()
    shapes = {key: state[key].shape for key in state}
    faults = [f"{key} is missing, expected {list(expected[key].shape)}" for key in expected if key not in shapes]
    faults += [f"{key} {list(shapes[key])} is unexpected" for key in shapes if key not in expected]
    faults += [
        f"{key} is {list(shapes[key])}, expected {list(expected[key].shape)}"
        for key in expected
        if key in shapes and shapes[key] != expected[key].shape
    ]
    if faults:
        more = f"; and {len(faults) - MAX_NAMED} more" if len(faults) > MAX_NAMED else ""
        raise ArtifactError(f"{source}: does not fit its configuration: {'; '.join(faults[:MAX_NAMED])}{more}")
    filled = {}
    for key, tensor in expected.items():
        if wanted(key):
            target = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            # A copy even where nothing is converted: what runs must not change with the file.
            filled[key] = state[key].to(target, copy=True)
    module.load_state_dict(filled, strict=False, assign=True)
