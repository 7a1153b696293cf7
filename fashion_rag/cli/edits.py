"""Commands that edit without a server: edit a photo, or edit a data set and measure the pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fashion_rag.cli.base import (
    BundleOption,
    CacheIntervalOption,
    CategoryOption,
    DeviceOption,
    GuidanceEndOption,
    GuidanceStartOption,
    GuidedOption,
    SolverOption,
    build_progress,
    guided_part,
    numbers,
    progress,
)
from fashion_rag.cli.checks import (
    PICTURE_SUFFIXES,
    check_bundle,
    check_catalogue,
    check_category,
    check_device,
    check_file,
    check_folder,
    check_installed,
    check_out_file,
    check_out_folder,
)
from fashion_rag.errors import InvalidRequest
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.request import CATEGORIES, MAX_GARMENTS, PLAIN, EditRequest, Template
from fashion_rag.sampling import resolve_sampling

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
    guidance_start: GuidanceStartOption = PLAIN.guidance_start,
    guidance_end: GuidanceEndOption = PLAIN.guidance_end,
    guided: GuidedOption = None,
    cache_interval: CacheIntervalOption = PLAIN.cache_interval,
    device: DeviceOption = "cpu",
    bundle: BundleOption = DEMO_BUNDLE,
) -> None:
    """Edit one photo here, without a server."""
    garments = garment or []
    check_category("category", category)
    for option, path in (("image", image), ("mask", mask), ("keypoints", keypoints)):
        check_file(option, path)
    for path in garments:
        check_file("garment", path)
    check_out_file("out", out, PICTURE_SUFFIXES)
    sampling_options = {
        "steps": steps,
        "guidance_scale": guidance_scale,
        "solver": solver,
        "cache_interval": cache_interval,
    } | guided_part(guided, guidance_start, guidance_end)
    manifest = check_bundle(bundle)
    sampling = resolve_sampling(sampling_options, manifest)
    if not garments and catalogue is None and num_garments and template is not Template.CAPTION:
        raise InvalidRequest("num_garments", num_garments, "must be 0 without --catalogue or --garment")
    if len(garments) > MAX_GARMENTS:
        raise InvalidRequest("garment", len(garments), f"must be given at most {MAX_GARMENTS} times")
    check_catalogue(catalogue)

    from PIL import Image

    from fashion_rag.catalogue.garments import Garment
    from fashion_rag.data.image import open_image, open_mask, open_photo
    from fashion_rag.data.pose import parse_keypoints
    from fashion_rag.pipeline import Pipeline

    check_device(device)
    photo = open_photo(image)
    request = EditRequest(
        image=photo.pixels,
        mask=open_mask(mask),
        prompt=prompt,
        category=category,
        keypoints=parse_keypoints(keypoints.read_text(), photo.pixels.shape[:2]) if keypoints else None,
        num_garments=num_garments,
        template=template,
        seed=seed,
        num_inference_steps=sampling.num_inference_steps,
        guidance_scale=sampling.guidance_scale,
        shortcuts=sampling.shortcuts,
        icc_profile=photo.icc_profile,
    )
    given = []
    for path in garments:
        given.append(Garment(path.stem, category, "", path, opened=open_image(path, field="garment")))
    pipeline = Pipeline.load(bundle, None if given else catalogue, device)
    with progress("editing", request.num_inference_steps) as advance:
        result = pipeline(request, given or None, advance)
    out.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"icc_profile": result.icc_profile} if result.icc_profile else {}
    Image.fromarray(result.image).save(out, **options)
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
    guidance_start: GuidanceStartOption = PLAIN.guidance_start,
    guidance_end: GuidanceEndOption = PLAIN.guidance_end,
    guided: GuidedOption = None,
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
    } | guided_part(guided, guidance_start, guidance_end)
    if not server and catalogue is None and retrieval is None and any(garment_counts):
        rule = "must be 0 without --catalogue, --retrieval or --server"
        raise InvalidRequest("num_retrieved", num_retrieved, rule)
    manifest = check_bundle(bundle)
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
    with _editor(bundle, catalogue, server, api_keys, device, dtype) as (editor, model, garments_from):
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
    bundle: Path, catalogue: str | None, server: str | None, api_keys: Path | None, device: str, dtype: str
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
        parts = Bundle.open(bundle).fingerprint("unet", "vae", "text_encoder", "vision_encoder", "inversion_adapter")
        version = f"{catalogue} {pipeline.catalogue.version}" if pipeline.catalogue else None
        yield PipelineEditor(pipeline), f"{parts} {dtype}", version
        return
    headers = {"authorization": f"Bearer {read_keys(api_keys)[0]}"} if api_keys else {}
    with httpx.Client(base_url=server, headers=headers, timeout=300.0) as client:
        yield ServerEditor(client), server, None
