"""The commands for model bundles: import and check them, and export their networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fashion_rag.cli.base import build_progress, numbers, progress
from fashion_rag.cli.checks import (
    MANIFEST_FILE,
    check_bundle,
    check_file,
    check_folder,
    check_least,
    check_out_folder,
)
from fashion_rag.errors import InvalidRequest

if TYPE_CHECKING:
    from fashion_rag.bundle import Bundle

PARSER_HELP = "Human parser, a SegFormer: a folder, or an id on the Hugging Face hub."
POSE_HELP = "Pose estimator, a ViTPose: a folder, or an id on the Hugging Face hub."

commands = typer.Typer(no_args_is_help=True, help="Model bundles: the weights and settings of one model.")
export = typer.Typer(no_args_is_help=True, help="A bundle's networks without PyTorch, for serving.")


@commands.command("import")
def bundle_import(
    out: Annotated[Path, typer.Option(help="Folder to write the bundle to.")],
    unet: Annotated[
        Path | None, typer.Option(help="Released UNet, unet_120000.pth.", show_default="the base's, to be trained")
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(
            help="Released inversion adapter, inversion_adapter_120000.pth.", show_default="a new one, to be trained"
        ),
    ] = None,
    base: Annotated[
        str, typer.Option(help="Stable Diffusion 2 inpainting: a folder, or an id on the Hugging Face hub.")
    ] = "sd2-community/stable-diffusion-2-inpainting",
    vision: Annotated[
        str, typer.Option(help="CLIP vision tower: a folder, or an id on the Hugging Face hub.")
    ] = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    retrieval: Annotated[
        str, typer.Option(help="OpenCLIP model for retrieval: a folder, or MODEL/TAG.")
    ] = "ViT-L-14/laion2b_s32b_b82k",
    parser: Annotated[str, typer.Option(help=PARSER_HELP)] = "mattmdjaga/segformer_b2_clothes",
    no_parser: Annotated[
        bool, typer.Option("--no-parser", help="Leave out the human parser, and with it the pose estimator.")
    ] = False,
    pose: Annotated[str, typer.Option(help=POSE_HELP)] = "usyd-community/vitpose-base-simple",
    no_pose: Annotated[bool, typer.Option("--no-pose", help="Leave out the pose estimator.")] = False,
    name: Annotated[str, typer.Option(help="What the bundle calls itself.")] = "fashion-rag",
    seed: Annotated[int, typer.Option(help="Draws the weights of a new adapter.")] = 0,
    dtype: Annotated[Literal["float32", "float16"], typer.Option(help="How weights are stored.")] = "float32",
) -> None:
    """Make a bundle of the weights released with the paper, or one to train; about 15 GB of memory."""
    check_file("unet", unet)
    check_file("adapter", adapter)
    check_out_folder("out", out)

    import torch

    from fashion_rag.bundle_import import import_bundle

    bundle = import_bundle(
        base=base,
        unet=unet,
        adapter=adapter,
        vision=vision,
        retrieval=retrieval,
        parser=None if no_parser else parser,
        pose=None if no_parser or no_pose else pose,
        out=out,
        name=name,
        seed=seed,
        dtype=getattr(torch, dtype),
    )
    _say_licence(out, bundle)


@commands.command("add")
def bundle_add(
    path: Annotated[Path, typer.Argument(help="Folder of a model bundle.")],
    parser: Annotated[str | None, typer.Option(help=PARSER_HELP)] = None,
    pose: Annotated[str | None, typer.Option(help=POSE_HELP)] = None,
) -> None:
    """Add a human parser or a pose estimator to a bundle, or replace it; all other parts stay as they are."""
    check_bundle(path)
    if parser is None and pose is None:
        raise InvalidRequest("parser", None, "must be given, or pose, or both")

    from fashion_rag.person_import import add_parts

    _say_licence(path, add_parts(path, parser, pose))


def _say_licence(path: Path, bundle: Bundle) -> None:
    """Print the lines of the licence of the bundle in the folder `path`."""
    for line in bundle.manifest.licence.splitlines():
        typer.echo(f"{path}: {line}")


@commands.command("check")
def bundle_check(path: Annotated[Path, typer.Argument(help="Folder of a model bundle.")]) -> None:
    """Load every part of a bundle, and name those that are loaded."""
    check_bundle(path)

    from fashion_rag.bundle import Bundle

    bundle = Bundle.open(path)
    height, width = bundle.manifest.image_size
    typer.echo(f"{bundle.manifest.name}: {height}x{width}, {bundle.manifest.num_pseudo_words} pseudo-words a garment")
    loaders: list[Callable[[], object]] = [
        bundle.load_unet,
        bundle.load_vae,
        bundle.load_prompt_encoder,
        bundle.load_garment_encoder,
        bundle.load_retrieval_encoder,
    ]
    if bundle.has_parser:
        loaders.append(bundle.load_parser)
    if bundle.has_pose_estimator:
        loaders.append(bundle.load_pose_estimator)
    for load in loaders:
        load()
        typer.echo(f"  {load.__name__.removeprefix('load_')}: loaded")


@export.command("onnx")
def export_onnx(
    bundle: Annotated[Path, typer.Argument(help="Folder of a model bundle.")],
    out: Annotated[Path, typer.Option(help="Folder to write the ONNX files to.")],
    dtype: Annotated[Literal["float32", "float16"], typer.Option(help="Of the weights.")] = "float32",
) -> None:
    """Write the networks of a bundle as ONNX files, each compared with PyTorch."""
    check_bundle(bundle)
    check_out_folder("out", out)

    import torch

    from fashion_rag.atomic_files import check_replaceable
    from fashion_rag.bundle import Bundle

    check_replaceable(out)
    opened = Bundle.open(bundle)

    from export import to_onnx
    from export.modules import module_specs

    with progress("exporting", len(module_specs(opened))) as advance:
        parities = to_onnx.export_onnx(opened, out, getattr(torch, dtype), progress=advance)
    for parity in parities:
        typer.echo(
            f"  {parity.module}: within {parity.max_rel_error:.1e} of the output's spread, at most {parity.tolerance}"
        )
    typer.echo(f"{out}: {len(parities)} networks, {dtype}")


@export.command("measure")
def export_measure(
    bundle: Annotated[Path, typer.Argument(help="Folder of a model bundle.")],
    folder: Annotated[
        Path | None,
        typer.Argument(help="Folder written by `export onnx` in float32.", show_default="the one in the user's cache"),
    ] = None,
    rows: Annotated[str, typer.Option(help="Rows of the calls; a guided edit takes two of the UNet.")] = "2,8",
    rounds: Annotated[int, typer.Option(help="Timed calls of each network, backend and number of rows.")] = 7,
    threads: Annotated[int, typer.Option(help="Threads of each network, as they will be served.")] = 1,
    with_compile: Annotated[
        bool, typer.Option("--with-compile", help="Measure torch.compile too, which compiles for many minutes.")
    ] = False,
) -> None:
    """Measure what runs a bundle's networks soonest on this CPU; `--backend auto` then takes it."""
    check_bundle(bundle)
    check_least("rounds", rounds, 1)
    check_least("threads", threads, 1)
    num_rows = numbers(int, "rows", rows)
    check_least("rows", min(num_rows), 1)
    if folder is not None:
        check_folder("folder", folder)
        check_file("folder", folder / MANIFEST_FILE)
        check_out_folder("folder", folder)

    import torch

    from export import cpu_choice
    from export.backend import cpu_parts
    from export.modules import module_specs
    from export.to_onnx import cached_onnx
    from fashion_rag.bundle import Bundle

    torch.set_num_threads(threads)
    opened = Bundle.open(bundle)
    where = folder or cached_onnx(opened)
    candidates = cpu_choice.CPU_CANDIDATES if with_compile else cpu_choice.CANDIDATES
    parts = {backend: cpu_parts(opened, backend, where, threads) for backend in candidates}
    with progress("measuring", len(module_specs(opened))) as advance:
        choice = cpu_choice.measure_backends(parts, num_rows, rounds, advance)
    cpu_choice.write_choice(where, choice)
    for backend, by_rows in choice.seconds_per_edit.items():
        seconds = ", ".join(f"{edit_s:.3f} s with {count} rows a call" for count, edit_s in by_rows.items())
        typer.echo(f"  {backend}: networks of an edit {seconds}")
    for backend, reason in choice.refused.items():
        typer.echo(f"  {backend}: refused, {reason}")
    typer.echo(f"{where}: {choice.chosen} is taken on this processor")


@export.command("tensorrt")
def export_tensorrt(
    bundle: Annotated[Path, typer.Argument(help="Folder of a model bundle.")],
    folder: Annotated[Path, typer.Argument(help="Folder written by `export onnx`, of the precision that is wanted.")],
    flavour: Annotated[
        Literal["tensorrt", "tensorrt_rtx"] | None,
        typer.Option(help="Which TensorRT builds.", show_default="tensorrt where it is installed"),
    ] = None,
    architecture: Annotated[
        list[str] | None,
        typer.Option(help="Compute capability, as 8.9; may be repeated.", show_default="what the flavour builds for"),
    ] = None,
) -> None:
    """Build TensorRT engines from exported ONNX files, into the same folder; many minutes for a real model."""
    check_bundle(bundle)
    check_folder("folder", folder)
    check_file("folder", folder / MANIFEST_FILE)
    check_out_folder("folder", folder)

    from export import to_tensorrt
    from export.flavours import find_flavour
    from fashion_rag.bundle import Bundle

    tensorrt = find_flavour(flavour)
    targets = to_tensorrt.build_targets(tensorrt, tuple(architecture or ()))
    with build_progress() as report:
        engines = to_tensorrt.export_tensorrt(Bundle.open(bundle), folder, tensorrt, targets=targets, progress=report)
    for name, path in engines.items():
        typer.echo(f"  {name}: {path.stat().st_size / 1e6:.1f} MB")
    made_for = ", ".join(targets) or "all that it supports"
    typer.echo(f"{folder}: {len(engines)} engines, {tensorrt.name} {tensorrt.version}, for {made_for}")
