"""The commands for the paper-doll world and its model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from fashion_rag.cli.base import BundleOption, DeviceOption, progress, training_progress
from fashion_rag.cli.checks import (
    PICTURE_SUFFIXES,
    check_bundle,
    check_device,
    check_least,
    check_out_file,
    check_out_folder,
)
from fashion_rag.errors import InvalidRequest
from fashion_rag.manifest import DEMO_BUNDLE

if TYPE_CHECKING:
    from fashion_rag.demo.model.evaluate import DemoReport


commands = typer.Typer(no_args_is_help=True, help="The paper-doll world and its model.")


@commands.command("world")
def demo_world(
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    num_pairs: Annotated[int, typer.Option(help="Persons, and garments, of each category.")] = 16,
    seed: Annotated[int, typer.Option(help="Same seed, same files.")] = 0,
    phase: Annotated[Literal["train", "test"], typer.Option(help="Which lists of pairs are written.")] = "test",
) -> None:
    """Draw paper-doll persons and garments in the Dress Code layout."""
    check_least("num-pairs", num_pairs, 1)
    check_least("seed", seed, 0)
    check_out_folder("out", out)

    from fashion_rag.demo.world.layout import write_dresscode
    from fashion_rag.request import CATEGORIES

    with progress("drawing", num_pairs * len(CATEGORIES)) as advance:
        write_dresscode(out, num_pairs, seed, phase=phase, progress=advance)
    typer.echo(f"{out}: {num_pairs} pairs of each of {', '.join(CATEGORIES)}")


@commands.command("shop")
def demo_shop(
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    num_pairs: Annotated[int, typer.Option(help="Photos, and garments, of each category.")] = 8,
    seed: Annotated[int, typer.Option(help="Same seed, same files.")] = 0,
) -> None:
    """Draw what a shop has: photos of paper dolls in many shapes, in-shop pictures, and the pairs.csv of `prepare`."""
    check_least("num-pairs", num_pairs, 1)
    check_least("seed", seed, 0)
    check_out_folder("out", out)

    from fashion_rag.demo.world.shop import write_shop
    from fashion_rag.request import CATEGORIES

    with progress("drawing", num_pairs * len(CATEGORIES)) as advance:
        write_shop(out, num_pairs, seed, progress=advance)
    typer.echo(f"{out}: {num_pairs} pairs of each of {', '.join(CATEGORIES)}")


@commands.command("train")
def demo_train(
    work: Annotated[Path, typer.Option(help="Folder for cases and checkpoints; an earlier run in it goes on.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write the bundle to at the end.")] = None,
    stage: Annotated[list[str] | None, typer.Option(help="Only this stage; may be repeated.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of each stage.", show_default="the recipe's")] = None,
    seed: Annotated[int, typer.Option(help="Draws the cases and the first weights.")] = 0,
    add_to: Annotated[
        Path | None,
        typer.Option(help="Bundle that gets the parser and the pose estimator at the end; its other files stay."),
    ] = None,
) -> None:
    """Train the demo model from nothing; hours on a CPU."""
    check_least("steps", steps, 1)
    check_out_folder("work", work)
    if out is not None:
        check_out_folder("out", out)

    from fashion_rag.demo.model.packaging import add_photo_parts, package
    from fashion_rag.demo.model.train import STAGES, train

    if unknown := set(stage or ()) - set(STAGES):
        raise InvalidRequest("stage", sorted(unknown)[0], f"must be one of {', '.join(STAGES)}")
    stages = tuple(stage or STAGES)
    with training_progress() as report:
        train(work, stages, dict.fromkeys(stages, steps) if steps else None, seed=seed, report=report)
    if out:
        package(work, out)
        typer.echo(f"{out}: written")
    if add_to:
        add_photo_parts(work, add_to)
        typer.echo(f"{add_to}: parser and pose written")


@commands.command("evaluate")
def demo_evaluate(
    bundle: BundleOption = DEMO_BUNDLE,
    cases: Annotated[int, typer.Option(help="How many held-out persons and garments.")] = 200,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the report here.")] = None,
    device: DeviceOption = "cpu",
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], typer.Option(help="What the networks compute in.")
    ] = "float32",
) -> None:
    """Measure on held-out paper dolls whether the garment's colour and pattern arrive in the picture."""
    check_least("cases", cases, 1)
    check_bundle(bundle)
    check_out_file("json", json_file)

    import torch

    check_device(device)

    from fashion_rag.demo.model.evaluate import NUM_PAINTED, evaluate
    from fashion_rag.provenance import provenance, write_result

    with progress("painting", NUM_PAINTED * cases) as advance:
        report = evaluate(bundle, cases, device=device, dtype=getattr(torch, dtype), progress=advance)
    Console().print(report_table(report))
    if json_file:
        write_result(json_file, {"from": provenance()} | report.as_dict())


def report_table(report: DemoReport) -> Table:
    """Return the report of `demo evaluate` as a table for a terminal."""
    from fashion_rag.demo.model.evaluate import AgreementRow

    table = Table(
        box=SIMPLE,
        padding=(0, 1, 0, 0),
        title=f"{report.num_cases} held-out cases, {report.num_inference_steps} steps, "
        f"guidance {report.guidance_scale}",
        caption=f"full captions find kind, colour and pattern: first {report.retrieval_at_1:.3f}, among three "
        f"{report.retrieval_at_3:.3f}; VAE {report.vae_psnr_db:.1f} dB; a second and third garment change the "
        f"repainted part by {report.third_garment_change:.1f} of 255",
    )
    names = [field.name for field in dataclasses.fields(AgreementRow)]
    for name in names:
        if name == "name":
            table.add_column("", no_wrap=True)
        else:
            table.add_column(name.replace("_", " "), justify="right", min_width=5)
    for row in report.rows:
        table.add_row(row.name, *(f"{getattr(row, name):.3f}" for name in names[1:]))
    return table


@commands.command("run")
def demo_run(
    out: Annotated[Path, typer.Option(help="Picture to write.")] = Path("out/demo.png"),
    keep: Annotated[bool, typer.Option("--keep", help="Go on serving until Ctrl-C.")] = False,
) -> None:
    """Serve the demo bundle, send it some edits over HTTP and put the pictures side by side."""
    check_out_file("out", out, PICTURE_SUFFIXES)

    from serve.showcase import run

    run(out, keep)
