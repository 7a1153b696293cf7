"""How much memory a training takes, and how much there is. Called by `run` before anything is computed.

Each process holds all that learns: weights, gradients, averaged weights and two moments of the optimiser, each in
float32. So processes on one CPU multiply it; a GPU of its own for each process does not.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from fashion_rag.errors import InvalidRequest
from fashion_rag.models.pretrained import read_text_encoder, read_unet, read_vae
from fashion_rag.training.base import adapter_of
from fashion_rag.weights import no_keys

# Weight, gradient, average, and the two moments of AdamW, of 4 bytes each.
TRAINED_BYTES = 5 * 4
FROZEN_BYTES = 4
GB = 1e9

MEMORY_FILE = Path("/proc/meminfo")
# A container with a limit has files here that say the limit, the memory in use, and how much of it can be dropped.
CGROUP = Path("/sys/fs/cgroup")


def bytes_per_process(base: Path, with_sheets: bool, distils: bool = False) -> int:
    """Return how many bytes a process needs to train the bundle in `base`, without activations.

    with_sheets: whether it paints samples, for which the VAE stays loaded. distils: whether it trains a student of the
    UNet, for which the UNet and the adapter stay as they are. No weights are read, but ArtifactError is raised where
    they do not fit their configurations.
    """
    unet, adapter = read_unet(base / "unet", wanted=no_keys), adapter_of(base)
    trained: list[nn.Module] = [unet] if distils else [unet, adapter]
    frozen: list[nn.Module] = [read_text_encoder(base / "text_encoder", wanted=no_keys)]
    if distils:
        frozen += [unet, adapter]
    if with_sheets:
        frozen.append(read_vae(base / "vae", wanted=no_keys))
    return TRAINED_BYTES * _num_weights(trained) + FROZEN_BYTES * _num_weights(frozen)


def _num_weights(modules: list[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def available_bytes() -> int:
    """Return how many bytes are free: on the fullest GPU, or, without GPUs, in this machine or container."""
    if torch.cuda.is_available():
        return min(torch.cuda.mem_get_info(number)[0] for number in range(torch.cuda.device_count()))
    fields = dict(line.split(":", 1) for line in MEMORY_FILE.read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    limit = CGROUP / "memory.max"
    if limit.is_file() and (max_bytes := limit.read_text().strip()) != "max":
        used = int((CGROUP / "memory.current").read_text())
        droppable = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())["inactive_file"]
        available = min(available, int(max_bytes) - used + int(droppable))
    return available


def most_processes(needed: int, available: int) -> int:
    """Return how many processes of `needed` bytes fit into `available` bytes.

    With GPUs, each process has one of its own, so that either all fit or none.
    """
    if torch.cuda.is_available():
        return torch.cuda.device_count() if needed <= available else 0
    return available // needed


def check_memory(num_processes: int, needed: int, available: int) -> None:
    """Raise InvalidRequest, which says what can be done, unless `num_processes` of `needed` bytes fit."""
    fitting = most_processes(needed, available)
    if num_processes <= fitting:
        return
    ways = [f"--processes {fitting}"] if fitting else []
    ways.append("a machine with more memory, or --workers on a Ray cluster that has it")
    rule = (
        f"each takes {needed / GB:.1f} GB for weights, gradients, average and moments, before activations, and "
        f"{available / GB:.1f} GB are available; use {', or '.join(ways)}"
    )
    raise InvalidRequest("processes", num_processes, rule)
