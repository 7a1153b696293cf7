"""The command that trains a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fashion_rag.cli.base import BundleOption, numbers, training_progress
from fashion_rag.cli.checks import check_bundle, check_folder, check_installed, check_least, check_out_folder
from fashion_rag.manifest import DEMO_BUNDLE


def train(
    data: Annotated[Path, typer.Argument(help="Folder in the Dress Code layout, with train_pairs.txt.")],
    work: Annotated[Path, typer.Option(help="Folder for cache, checkpoint and logs; an earlier run in it goes on.")],
    out: Annotated[Path, typer.Option(help="Folder to write the trained bundle to.")],
    bundle: BundleOption = DEMO_BUNDLE,
    retrieval: Annotated[
        Path | None, typer.Option(help="Folder of the data set's retrieval files; without, one garment a sample.")
    ] = None,
    steps: Annotated[int, typer.Option(help="How many steps in all.")] = 120_000,
    batch_size: Annotated[int, typer.Option(help="Samples a step, over all processes.")] = 16,
    parts: Annotated[int, typer.Option(help="Work through a batch in so many parts.", show_default="processes")] = 0,
    learning_rate: Annotated[float, typer.Option(help="After the warm-up and before the decay.")] = 1e-5,
    warmup_steps: Annotated[int, typer.Option(help="Until the learning rate is full.")] = 500,
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="What is computed in; weights are float32.", show_default="bfloat16 where there is any"),
    ] = None,
    garment_shares: Annotated[
        str | None,
        typer.Option(help="Shares of samples with 0,1,2,3 garments.", show_default="0,.4,.3,.3; without files 0,1,0,0"),
    ] = None,
    uncond_share: Annotated[float, typer.Option(help="How often text and pose are dropped, for guidance.")] = 0.1,
    caption_share: Annotated[float, typer.Option(help="How often the prompt has the caption beside garments.")] = 0.0,
    outside_weight: Annotated[float, typer.Option(help="Weight of errors outside the mask.")] = 1.0,
    max_snr: Annotated[float | None, typer.Option(help="Min-SNR weights of noise levels.", show_default="none")] = None,
    mask_type: Annotated[
        Literal["bounding_box", "mask"], typer.Option(help="Repaint the garment's box, or its outline.")
    ] = "bounding_box",
    processes: Annotated[
        int | None, typer.Option(help="Processes on this machine.", show_default="one a GPU, or a core")
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Ray Train workers, on this machine or on the cluster of $RAY_ADDRESS; 0: no Ray.")
    ] = 0,
    gpus: Annotated[bool, typer.Option("--gpus", help="Each Ray Train worker has a GPU.")] = False,
    sheet_every: Annotated[int, typer.Option(help="Steps between two sheets of samples; 0: none.")] = 500,
    save_every: Annotated[float, typer.Option(help="Seconds between two checkpoints.")] = 600.0,
    name: Annotated[
        str | None, typer.Option(help="What the bundle calls itself.", show_default="like its base")
    ] = None,
    dtype: Annotated[Literal["float32", "float16"], typer.Option(help="How trained weights are stored.")] = "float32",
    seed: Annotated[int, typer.Option(help="Draws samples and noise.")] = 0,
) -> None:
    """Train the inversion adapter and the UNet of a bundle on a data set; TensorBoard's files lie in WORK/logs."""
    check_installed("data", str(data), "tensorboard", "train")
    check_folder("data", data)
    check_folder("retrieval", retrieval)
    check_out_folder("work", work)
    check_out_folder("out", out)
    check_bundle(bundle)
    for option, value, least in (
        ("steps", steps, 1),
        ("batch-size", batch_size, 1),
        ("parts", parts, 0),
        ("processes", processes, 1),
        ("workers", workers, 0),
        ("sheet-every", sheet_every, 0),
    ):
        check_least(option, value, least)
    shares = numbers(float, "garment_shares", garment_shares or ("0,.4,.3,.3" if retrieval else "0,1,0,0"))

    import torch

    from fashion_rag.atomic_files import check_replaceable

    check_replaceable(out)

    from fashion_rag.training.data import Source
    from fashion_rag.training.fit import TrainingPlan, pick_precision
    from fashion_rag.training.memory import GB, available_bytes
    from fashion_rag.training.objective import SampleMix
    from fashion_rag.training.run import TrainingSettings
    from fashion_rag.training.run import train as train_here

    settings = TrainingSettings(
        base=bundle.resolve(),
        source=Source(data.resolve(), retrieval.resolve() if retrieval else None, mask_type=mask_type),
        work=work.resolve(),
        out=out.resolve(),
        plan=TrainingPlan(
            num_steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            num_parts=parts,
            warmup_steps=warmup_steps,
            precision=precision or pick_precision(),
            save_every_s=save_every,
        ),
        mix=SampleMix(
            tuple(shares),
            caption_share=caption_share,
            uncond_share=uncond_share,
            outside_weight=outside_weight,
            max_snr=max_snr,
        ),
        name=name,
        seed=seed,
        sheet_every=sheet_every,
        dtype=getattr(torch, dtype),
    )
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
    typer.echo(f"{out}: written")
