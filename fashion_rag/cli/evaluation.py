"""The command that edits a data set and measures the pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fashion_rag.cli.base import (
    BundleOption,
    CacheIntervalOption,
    DeviceOption,
    GuidanceEndOption,
    GuidanceStartOption,
    GuidedOption,
    SolverOption,
    StudentOption,
    build_progress,
    guided_part,
    numbers,
)
from fashion_rag.cli.checks import (
    check_bundle,
    check_catalogue,
    check_category,
    check_device,
    check_file,
    check_folder,
    check_installed,
    check_out_folder,
)
from fashion_rag.errors import InvalidRequest
from fashion_rag.manifest import DEMO_BUNDLE, has_parser
from fashion_rag.request import CATEGORIES, PLAIN, Template
from fashion_rag.sampling import resolve_sampling

if TYPE_CHECKING:
    from fashion_rag.data.dresscode import Order
    from fashion_rag.evaluation.editors import Editor
    from fashion_rag.evaluation.edits import MaskSource


def evaluate(
    root: Annotated[Path, typer.Argument(help="Folder of the data set.")],
    out: Annotated[
        Path, typer.Option(help="Folder for edits, table and contact sheets; an earlier run in it goes on.")
    ],
    bundle: BundleOption = DEMO_BUNDLE,
    catalogue: Annotated[str | None, typer.Option(help="Where to look for garments.")] = None,
    retrieval: Annotated[
        Path | None, typer.Option(help="Folder of the data set's retrieval files, to look there instead.")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(help="URL, without /v1, of a server of the bundle, which edits with its own catalogue."),
    ] = None,
    api_keys: Annotated[Path | None, typer.Option(help="File whose first line is an API key of the server.")] = None,
    layout: Annotated[Literal["dresscode", "vitonhd"], typer.Option(help="Of the data set.")] = "dresscode",
    order: Annotated[
        Literal["paired", "unpaired", "both"], typer.Option(help="Whether a person gets the garment of the photo.")
    ] = "paired",
    categories: Annotated[str, typer.Option(help="dresses,upper_body: only these.")] = ",".join(CATEGORIES),
    num_retrieved: Annotated[str, typer.Option(help="Garments an edit, 0 to 3; 0,1,3: one after the other.")] = "1",
    num_chunks: Annotated[str, typer.Option(help="Noun chunks a caption, 1 to 3; 1,3: one after the other.")] = "3",
    mask_from: Annotated[
        Literal["given", "parser"],
        typer.Option(help="Masks and key points of the data set, or those found in the photos, as for shoppers."),
    ] = "given",
    mask_type: Annotated[
        Literal["bounding_box", "mask"], typer.Option(help="Repaint the garment's box, or its outline.")
    ] = "bounding_box",
    template: Annotated[Template, typer.Option(help="How text and garments make the prompt.")] = Template.GARMENTS,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.", show_default="the bundle's")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Classifier-free guidance.", show_default="the bundle's")
    ] = None,
    solver: SolverOption = PLAIN.solver,
    guidance_start: GuidanceStartOption = PLAIN.guidance_start,
    guidance_end: GuidanceEndOption = PLAIN.guidance_end,
    guided: GuidedOption = None,
    cache_interval: CacheIntervalOption = PLAIN.cache_interval,
    student: StudentOption = PLAIN.student,
    seed: Annotated[int, typer.Option(help="Same seed, same pictures.")] = 0,
    limit: Annotated[
        int | None, typer.Option(min=1, help="So many samples of each category.", show_default="all")
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="fid,kid,ssim,lpips,clip_score,clip_i,cmmd: only these.", show_default="all that can be had"),
    ] = None,
    clip: Annotated[
        Path | None, typer.Option(help="Folder of an OpenCLIP model to measure with.", show_default="the bundle's own")
    ] = None,
    inception_weights: Annotated[
        Path | None, typer.Option(help="torch-fidelity's weights-inception-2015-12-05-6726825d.pth, for fid and kid.")
    ] = None,
    lpips_weights: Annotated[
        Path | None, typer.Option(help="torchvision's alexnet-owt-7be5be79.pth, for lpips.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples that are edited, and measured, together.")] = 16,
    sheet_rows: Annotated[int, typer.Option(min=1, help="Samples that each contact sheet shows.")] = 12,
    device: DeviceOption = "cpu",
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], typer.Option(help="What the networks that edit compute in.")
    ] = "float32",
) -> None:
    """Edit the samples of a data set and measure the pictures: the paper's table, as Markdown and JSON."""
    from itertools import product

    check_installed("metrics", metrics, "torchmetrics", "evaluate")
    check_folder("root", root)
    check_folder("retrieval", retrieval)
    check_folder("clip", clip)
    for option, path in (
        ("inception-weights", inception_weights),
        ("lpips-weights", lpips_weights),
        ("api_keys", api_keys),
    ):
        check_file(option, path)
    check_out_folder("out", out)
    if server and catalogue:
        raise InvalidRequest("server", server, "must go without --catalogue: it has its own")
    if server and not server.startswith(("http://", "https://")):
        raise InvalidRequest("server", server, "must be a URL, as http://127.0.0.1:8000")
    for category in categories.split(","):
        check_category("categories", category)
    garment_counts = numbers(int, "num_retrieved", num_retrieved)
    chunk_counts = numbers(int, "num_chunks", num_chunks)
    sampling_options = {
        "steps": steps,
        "guidance_scale": guidance_scale,
        "solver": solver,
        "cache_interval": cache_interval,
        "student": student,
    } | guided_part(guided, guidance_start, guidance_end)
    if not server and catalogue is None and retrieval is None and any(garment_counts):
        rule = "must be 0 without --catalogue, --retrieval or --server"
        raise InvalidRequest("num_retrieved", num_retrieved, rule)
    manifest = check_bundle(bundle)
    if mask_from == "parser" and not server and not has_parser(bundle):
        raise InvalidRequest("mask-from", mask_from, "must be 'given', because the bundle has no human parser")
    sampling = resolve_sampling(sampling_options, manifest)
    check_catalogue(catalogue)

    from fashion_rag.bundle import Bundle
    from fashion_rag.demo.world.agreement import judge_of
    from fashion_rag.evaluation import run
    from fashion_rag.evaluation.edits import EvaluationSettings, open_data
    from fashion_rag.evaluation.metrics import available
    from fashion_rag.evaluation.networks import Networks

    check_device(device)
    asked = metrics.split(",") if metrics else None
    available(asked, has_inception=inception_weights is not None, has_lpips=lpips_weights is not None)
    orders: list[Order] = ["paired", "unpaired"] if order == "both" else [order]
    wanted = [
        EvaluationSettings(
            root=str(root.resolve()),
            model="",
            layout=layout,
            order=pairing,
            num_chunks=chunks,
            num_retrieved=count,
            retrieval=str(retrieval.resolve()) if retrieval else None,
            mask_from=mask_from,
            mask_type=mask_type,
            template=template,
            steps=sampling.num_inference_steps,
            guidance_scale=sampling.guidance_scale,
            shortcuts=sampling.shortcuts,
            seed=seed,
        )
        for pairing, count, chunks in product(orders, garment_counts, chunk_counts)
    ]
    for settings in wanted:
        open_data(settings, categories.split(","), manifest.image_size)
    opened = Bundle.open(bundle)
    if catalogue:
        opened.check_catalogue(catalogue)
    networks = Networks.load(clip or bundle / "retrieval", inception_weights, lpips_weights, device)
    with _editor(bundle, catalogue, server, api_keys, device, dtype, mask_from) as (editor, model, garments_from):
        plan = run.EvaluationPlan(
            settings=[dataclasses.replace(settings, model=model, catalogue=garments_from) for settings in wanted],
            categories=categories.split(","),
            limit=limit,
            metrics=asked,
            batch_size=batch_size,
            sheet_rows=sheet_rows,
        )
        with build_progress() as report:
            table = run.evaluate(out, plan, manifest, editor, networks, judge_of(root), report)
    typer.echo(table, nl=False)


@contextmanager
def _editor(
    bundle: Path,
    catalogue: str | None,
    server: str | None,
    api_keys: Path | None,
    device: str,
    dtype: str,
    mask_from: MaskSource,
) -> Iterator[tuple[Editor, str, str | None]]:
    """Provide the editor for `evaluate`, and the names of its model and its catalogue for the settings."""
    import httpx
    import torch

    from fashion_rag.bundle import Bundle
    from fashion_rag.evaluation.editors import PipelineEditor, ServerEditor
    from fashion_rag.pipeline import Pipeline
    from serve.http.auth import read_keys

    if server is None:
        pipeline = Pipeline.load(bundle, catalogue, device, getattr(torch, dtype))
        opened = Bundle.open(bundle)
        names = ["unet", "vae", "text_encoder", "vision_encoder", "inversion_adapter"]
        if mask_from == "parser":
            names += ["parser", "pose"] if opened.has_pose_estimator else ["parser"]
        parts = opened.fingerprint(*names)
        version = f"{catalogue} {pipeline.catalogue.version}" if pipeline.catalogue else None
        yield PipelineEditor(pipeline), f"{parts} {dtype}", version
        return
    headers = {"authorization": f"Bearer {read_keys(api_keys)[0]}"} if api_keys else {}
    with httpx.Client(base_url=server, headers=headers, timeout=300.0) as client:
        yield ServerEditor(client), server, None
