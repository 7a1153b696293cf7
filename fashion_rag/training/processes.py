"""Which of how many processes this one is, and a job run by several of this machine. Called all over training.

Whoever sets up `torch.distributed`, this module or Ray Train, the rest only asks here.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.synchronize import Semaphore
from pathlib import Path

import torch
import torch.distributed as dist

# A step's number, the number of steps and the loss, by the name of what is under way.
Report = Callable[[str, int, int, float], None]
Job = Callable[[Report], None]

# How long a process waits for the others: as long as the first writes a checkpoint or the last encodes its share.
PATIENCE = timedelta(hours=6)


def rank_and_world() -> tuple[int, int]:
    """Return the number of this process, from 0, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def barrier() -> None:
    """Return once every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def silent(stage: str, step: int, num_steps: int, loss: float) -> None:
    """Return what all processes but the first report: nothing."""


def run_processes(job: Job, num_processes: int, folder: Path, report: Report) -> None:
    """Run `job` in so many processes, this one being the first; they meet at a file in `folder`.

    On a CPU two processes of one thread each run far faster than one of two threads. `job` must be one that can be
    pickled. The others report nothing. Raises what the first raises, RuntimeError if another dies.
    """
    if num_processes == 1:
        job(report)
        return
    meeting = (folder / "rendezvous").absolute()
    meeting.unlink(missing_ok=True)
    spawn = get_context("spawn")
    here = spawn.Semaphore(0)
    ranks = range(1, num_processes)
    others = [spawn.Process(target=_join, args=(job, silent, here, rank, num_processes, meeting)) for rank in ranks]
    for process in others:
        process.start()
    try:
        for _ in others:
            # One that has not come so far would be waited for in vain.
            while not here.acquire(timeout=1.0):
                if any(process.exitcode for process in others):
                    raise RuntimeError("a process of the training has died at its start; it says why on stderr")
        # The first process is this one, so that `report` may be anything.
        _join(job, report, here, 0, num_processes, meeting)
    except BaseException:
        for process in others:
            process.terminate()
        raise
    finally:
        for process in others:
            process.join()


def _join(job: Job, report: Report, here: Semaphore, rank: int, world: int, meeting: Path) -> None:
    here.release()
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
