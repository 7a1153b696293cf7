"""The commands that train a bundle, and a student of its UNet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fashion_rag.cli.base import BundleOption, numbers, training_progress
from fashion_rag.cli.checks import (
    check_bundle,
    check_folder,
    check_installed,
    check_least,
    check_out_folder,
)
from fashion_rag.manifest import DEMO_BUNDLE, Manifest

if TYPE_CHECKING:
    from fashion_rag.request import MaskType
    from fashion_rag.training.data import Source
    from fashion_rag.training.fit import Precision, TrainingPlan
    from fashion_rag.training.run import TrainingSettings


DataArgument = Annotated[Path, typer.Argument(help="Folder in the Dress Code layout, with train_pairs.txt.")]
WorkOption = Annotated[Path, typer.Option(help="Folder for cache, checkpoint and logs; an earlier run in it goes on.")]
RetrievalOption = Annotated[
    Path | None, typer.Option(help="Folder of the data set's retrieval files; without, one garment a sample.")
]
StepsOption = Annotated[int, typer.Option(help="How many steps in all.")]
BatchSizeOption = Annotated[int, typer.Option(help="Samples a step, over all processes.")]
PartsOption = Annotated[int, typer.Option(help="Work through a batch in so many parts.", show_default="processes")]
LearningRateOption = Annotated[float, typer.Option(help="After the warm-up and before the decay.")]
WarmupStepsOption = Annotated[int, typer.Option(help="Until the learning rate is full.")]
PrecisionOption = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(help="What is computed in; weights are float32.", show_default="bfloat16 where there is any"),
]
GarmentSharesOption = Annotated[
    str | None,
    typer.Option(help="Shares of samples with 0,1,2,3 garments.", show_default="0,.4,.3,.3; without files 0,1,0,0"),
]
CaptionShareOption = Annotated[float, typer.Option(help="How often the prompt has the caption beside garments.")]
OutsideWeightOption = Annotated[float, typer.Option(help="Weight of errors outside the mask.")]
MaskTypeOption = Annotated[
    Literal["bounding_box", "mask"], typer.Option(help="Repaint the garment's box, or its outline.")
]
ProcessesOption = Annotated[
    int | None, typer.Option(help="Processes on this machine.", show_default="one a GPU, or a core")
]
WorkersOption = Annotated[
    int, typer.Option(help="Ray Train workers, on this machine or on the cluster of $RAY_ADDRESS; 0: no Ray.")
]
GpusOption = Annotated[bool, typer.Option("--gpus", help="Each Ray Train worker has a GPU.")]
SheetEveryOption = Annotated[int, typer.Option(help="Steps between two sheets of samples; 0: none.")]
SaveEveryOption = Annotated[float, typer.Option(help="Seconds between two checkpoints.")]
DtypeOption = Annotated[Literal["float32", "float16"], typer.Option(help="How trained weights are stored.")]
SeedOption = Annotated[int, typer.Option(help="Draws samples and noise.")]


def train(
    data: DataArgument,
    work: WorkOption,
    out: Annotated[Path, typer.Option(help="Folder to write the trained bundle to.")],
    bundle: BundleOption = DEMO_BUNDLE,
    retrieval: RetrievalOption = None,
    steps: StepsOption = 120_000,
    batch_size: BatchSizeOption = 16,
    parts: PartsOption = 0,
    learning_rate: LearningRateOption = 1e-5,
    warmup_steps: WarmupStepsOption = 500,
    precision: PrecisionOption = None,
    garment_shares: GarmentSharesOption = None,
    uncond_share: Annotated[float, typer.Option(help="How often text and pose are dropped, for guidance.")] = 0.1,
    caption_share: CaptionShareOption = 0.0,
    outside_weight: OutsideWeightOption = 1.0,
    max_snr: Annotated[float | None, typer.Option(help="Min-SNR weights of noise levels.", show_default="none")] = None,
    mask_type: MaskTypeOption = "bounding_box",
    processes: ProcessesOption = None,
    workers: WorkersOption = 0,
    gpus: GpusOption = False,
    sheet_every: SheetEveryOption = 500,
    save_every: SaveEveryOption = 600.0,
    name: Annotated[
        str | None, typer.Option(help="What the bundle calls itself.", show_default="like its base")
    ] = None,
    dtype: DtypeOption = "float32",
    seed: SeedOption = 0,
) -> None:
    """Train the inversion adapter and the UNet of a bundle on a data set; TensorBoard's files lie in WORK/logs."""
    _check(data, work, out, bundle, retrieval, steps, batch_size, parts, processes, workers, sheet_every)

    import torch

    from fashion_rag.training.objective import SampleMix
    from fashion_rag.training.run import TrainingSettings

    plan = _plan(steps, batch_size, parts, learning_rate, warmup_steps, precision, save_every)
    mix = SampleMix(
        _shares(garment_shares, retrieval),
        caption_share=caption_share,
        uncond_share=uncond_share,
        outside_weight=outside_weight,
        max_snr=max_snr,
    )
    settings = TrainingSettings(
        base=bundle.resolve(),
        source=_source(data, retrieval, mask_type),
        work=work.resolve(),
        out=out.resolve(),
        plan=plan,
        mix=mix,
        name=name,
        seed=seed,
        sheet_every=sheet_every,
        dtype=getattr(torch, dtype),
    )
    _run(settings, processes, workers, gpus)


def distill(
    data: DataArgument,
    work: WorkOption,
    out: Annotated[Path, typer.Option(help="Folder to write the bundle with its student to.")],
    bundle: BundleOption = DEMO_BUNDLE,
    student_steps: Annotated[int, typer.Option(help="Steps that an edit of the student takes.")] = 4,
    teacher_steps: Annotated[int, typer.Option(help="Guided steps of the bundle's UNet; a multiple of these.")] = 40,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Guidance that the student takes over.", show_default="the bundle's")
    ] = None,
    retrieval: RetrievalOption = None,
    steps: StepsOption = 10_000,
    batch_size: BatchSizeOption = 16,
    parts: PartsOption = 0,
    learning_rate: LearningRateOption = 1e-5,
    warmup_steps: WarmupStepsOption = 500,
    precision: PrecisionOption = None,
    garment_shares: GarmentSharesOption = None,
    caption_share: CaptionShareOption = 0.0,
    outside_weight: OutsideWeightOption = 1.0,
    mask_type: MaskTypeOption = "bounding_box",
    processes: ProcessesOption = None,
    workers: WorkersOption = 0,
    gpus: GpusOption = False,
    sheet_every: SheetEveryOption = 500,
    save_every: SaveEveryOption = 600.0,
    dtype: DtypeOption = "float32",
    seed: SeedOption = 0,
) -> None:
    """Train a student that paints in a few steps, each of one row, what a bundle's UNet paints in many guided steps."""
    manifest = _check(data, work, out, bundle, retrieval, steps, batch_size, parts, processes, workers, sheet_every)
    manifest.check_trained(bundle, untrained=False)

    import torch

    from fashion_rag.training.distillation import Phases
    from fashion_rag.training.objective import SampleMix
    from fashion_rag.training.run import TrainingSettings

    plan = _plan(steps, batch_size, parts, learning_rate, warmup_steps, precision, save_every)
    mix = SampleMix(_shares(garment_shares, retrieval), caption_share=caption_share, outside_weight=outside_weight)
    settings = TrainingSettings(
        base=bundle.resolve(),
        source=_source(data, retrieval, mask_type),
        work=work.resolve(),
        out=out.resolve(),
        plan=plan,
        mix=mix,
        seed=seed,
        sheet_every=sheet_every,
        dtype=getattr(torch, dtype),
        phases=Phases(student_steps, teacher_steps),
        guidance_scale=guidance_scale,
    )
    _run(settings, processes, workers, gpus)


def _check(
    data: Path,
    work: Path,
    out: Path,
    bundle: Path,
    retrieval: Path | None,
    steps: int,
    batch_size: int,
    parts: int,
    processes: int | None,
    workers: int,
    sheet_every: int,
) -> Manifest:
    """Return the bundle's manifest. Raises InvalidRequest, naming the option, for what both commands do not take."""
    check_installed("data", str(data), "tensorboard", "train")
    check_folder("data", data)
    check_folder("retrieval", retrieval)
    check_out_folder("work", work)
    check_out_folder("out", out)
    manifest = check_bundle(bundle)
    for option, value, least in (
        ("steps", steps, 1),
        ("batch-size", batch_size, 1),
        ("parts", parts, 0),
        ("processes", processes, 1),
        ("workers", workers, 0),
        ("sheet-every", sheet_every, 0),
    ):
        check_least(option, value, least)
    return manifest


def _plan(
    steps: int,
    batch_size: int,
    parts: int,
    learning_rate: float,
    warmup_steps: int,
    precision: Precision | None,
    save_every: float,
) -> TrainingPlan:
    from fashion_rag.training.fit import TrainingPlan, pick_precision

    return TrainingPlan(
        num_steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        num_parts=parts,
        warmup_steps=warmup_steps,
        precision=precision or pick_precision(),
        save_every_s=save_every,
    )


def _shares(garment_shares: str | None, retrieval: Path | None) -> tuple[float, ...]:
    default = "0,.4,.3,.3" if retrieval else "0,1,0,0"
    return tuple(numbers(float, "garment_shares", garment_shares or default))


def _source(data: Path, retrieval: Path | None, mask_type: MaskType) -> Source:
    from fashion_rag.training.data import Source

    return Source(data.resolve(), retrieval.resolve() if retrieval else None, mask_type=mask_type)


def _run(settings: TrainingSettings, processes: int | None, workers: int, gpus: bool) -> None:
    """Train here, or with so many Ray Train workers."""
    from fashion_rag.atomic_files import check_replaceable
    from fashion_rag.training.memory import GB, available_bytes
    from fashion_rag.training.run import train as train_here

    check_replaceable(settings.out)
    typer.echo(
        f"each process takes {settings.bytes_per_process() / GB:.1f} GB before activations; "
        f"{available_bytes() / GB:.1f} GB are available here",
        err=True,
    )
    if workers:
        from fashion_rag.training.on_ray import train_on_ray

        train_on_ray(settings, workers, gpus)
    else:
        with training_progress() as report:
            train_here(settings, processes, report)
    typer.echo(f"{settings.out}: written")
