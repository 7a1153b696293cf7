"""Progress on a terminal or in a log, and the options that several commands share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fashion_rag.errors import InvalidRequest
from fashion_rag.request import Solver

if TYPE_CHECKING:
    from serve.bench.load import EditOutcome


LINE_EVERY_S = 10.0


class _Bars(Progress):
    """Progress as bars on a terminal, and elsewhere, as in the log of a pod, as a line every LINE_EVERY_S seconds."""

    printed_s = -math.inf

    def update(self, task_id: TaskID, **fields: Any) -> None:
        super().update(task_id, **fields)
        self._print_line(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._print_line(task_id)

    def _print_line(self, task_id: TaskID) -> None:
        """Print a line on this task, unless this is a terminal or the last line is recent."""
        if not self.console.is_terminal and time.monotonic() - self.printed_s >= LINE_EVERY_S:
            self.printed_s = time.monotonic()
            task = self._tasks[task_id]
            line = f"{task.description}: {task.completed:.0f} of {task.total or 1:.0f}"
            self.console.print(line, soft_wrap=True, highlight=False)


def _bars() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return _Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True))


BundleOption = Annotated[
    Path, typer.Option("--bundle", help="Folder of a model bundle.", show_default="the packaged demo bundle")
]
CatalogueOption = Annotated[str, typer.Option("--catalogue", help="Folder or URL written by `index build`.")]
DeviceOption = Annotated[str, typer.Option(help="Where PyTorch runs: cpu, cuda, cuda:1, ...")]
CategoryOption = Annotated[str, typer.Option(help="dresses, upper_body or lower_body.")]
UntrainedOption = Annotated[
    bool, typer.Option("--untrained", help="Use a bundle that is marked as untrained, whose edits are noise.")
]
BackendOption = Annotated[
    Literal["auto", "torch", "compile", "onnx", "openvino", "tensorrt"] | None,
    typer.Option(
        help="What runs the networks; auto: TensorRT or torch.compile on a GPU, else what `export measure` chose.",
        show_default="auto",
    ),
]
CompiledOption = Annotated[
    Path | None, typer.Option(help="Folder written by `export`.", show_default="exported at the first start")
]
SolverOption = Annotated[Solver, typer.Option(help="How latents are led from step to step.")]
GuidanceStartOption = Annotated[float, typer.Option(help="From which part of the steps on there is guidance.")]
GuidanceEndOption = Annotated[float, typer.Option(help="Up to which part of the steps there is guidance.")]
GuidedOption = Annotated[
    str | None, typer.Option(hidden=True, help="An older way to give --guidance-start and --guidance-end: 0,0.7.")
]
CacheIntervalOption = Annotated[
    int, typer.Option(help="Run the whole UNet every so many steps, and its outermost layers in those between.")
]

StudentOption = Annotated[
    bool, typer.Option("--student", help="Have the bundle's student take the steps, which are few and not guided.")
]

Number = TypeVar("Number", int, float)


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar on stderr while the block runs. The callable moves it by one of `total`."""
    with _bars() as bar:
        task = bar.add_task(description, total=total)
        yield lambda: bar.advance(task)


@contextmanager
def build_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar on stderr for each phase of a build. The callable takes phase, steps done and number of steps."""
    tasks: dict[str, TaskID] = {}
    with _bars() as bars:

        def report(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase)
            # A finished phase is hidden, to make room for the next.
            bars.update(tasks[phase], total=total, completed=done, visible=done < total)

        yield report


@contextmanager
def start_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar on stderr while a server starts.

    The callable takes what is awaited, how many parts are ready, and how many there are.
    """
    with _bars() as bar:
        task = bar.add_task("starting", total=None)

        def report(awaited: str, num_ready: int, num_all: int) -> None:
            bar.update(task, description=f"waiting for {awaited}", completed=num_ready, total=num_all or None)

        yield report


@contextmanager
def training_progress() -> Iterator[Callable[[str, int, int, float], None]]:
    """Show a bar on stderr for each stage of training. The callable takes stage, step, number of steps and loss."""
    tasks: dict[str, TaskID] = {}
    with _bars() as bar:

        def report(stage: str, step: int, num_steps: int, loss: float) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage)
            bar.update(tasks[stage], total=num_steps, completed=step, description=f"{stage}  loss {loss:.4f}")

        yield report


@contextmanager
def load_progress(total: int) -> Iterator[Callable[[EditOutcome], None]]:
    """Show a bar on stderr for a load of `total` edits. The callable takes the outcome of each edit."""
    counts = dict.fromkeys(("done", "refused", "failed"), 0)
    with _bars() as bar:
        task = bar.add_task("sending", total=total)

        def report(outcome: EditOutcome) -> None:
            counts[outcome.kind] += 1
            bar.update(task, advance=1, description=", ".join(f"{count} {kind}" for kind, count in counts.items()))

        yield report


def guided_part(guided: str | None, guidance_start: float, guidance_end: float) -> dict[str, float]:
    """Return guidance_start and guidance_end by name; `guided`, if given, has both of them as START,END."""
    if guided is not None:
        bounds = numbers(float, "guided", guided)
        if len(bounds) != 2:
            raise InvalidRequest("guided", guided, "must be two numbers, the beginning and the end")
        guidance_start, guidance_end = bounds
    return {"guidance_start": guidance_start, "guidance_end": guidance_end}


def numbers(kind: Callable[[str], Number], name: str, text: str) -> list[Number]:
    """Return the numbers in the text of an option, such as 10,20,50. Raises InvalidRequest, which names the option."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise InvalidRequest(name, text, "must be numbers with commas between them") from None
