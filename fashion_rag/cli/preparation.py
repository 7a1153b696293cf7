"""The command that makes a data set of a shop's own pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fashion_rag.cli.base import BundleOption, DeviceOption, build_progress
from fashion_rag.cli.checks import (
    check_between,
    check_bundle,
    check_device,
    check_file,
    check_folder,
    check_least,
    check_out_folder,
)
from fashion_rag.manifest import DEMO_BUNDLE

if TYPE_CHECKING:
    from fashion_rag.preparation.run import Prepared


def prepare(
    photos: Annotated[Path, typer.Argument(help="Folder of photos of persons.")],
    garments: Annotated[Path, typer.Argument(help="Folder of in-shop pictures of garments.")],
    pairs: Annotated[
        Path, typer.Argument(help="CSV with the columns photo, garment, caption and, if known, category and split.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the data set; an earlier run in it goes on.")],
    bundle: BundleOption = DEMO_BUNDLE,
    max_height: Annotated[int, typer.Option(help="Of the pictures that are written; none is enlarged.")] = 1024,
    test_share: Annotated[
        float, typer.Option(help="Share of the garments for tests, where the file does not say which.")
    ] = 0.0,
    device: DeviceOption = "cpu",
    workers: Annotated[
        int, typer.Option(help="Ray Data workers, on this machine or on the cluster of $RAY_ADDRESS; 0: no Ray.")
    ] = 0,
    num_gpus: Annotated[float, typer.Option(help="GPUs of each worker.")] = 0.0,
) -> None:
    """Make a data set in the Dress Code layout of photos and in-shop pictures, to train and evaluate with."""
    check_folder("photos", photos)
    check_folder("garments", garments)
    check_file("pairs", pairs)
    check_out_folder("out", out)
    check_between("max-height", max_height, 64, 2048)
    check_between("test-share", test_share, 0, 1)
    check_least("workers", workers, 0)
    check_least("num-gpus", num_gpus, 0)
    check_bundle(bundle)
    check_device(device)

    from fashion_rag.bundle import Bundle
    from fashion_rag.preparation.networks import networks_of
    from fashion_rag.preparation.pictures import OutputForm
    from fashion_rag.preparation.run import Compute, ShopFiles, check_root, in_process
    from fashion_rag.preparation.run import prepare as prepare_here

    check_root(out)
    opened = Bundle.open(bundle.resolve())
    compute: Compute = in_process
    if workers:
        from fashion_rag.preparation.on_ray import on_ray

        compute = partial(on_ray, num_workers=workers, num_gpus=num_gpus)
        device = "cuda" if num_gpus else "cpu"
    networks = networks_of(opened, device)
    with build_progress() as report:
        prepared = prepare_here(
            ShopFiles(photos.resolve(), garments.resolve(), pairs, test_share),
            networks,
            OutputForm(out.resolve(), opened.manifest.image_size, max_height),
            compute=compute,
            progress=report,
        )
    _show(out, prepared)


def _show(out: Path, prepared: Prepared) -> None:
    """Print which rows were skipped, and what the data set holds."""
    if prepared.unknown_columns:
        typer.echo(f"columns that were passed over: {', '.join(prepared.unknown_columns)}", err=True)
    for refusal in prepared.refusals:
        typer.echo(f"skipped row {refusal.row}: {refusal.reason}", err=True)
    by_category = [f"{count} {split} {category}" for (split, category), count in sorted(prepared.num_pairs.items())]
    counts = f"{prepared.num_made} pictures made, {prepared.num_kept} kept, {prepared.num_removed} removed"
    num_pairs = sum(prepared.num_pairs.values())
    typer.echo(f"{out}: {num_pairs} pairs ({', '.join(by_category)}); {counts}; {len(prepared.refusals)} rows skipped")
    if not prepared.num_made + prepared.num_removed:
        typer.echo(f"{out}: nothing has changed since the last run")
