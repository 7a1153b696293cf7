"""The commands for catalogues: build, publish, list and evaluate them, and search in one."""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from fashion_rag.cli.base import BundleOption, CatalogueOption, CategoryOption, build_progress
from fashion_rag.cli.checks import (
    check_bundle,
    check_catalogue,
    check_category,
    check_least,
    check_out_file,
    check_out_folder,
)
from fashion_rag.errors import InvalidRequest
from fashion_rag.manifest import DEMO_BUNDLE

if TYPE_CHECKING:
    from fashion_rag.catalogue.build import Built


commands = typer.Typer(no_args_is_help=True, help="Catalogues: garments that can be found by text.")


@commands.command("build")
def index_build(
    source: Annotated[
        Path, typer.Argument(help="Dress Code layout, CATEGORY/ID.jpg with captions.json, or a Parquet file.")
    ],
    out: Annotated[str, typer.Option(help="Folder or URL of the catalogue, new or to be brought up to date.")],
    bundle: BundleOption = DEMO_BUNDLE,
    mirror: Annotated[bool, typer.Option("--mirror", help="Drop garments that the source has not.")] = False,
    workers: Annotated[
        int, typer.Option(help="Ray Data workers, on this machine or on the cluster of $RAY_ADDRESS; 0: no Ray.")
    ] = 0,
    num_gpus: Annotated[float, typer.Option(help="GPUs of each worker.")] = 0.0,
    work: Annotated[Path | None, typer.Option(help="Folder for what is half done.", show_default="temporary")] = None,
) -> None:
    """Encode what is new in a folder of garments, and publish a version of the catalogue with it."""
    if not source.exists():
        raise InvalidRequest("source", str(source), "must be a folder or a Parquet file that exists")
    check_least("workers", workers, 0)
    check_least("num-gpus", num_gpus, 0)
    check_bundle(bundle)
    if "://" not in out:
        check_out_folder("out", Path(out))
    if work is not None:
        check_out_folder("work", work)

    from fashion_rag.bundle import Bundle
    from fashion_rag.catalogue.build import in_process
    from fashion_rag.catalogue.garments import garments_in
    from fashion_rag.catalogue.on_ray import on_ray

    opened = Bundle.open(bundle.resolve())
    garments = garments_in(source)
    with build_progress() as report:
        built = opened.build_catalogue(
            out,
            garments,
            "cuda" if num_gpus else "cpu",
            compute=partial(on_ray, num_workers=workers, num_gpus=num_gpus) if workers else in_process,
            mirror=mirror,
            work=work,
            progress=partial(report, "encoding garments"),
        )
    _show_built(out, built)


@commands.command("publish")
def index_publish(
    catalogue: CatalogueOption,
    bundle: BundleOption = DEMO_BUNDLE,
) -> None:
    """Publish a version of a catalogue that holds the garments added and deleted since the last."""
    check_bundle(bundle)
    check_catalogue(catalogue)

    from fashion_rag.bundle import Bundle

    opened = Bundle.open(bundle)
    # With another bundle every garment would be encoded anew. `index build` does that; here it would be an oversight.
    opened.check_catalogue(catalogue)
    with build_progress() as report:
        built = opened.build_catalogue(catalogue, (), progress=partial(report, "encoding garments"))
    _show_built(catalogue, built)


@commands.command("versions")
def index_versions(
    catalogue: CatalogueOption,
    activate: Annotated[str | None, typer.Option(help="Make this version live instead.")] = None,
    prune: Annotated[int | None, typer.Option(help="Remove all but so many of the newest, and the live one.")] = None,
) -> None:
    """List the versions of a catalogue; the live one has a star."""
    check_catalogue(catalogue)
    check_least("prune", prune, 0)

    from fashion_rag.catalogue import changes, versions
    from fashion_rag.catalogue.storage import Root

    root = Root.at(catalogue)
    if activate:
        versions.activate(root, activate, replacing=versions.current(root))
    if prune is not None:
        removed = versions.prune(root, keep=prune)
        typer.echo(f"removed {len(removed)} versions and {len(changes.clear(root))} changes that all versions hold")
    live = versions.current(root)
    for version in versions.versions(root):
        typer.echo(f"{'*' if version.name == live else ' '} {version.name}  {version.num_garments} garments")


@commands.command("evaluate")
def index_evaluate(
    catalogue: CatalogueOption,
    bundle: BundleOption = DEMO_BUNDLE,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the report here.")] = None,
) -> None:
    """Measure how often a garment's own caption finds it: recall by category, with one and three noun chunks."""
    check_bundle(bundle)
    check_catalogue(catalogue)
    check_out_file("json", json_file)

    from fashion_rag.bundle import Bundle
    from fashion_rag.catalogue.recall import RANKS, evaluate
    from fashion_rag.provenance import provenance, write_result

    opened = Bundle.open(bundle).open_catalogue(catalogue)
    with build_progress() as report:
        recalls = evaluate(opened, progress=partial(report, "searching"))
    table = Table("category", "chunks", "garments", *(f"@{rank}" for rank in RANKS), box=SIMPLE)
    for recall in recalls:
        shown = (f"{recall.at[rank]:.3f}" for rank in RANKS)
        table.add_row(recall.category, str(recall.num_chunks), str(recall.num_garments), *shown)
    Console().print(table)
    if json_file:
        write_result(json_file, {"from": provenance(), "recall": [dataclasses.asdict(recall) for recall in recalls]})


def _show_built(catalogue: str, built: Built) -> None:
    """Print which garments were skipped, and what the new version of the catalogue holds."""
    for garment_id, reason in (*built.skipped, *built.refused.items()):
        typer.echo(f"skipped {garment_id}: {reason}", err=True)
    counts = f"{built.num_encoded} encoded, {built.num_kept} kept, {built.num_removed} removed"
    typer.echo(f"{catalogue}: {built.version.num_garments} garments ({counts}), version {built.version.name}")


def search(
    text: Annotated[str, typer.Argument(help="What to look for, in a shopper's words.")],
    category: CategoryOption,
    catalogue: CatalogueOption,
    k: Annotated[int, typer.Option("--k", help="How many garments.")] = 3,
    attribute: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE that garments must have; of one name, either value will do.")
    ] = None,
    bundle: BundleOption = DEMO_BUNDLE,
) -> None:
    """List the garments of a catalogue that are nearest to a text, best first."""
    check_category("category", category)
    check_least("k", k, 1)
    if not text.strip():
        raise InvalidRequest("text", text, "must not be empty")
    check_bundle(bundle)
    check_catalogue(catalogue)

    from fashion_rag.bundle import Bundle
    from fashion_rag.catalogue.attributes import parse_filter

    wanted = parse_filter(attribute or [])
    opened = Bundle.open(bundle).open_catalogue(catalogue)
    matches = opened.search(text, category, k, wanted)
    for match in matches:
        garment = match.garment
        typer.echo(f"{match.score:.3f}  {garment.id}  {garment.caption}  {garment.location}")
    if not matches:
        counts = Counter(garment.category for garment in opened)
        if attribute and counts[category]:
            reason = f"no garment of {category} has {', '.join(attribute)}"
        else:
            known = ", ".join(f"{name} ({number})" for name, number in sorted(counts.items()))
            reason = f"no garment of {category}; there are garments of {known or 'no category'}"
        typer.echo(f"{catalogue}: {reason}", err=True)
