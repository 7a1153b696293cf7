"""The choice of what runs a bundle's networks on a CPU, by measurement on the machine that is to run them.

`fashion-rag export measure` calls `measure_backends`, which writes its figures into the folder of the exported
networks. `backend.py` reads the choice there with `measured_backend`, where the operator names no backend.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from export.modules import ModuleSpec, module_specs
from export.parity import SEED, compare, outputs, random_inputs
from export.runtime import Backend
from fashion_rag.artifacts import read_config, write_json
from fashion_rag.bundle import Bundle
from fashion_rag.errors import ArtifactError
from fashion_rag.provenance import cpu_name, provenance

if TYPE_CHECKING:
    from export.backend import Parts

CHOICE_FILE = "cpu_backend.json"
# torch.compile is measured only where it is asked for, because it compiles for minutes, and again at each start.
CANDIDATES: tuple[Backend, ...] = ("torch", "onnx", "openvino")
CPU_CANDIDATES: tuple[Backend, ...] = (*CANDIDATES, "compile")
# The rows that an edit takes of each network beside the UNet. Its text encoder reads the prompt and the empty prompt.
EDIT_ROWS = {"vae_encoder": 1, "vae_decoder": 1, "text_encoder": 2, "garment_encoder": 1, "parser": 1, "pose": 1}

Name = TypeVar("Name", bound=str)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timing:
    """The median seconds of a call of one network. max_rel_error: as `parity.Parity` has it."""

    module: str
    backend: Backend
    rows: int
    median_s: float
    max_rel_error: float


@dataclass(frozen=True)
class CpuChoice:
    """The backend that was chosen, and the figures that it was chosen by.

    seconds_per_edit: of all networks of a plain edit with the bundle's default steps, by backend and then by the rows
        of a call. The chosen backend has the smallest mean over the rows.
    refused: why backends that were measured are not chosen: their networks differ from PyTorch's by too much.
    """

    chosen: Backend
    seconds_per_edit: dict[Backend, dict[int, float]]
    refused: dict[Backend, str]
    timings: list[Timing]
    num_threads: int
    num_rounds: int


def measured_backend(folder: Path) -> Backend | None:
    """Return the backend that was chosen by measurement in `folder`; None if this processor was not measured.

    Raises ArtifactError for a file that is damaged.
    """
    path = folder / CHOICE_FILE
    if not path.is_file():
        return None
    content = read_config(path)
    measured = content.get("from")
    if not isinstance(measured, dict) or content.get("chosen") not in CPU_CANDIDATES:
        raise ArtifactError(f"{path}: is damaged; run `fashion-rag export measure` again")
    if measured.get("cpu") != cpu_name():
        logger.warning("%s: was measured on %s, and this is %s; it is not used", path, measured.get("cpu"), cpu_name())
        return None
    chosen: Backend = content["chosen"]
    return chosen


def write_choice(folder: Path, choice: CpuChoice) -> None:
    """Write the choice and its figures into the folder of the exported networks."""
    write_json(folder / CHOICE_FILE, {"from": provenance()} | asdict(choice))


def measure_backends(
    parts: Mapping[Backend, Parts],
    rows: Sequence[int],
    num_rounds: int,
    progress: Callable[[], None] | None = None,
) -> CpuChoice:
    """Time all networks as each backend runs them, in turn, and return the choice.

    A backend is refused if a network differs from PyTorch in float32 by more than `parity` allows.

    parts: those of one bundle on the CPU, by backend, with the same number of threads; plain PyTorch is among them.
    rows: of the calls that are timed. num_rounds: timed calls of each network and number of rows. progress: called
    after each network.
    """
    bundle, num_threads = parts["torch"].bundle, parts["torch"].num_threads
    timings: list[Timing] = []
    refused: dict[Backend, str] = {}
    for spec in module_specs(bundle).values():
        expected = list(outputs(spec, spec.load(bundle, torch.float32)))
        networks: dict[Backend, nn.Module] = {}
        errors: dict[Backend, float] = {}
        for backend, opened in parts.items():
            network = opened.load_network(spec.name)
            got = list(outputs(spec, network))
            try:
                errors[backend] = compare(spec, expected, got).max_rel_error
            except ArtifactError as fault:
                refused.setdefault(backend, str(fault))
            else:
                networks[backend] = network
        for num_rows in rows:
            for backend, median_s in _medians(spec, networks, num_rows, num_rounds).items():
                timings.append(Timing(spec.name, backend, num_rows, median_s, errors[backend]))
        if progress is not None:
            progress()
    seconds = _seconds_per_edit(bundle, timings, refused)
    chosen = min(seconds, key=lambda backend: fmean(seconds[backend].values()))
    return CpuChoice(chosen, seconds, refused, timings, num_threads, num_rounds)


@torch.inference_mode()
def _medians(
    spec: ModuleSpec, networks: Mapping[Backend, nn.Module], num_rows: int, num_rounds: int
) -> dict[Backend, float]:
    """Return the median seconds of a call with `num_rows` rows, by backend."""
    inputs = random_inputs(spec, num_rows, torch.Generator().manual_seed(SEED))
    calls: dict[Backend, Callable[[], object]] = {}
    for backend, network in networks.items():
        calls[backend] = partial(network, *inputs)
    return {backend: median(seconds) for backend, seconds in take_turns(calls, num_rounds).items()}


def take_turns(calls: Mapping[Name, Callable[[], object]], num_rounds: int) -> dict[Name, list[float]]:
    """Return the seconds of each call in `num_rounds` rounds, after a call each that is not timed.

    Each round begins with another, so that a disturbance meets all.
    """
    for call in calls.values():
        call()
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    order = deque(calls)
    for _ in range(num_rounds):
        for name in order:
            start = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - start)
        order.rotate(-1)
    return seconds


def _seconds_per_edit(
    bundle: Bundle, timings: Sequence[Timing], refused: Mapping[Backend, Any]
) -> dict[Backend, dict[int, float]]:
    """Return the seconds of all networks of an edit, by backend and rows, without the backends that are refused."""
    num_branches = 2 if bundle.manifest.guidance_scale > 1 else 1
    edit_rows = EDIT_ROWS | {"unet": num_branches * bundle.manifest.num_inference_steps}
    seconds: dict[Backend, dict[int, float]] = {}
    for timing in timings:
        if timing.backend not in refused:
            by_rows = seconds.setdefault(timing.backend, {})
            # Only edits that keep features run the outermost layers of the UNet alone.
            edit_s = edit_rows.get(timing.module, 0) * timing.median_s / timing.rows
            by_rows[timing.rows] = by_rows.get(timing.rows, 0.0) + edit_s
    return seconds
