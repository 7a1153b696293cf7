"""Trains adapter and UNet of a base bundle on a data set, on this machine. Called by `fashion-rag train`.

All work lies in one folder and is resumed from there: what the frozen networks see of the data set, the checkpoint
`unet.pt`, and TensorBoard's files in `logs`. `on_ray` runs the same `run` on many nodes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from fashion_rag.artifacts import read_config, write_json
from fashion_rag.bundle import Bundle, read_adapter
from fashion_rag.errors import ArtifactError
from fashion_rag.models.pretrained import read_vision_encoder
from fashion_rag.training.base import open_base, write_trained
from fashion_rag.training.data import Source, cache_key, prepare
from fashion_rag.training.fit import Plan, Watch, fit
from fashion_rag.training.memory import available_bytes, bytes_per_process, check_memory, most_processes
from fashion_rag.training.objective import EditStage, Mix, networks
from fashion_rag.training.processes import Report, barrier, rank_and_world, run_processes, silent
from fashion_rag.training.watch import Reporting, SampleSheet, TensorBoard, all_of
from fashion_rag.weights import no_keys

RUN_FILE = "run.json"


@dataclass(frozen=True)
class Settings:
    """One training: where from, on what, how, and where to.

    base: folder of a bundle, which may lack what `open_base` makes. work: for all that is half done; every process
    must see it, on whichever node. out: folder of the trained bundle. name: what it calls itself, None = as the base.
    sheet_every: steps between two sheets of samples, 0 = none. dtype: of the weights that are written.
    """

    base: Path
    source: Source
    work: Path
    out: Path
    plan: Plan
    mix: Mix
    name: str | None = None
    seed: int = 0
    sheet_every: int = 500
    dtype: torch.dtype = torch.float32

    def bytes_per_process(self) -> int:
        """Return the memory that each process takes, activations not counted. Raises as `memory.bytes_per_process`."""
        return bytes_per_process(self.base, self.sheet_every > 0)


def train(settings: Settings, num_processes: int | None = None, report: Report = silent) -> Bundle:
    """Train to the end, and return the bundle that is then in `settings.out`.

    Goes on from the checkpoint in the working folder, if there is one. num_processes: default, one a GPU; without GPUs,
    one a core, but no more than fit into memory and can share a batch evenly. `report` is told about once a second what
    is under way, how far, and the loss. Raises InvalidRequest for settings that do not fit each other or this machine's
    memory; ArtifactError for files that are missing, damaged, or of another training.
    """
    needed, available = settings.bytes_per_process(), available_bytes()
    if num_processes is None:
        most = min(torch.cuda.device_count() or os.cpu_count() or 1, most_processes(needed, available))
        num_processes = even_share(settings.plan, max(1, most))
    settings.plan.part_numbers(0, num_processes)
    check_memory(num_processes, needed, available)
    settings.work.mkdir(parents=True, exist_ok=True)
    run_processes(partial(run, settings), num_processes, settings.work, report)
    return Bundle.open(settings.out)


def even_share(plan: Plan, most: int) -> int:
    """Return the largest number of processes, up to `most`, that can share the plan's parts, or its batches, evenly."""
    shared = plan.num_parts or plan.batch_size
    return max(number for number in range(1, most + 1) if shared % number == 0)


def run(settings: Settings, report: Report, watches: Sequence[Watch] = ()) -> None:
    """Return what each process does: its share of the training.

    `torch.distributed` is set up by the caller, if at all.
    """
    rank, _ = rank_and_world()
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    if rank == 0:
        _begin(settings)
    barrier()
    base = open_base(settings.base, settings.work, settings.seed)
    data = prepare(settings.source, base, settings.work, device, report)
    prompts = base.load_prompt_encoder(device)
    vision_config = read_vision_encoder(base.path / "vision_encoder", wanted=no_keys).config
    network = networks(base.load_unet(), read_adapter(base.path / "inversion_adapter", vision_config))
    stage = EditStage(network, data, prompts, base.sampler, settings.mix, device, settings.plan.precision)
    if rank == 0:
        sheet = SampleSheet(settings.source, data, base, prompts, device) if settings.sheet_every else None
        tensorboard = TensorBoard(settings.work / "logs", sheet, settings.sheet_every)
        watches = [Reporting(report), tensorboard, *watches]
    fit(stage, settings.plan, settings.work, settings.seed, all_of(watches))
    if rank == 0:
        write_trained(base, network, settings.out, settings.name or base.manifest.name, settings.dtype)
    barrier()


def _begin(settings: Settings) -> None:
    """Complete the base if it must be, and make sure that what lies in the working folder belongs to this training."""
    base = open_base(settings.base, settings.work, settings.seed)
    begun = {
        "base": base.fingerprint("unet", "inversion_adapter"),
        "data": cache_key(settings.source, base),
        "seed": settings.seed,
    }
    path = settings.work / RUN_FILE
    if path.exists() and (found := read_config(path)) != begun:
        other = ", ".join(key for key in begun if begun[key] != found.get(key))
        raise ArtifactError(f"{settings.work}: holds a training of another {other}; give a new folder")
    write_json(path, begun)
