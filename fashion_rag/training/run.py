"""The training of a base bundle's adapter and UNet on a data set, or of a student of its UNet, on this machine.

`fashion-rag train` and `fashion-rag distill` call it. All that is half done lies in one folder, from which a training
goes on: the cache of the data set, the checkpoint `unet.pt` or `unet_turbo.pt`, and TensorBoard's files in `logs`.
`on_ray` calls the same `run` on many nodes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fashion_rag.artifacts import read_config, write_json
from fashion_rag.bundle import Bundle
from fashion_rag.errors import ArtifactError
from fashion_rag.models.pretrained import read_adapter, read_vision_encoder
from fashion_rag.training.base import open_base, write_student, write_trained
from fashion_rag.training.data import Source, cache_key, prepare
from fashion_rag.training.distillation import DistillationStage, Phases
from fashion_rag.training.fit import TrainingPlan, Watch, fit
from fashion_rag.training.memory import available_bytes, bytes_per_process, check_memory, most_processes
from fashion_rag.training.objective import EditStage, SampleMix, networks
from fashion_rag.training.processes import Report, barrier, rank_and_world, run_processes, silent
from fashion_rag.training.watch import Reporting, SampleSheet, TensorBoard, all_of
from fashion_rag.weights import no_keys

RUN_FILE = "run.json"


@dataclass(frozen=True)
class TrainingSettings:
    """What a training starts from, what it trains on and how, and where it writes.

    base: folder of a bundle, which may lack what `open_base` makes.
    work: folder for all that is half done; the processes of all nodes must see it.
    out: folder of the trained bundle. name: the bundle's name; None = that of the base.
    sheet_every: steps between two sheets of samples, 0 = none.
    dtype: the type of the weights that are written.
    phases: how the student's steps lie among the teacher's, None = train UNet and adapter and no student. A student
        learns from the UNet of `base`, guided as its manifest says, or by `guidance_scale`.
    """

    base: Path
    source: Source
    work: Path
    out: Path
    plan: TrainingPlan
    mix: SampleMix
    name: str | None = None
    seed: int = 0
    sheet_every: int = 500
    dtype: torch.dtype = torch.float32
    phases: Phases | None = None
    guidance_scale: float | None = None

    def bytes_per_process(self) -> int:
        """Return the memory of each process, without activations. Raises as `memory.bytes_per_process`."""
        return bytes_per_process(self.base, self.sheet_every > 0, distils=self.phases is not None)


def train(settings: TrainingSettings, num_processes: int | None = None, report: Report = silent) -> Bundle:
    """Train to the end, from the checkpoint in the working folder if there is one, and return the bundle in `out`.

    num_processes: by default one a GPU, or without GPUs one a core, but no more than fit into memory and can share a
        batch evenly.
    report: called about once a second with what is under way, how far it is, and the loss.

    Raises InvalidRequest for settings that do not fit each other or the memory of this machine, and ArtifactError for
    files that are missing, damaged, or of another training.
    """
    needed, available = settings.bytes_per_process(), available_bytes()
    if num_processes is None:
        num_devices = torch.cuda.device_count() or os.cpu_count() or 1
        num_processes = even_share(settings.plan, max(1, min(num_devices, most_processes(needed, available))))
    settings.plan.part_numbers(0, num_processes)
    check_memory(num_processes, needed, available)
    settings.work.mkdir(parents=True, exist_ok=True)
    run_processes(partial(run, settings), num_processes, settings.work, report)
    return Bundle.open(settings.out)


def even_share(plan: TrainingPlan, max_processes: int) -> int:
    """Return the largest number of processes, up to `max_processes`, that can share the plan's parts or batches."""
    shared = plan.num_parts or plan.batch_size
    return max(number for number in range(1, max_processes + 1) if shared % number == 0)


def run(settings: TrainingSettings, report: Report, watches: Sequence[Watch] = ()) -> None:
    """Do this process's share of the training.

    With several processes, the caller has set up `torch.distributed`. report: as in `train`. watches: called after
    each step, in every process.
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
    edit_stage = EditStage(
        network,
        data,
        prompts=prompts,
        sampler=base.sampler,
        mix=settings.mix,
        device=device,
        precision=settings.plan.precision,
    )
    stage: EditStage | DistillationStage = edit_stage
    if settings.phases is not None:
        guidance_scale = settings.guidance_scale or base.manifest.guidance_scale
        stage = DistillationStage(base.load_unet(), edit_stage, settings.phases, guidance_scale)
    if rank == 0:
        sheet = None
        if settings.sheet_every:
            sheet = SampleSheet(settings.source, data, stage, bundle=base, prompts=prompts, device=device)
        tensorboard = TensorBoard(settings.work / "logs", sheet, settings.sheet_every)
        watches = [Reporting(report), tensorboard, *watches]
    fit(stage, settings.plan, settings.work, settings.seed, all_of(watches))
    if rank == 0:
        if isinstance(stage, DistillationStage):
            write_student(base, stage.network, settings.out, stage.phases.num_steps, settings.dtype)
        else:
            write_trained(base, stage.network, settings.out, settings.name or base.manifest.name, settings.dtype)
    barrier()


def _begin(settings: TrainingSettings) -> None:
    """Complete the base where it lacks a part, and note in the working folder which training it holds.

    Raises ArtifactError if the folder holds another training.
    """
    base = open_base(settings.base, settings.work, settings.seed)
    begun: dict[str, Any] = {
        "base": base.fingerprint("unet", "inversion_adapter"),
        "data": cache_key(settings.source, base),
        "seed": settings.seed,
    }
    if settings.phases is not None:
        begun["student"] = asdict(settings.phases)
    path = settings.work / RUN_FILE
    earlier = read_config(path) if path.exists() else begun
    if earlier != begun:
        differing = ", ".join(key for key in begun | earlier if begun.get(key) != earlier.get(key))
        raise ArtifactError(f"{settings.work}: holds a training of another {differing}; give a new folder")
    write_json(path, begun)
