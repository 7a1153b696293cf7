"""How many processes train and which of them this one is, and how a job is run by several processes of this machine.

`torch.distributed` is set up by this module or by Ray Train. All other training code only asks this module.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Semaphore
from pathlib import Path

import torch
import torch.distributed as dist

# Called with the name of what is under way, the number of steps done, the number of all steps, and the loss.
Report = Callable[[str, int, int, float], None]
Job = Callable[[Report], None]

# How long a process waits for the others. The first may be writing a checkpoint, and the last encoding its share.
PATIENCE = timedelta(hours=6)


def rank_and_world() -> tuple[int, int]:
    """Return the number of this process, from 0, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def barrier() -> None:
    """Wait until every process has called this function."""
    if dist.is_initialized():
        dist.barrier()


def silent(stage: str, step: int, num_steps: int, loss: float) -> None:
    """Report nothing, as all processes but the first do."""


def run_processes(job: Job, num_processes: int, folder: Path, report: Report) -> None:
    """Run `job` in `num_processes` processes, of which this one is the first.

    On a CPU two processes of one thread each are far faster than one process of two threads.

    job: must be possible to pickle. folder: where the processes find each other, by a file. report: called in this
    process alone. Raises what `job` raises in this process, and RuntimeError if another process dies.
    """
    if num_processes == 1:
        job(report)
        return
    meeting = (folder / "rendezvous").absolute()
    meeting.unlink(missing_ok=True)
    spawn = get_context("spawn")
    num_started = spawn.Semaphore(0)
    join = partial(_join, job, started=num_started, world=num_processes, meeting=meeting)
    children = [spawn.Process(target=join, args=(silent,), kwargs={"rank": rank}) for rank in range(1, num_processes)]
    for process in children:
        process.start()
    try:
        for _ in children:
            # A process that dies before it joins would be waited for in vain.
            while not num_started.acquire(timeout=1.0):
                if any(process.exitcode for process in children):
                    raise RuntimeError("a process of the training has died at its start; it says why on stderr")
        # The first process is this one, so `report` need not be possible to pickle.
        join(report, rank=0)
    except BaseException:
        for process in children:
            process.terminate()
        raise
    finally:
        for process in children:
            process.join()


def _join(job: Job, report: Report, *, started: Semaphore, rank: int, world: int, meeting: Path) -> None:
    """Join the other processes at the file `meeting`, and run `job` as process `rank` of `world`."""
    started.release()
    gpus = torch.cuda.device_count() >= world
    if gpus:
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)
    backend = "nccl" if gpus else "gloo"
    dist.init_process_group(backend, f"file://{meeting}", timeout=PATIENCE, rank=rank, world_size=world)
    try:
        job(report)
        barrier()
    finally:
        dist.destroy_process_group()
