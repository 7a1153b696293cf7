"""Commands that edit without a graph: one photo, or a data set to measure the pictures."""

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
    CategoryOption,
    DeviceOption,
    GuidedOption,
    SolverOption,
    build_progress,
    numbers,
    progress,
    shortcuts_of,
)
from fashion_rag.config import DEMO_BUNDLE
from fashion_rag.errors import InvalidRequest
from fashion_rag.request import CATEGORIES, PLAIN, EditRequest, Template

if TYPE_CHECKING:
    from fashion_rag.data.dresscode import Order
    from fashion_rag.evaluation.editors import Editor


def edit(
    image: Annotated[Path, typer.Option(help="Photo of the person.")],
    mask: Annotated[Path, typer.Option(help="Picture of the photo's size; white is repainted.")],
    prompt: Annotated[str, typer.Option(help="What to wear, in a shopper's words.")],
    category: CategoryOption,
    out: Annotated[Path, typer.Option(help="Picture to write.")],
    catalogue: Annotated[str | None, typer.Option(help="Where to look for garments.")] = None,
    num_garments: Annotated[int, typer.Option(help="How many garments to look for, 0 to 3.")] = 1,
    garment: Annotated[list[Path] | None, typer.Option(help="A garment's picture instead; may be repeated.")] = None,
    keypoints: Annotated[Path | None, typer.Option(help="OpenPose points as JSON, see the README.")] = None,
    template: Annotated[Template, typer.Option(help="How text and garments make the prompt.")] = Template.GARMENTS,
    seed: Annotated[int, typer.Option(help="Same seed, same picture.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.", show_default="the bundle's")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Classifier-free guidance.", show_default="the bundle's")
    ] = None,
    solver: SolverOption = PLAIN.solver,
    guided: GuidedOption = "0,1",
    cache_interval: CacheIntervalOption = PLAIN.cache_interval,
    device: DeviceOption = "cpu",
    bundle: BundleOption = DEMO_BUNDLE,
) -> None:
    """Edit one photo here, without a server."""
    import numpy as np
    from PIL import Image

    from fashion_rag.catalogue.store import Garment
    from fashion_rag.data.image import open_image, open_mask
    from fashion_rag.pipeline import Pipeline
    from serve.keypoints import parse_keypoints

    pixels = np.asarray(open_image(image))
    pipeline = Pipeline.load(bundle, None if garment else catalogue, device)
    request = EditRequest(
        image=pixels,
        mask=open_mask(mask),
        prompt=prompt,
        category=category,
        keypoints=parse_keypoints(keypoints.read_text(), pixels.shape[:2]) if keypoints else None,
        num_garments=num_garments,
        template=template,
        seed=seed,
        num_inference_steps=pipeline.manifest.num_inference_steps if steps is None else steps,
        guidance_scale=pipeline.manifest.guidance_scale if guidance_scale is None else guidance_scale,
        shortcuts=shortcuts_of(solver, guided, cache_interval),
    )
    given = [Garment(path.stem, category, "", path) for path in garment] if garment else None
    with progress("editing"):
        result = pipeline(request, given)
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(result.image).save(out)
    typer.echo(f"{out}: garments {', '.join(result.garment_ids) or 'none'}, seed {result.seed}")


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
    mask_type: Annotated[
        Literal["bounding_box", "mask"], typer.Option(help="Repaint the garment's box, or its outline.")
    ] = "bounding_box",
    template: Annotated[Template, typer.Option(help="How text and garments make the prompt.")] = Template.GARMENTS,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.", show_default="the bundle's")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Classifier-free guidance.", show_default="the bundle's")
    ] = None,
    solver: SolverOption = PLAIN.solver,
    guided: GuidedOption = "0,1",
    cache_interval: CacheIntervalOption = PLAIN.cache_interval,
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
    from importlib.util import find_spec
    from itertools import product

    from fashion_rag.bundle import Bundle

    if find_spec("torchmetrics") is None:
        raise InvalidRequest("metrics", metrics, "need more packages: pip install 'fashion-rag[evaluate]'")

    from fashion_rag.demo.agreement import judge_of
    from fashion_rag.evaluation import run
    from fashion_rag.evaluation.edits import Settings
    from fashion_rag.evaluation.networks import Networks

    manifest = Bundle.open(bundle).manifest
    networks = Networks.load(clip or bundle / "retrieval", inception_weights, lpips_weights, device)
    with _editor(bundle, catalogue, server, api_keys, device, dtype) as (editor, model, garments_from):
        common = Settings(
            root=str(root.resolve()),
            model=model,
            catalogue=garments_from,
            layout=layout,
            retrieval=str(retrieval.resolve()) if retrieval else None,
            mask_type=mask_type,
            template=template,
            steps=manifest.num_inference_steps if steps is None else steps,
            guidance_scale=manifest.guidance_scale if guidance_scale is None else guidance_scale,
            shortcuts=shortcuts_of(solver, guided, cache_interval),
            seed=seed,
        )
        orders: list[Order] = ["paired", "unpaired"] if order == "both" else [order]
        counts = (numbers(int, "num_retrieved", num_retrieved), numbers(int, "num_chunks", num_chunks))
        plan = run.Plan(
            settings=[
                dataclasses.replace(common, order=each, num_retrieved=garments, num_chunks=chunks)
                for each, garments, chunks in product(orders, *counts)
            ],
            categories=categories.split(","),
            limit=limit,
            metrics=metrics.split(",") if metrics else None,
            batch_size=batch_size,
            sheet_rows=sheet_rows,
        )
        with build_progress() as report:
            table = run.evaluate(out, plan, manifest, editor, networks, judge_of(root), report)
    typer.echo(table, nl=False)


@contextmanager
def _editor(
    bundle: Path, catalogue: str | None, server: str | None, api_keys: Path | None, device: str, dtype: str
) -> Iterator[tuple[Editor, str, str | None]]:
    """What edits for `evaluate`, and what its settings say of the model and the catalogue."""
    import httpx
    import torch

    from fashion_rag.bundle import Bundle
    from fashion_rag.evaluation.editors import PipelineEditor, ServerEditor
    from fashion_rag.pipeline import Pipeline
    from serve.auth import read_keys

    if server is None:
        pipeline = Pipeline.load(bundle, catalogue, device, getattr(torch, dtype))
        parts = Bundle.open(bundle).fingerprint("unet", "vae", "text_encoder", "vision_encoder", "inversion_adapter")
        version = f"{catalogue} {pipeline.catalogue.version}" if pipeline.catalogue else None
        yield PipelineEditor(pipeline), f"{parts} {dtype}", version
        return
    if catalogue:
        raise InvalidRequest("server", server, "must go without --catalogue: it has its own")
    headers = {"authorization": f"Bearer {read_keys(api_keys)[0]}"} if api_keys else {}
    with httpx.Client(base_url=server, headers=headers, timeout=300.0) as client:
        yield ServerEditor(client), server, None
