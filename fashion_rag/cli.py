"""The `fashion-rag` command: reads arguments, shows progress, calls the modules that do the work.

Each command imports what it needs when it runs, so that `--help` is quick. What this project refuses on purpose
(`FashionRAGError`) ends in one line on stderr and exit status 2.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from rich.box import SIMPLE
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
from rich.table import Table
from typer.core import TyperGroup

from fashion_rag.config import DEMO_BUNDLE
from fashion_rag.errors import FashionRAGError, InvalidRequest
from fashion_rag.request import CATEGORIES, PLAIN, EditRequest, Shortcuts, Solver, Template

if TYPE_CHECKING:
    from fashion_rag.catalogue.build import Built
    from fashion_rag.data.dresscode import Order
    from fashion_rag.demo.evaluate import Report
    from fashion_rag.evaluation.editors import Editor
    from serve.bench.load import Outcome


LINE_EVERY_S = 10.0


class _Bars(Progress):
    """Bars on a terminal; elsewhere, as in the log of a pod, a line now and then."""

    said_s = 0.0

    def update(self, task_id: TaskID, **fields: Any) -> None:
        super().update(task_id, **fields)
        self._say(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._say(task_id)

    def _say(self, task_id: TaskID) -> None:
        if not self.console.is_terminal and time.monotonic() - self.said_s >= LINE_EVERY_S:
            self.said_s = time.monotonic()
            task = self._tasks[task_id]
            self.console.print(f"{task.description}: {task.completed:.0f} of {task.total or 1:.0f}")


def _bars() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return _Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True))


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FashionRAGError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=_Commands, no_args_is_help=True, add_completion=False, help="Dress a person in a garment found by text."
)
bundle_commands = typer.Typer(no_args_is_help=True, help="Model bundles: the weights and settings of one model.")
index_commands = typer.Typer(no_args_is_help=True, help="Catalogues: garments that can be found by text.")
demo_commands = typer.Typer(no_args_is_help=True, help="The paper-doll world and its model.")
export_commands = typer.Typer(no_args_is_help=True, help="A bundle's networks without PyTorch, for serving.")
app.add_typer(bundle_commands, name="bundle")
app.add_typer(index_commands, name="index")
app.add_typer(demo_commands, name="demo")
app.add_typer(export_commands, name="export")

BundleOption = Annotated[
    Path, typer.Option("--bundle", help="Folder of a model bundle.", show_default="the packaged demo bundle")
]
CatalogueOption = Annotated[str, typer.Option("--catalogue", help="Folder or URL written by `index build`.")]
DeviceOption = Annotated[str, typer.Option(help="Where PyTorch runs: cpu, cuda, cuda:1, ...")]
CategoryOption = Annotated[str, typer.Option(help="dresses, upper_body or lower_body.")]
BackendOption = Annotated[
    Literal["auto", "torch", "compile", "onnx", "tensorrt"] | None,
    typer.Option(
        help="What runs the networks; auto: TensorRT or torch.compile on a GPU, else ONNX Runtime.", show_default="auto"
    ),
]
CompiledOption = Annotated[
    Path | None, typer.Option(help="Folder written by `export`.", show_default="exported at the first start")
]
SolverOption = Annotated[Solver, typer.Option(help="How latents are led from step to step.")]
GuidedOption = Annotated[str, typer.Option(help="In which part of the steps there is guidance, as 0,0.7.")]
CacheIntervalOption = Annotated[
    int, typer.Option(help="Run the whole UNet every so many steps, and its outermost layers in those between.")
]

Number = TypeVar("Number", int, float)


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """A bar on stderr for as long as the block runs; the callable moves it by one of `total`."""
    with _bars() as bar:
        task = bar.add_task(description, total=total)
        yield lambda: bar.advance(task)


@contextmanager
def build_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for each phase of a build; the callable takes phase, steps done and number of steps."""
    tasks: dict[str, TaskID] = {}
    with _bars() as bars:

        def report(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase)
            # A phase that is over makes room for the next.
            bars.update(tasks[phase], total=total, completed=done, visible=done < total)

        yield report


@contextmanager
def training_progress() -> Iterator[Callable[[str, int, int, float], None]]:
    """A bar on stderr for each stage of training; the callable takes stage, step, number of steps and loss."""
    tasks: dict[str, TaskID] = {}
    with _bars() as bar:

        def report(stage: str, step: int, num_steps: int, loss: float) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage)
            bar.update(tasks[stage], total=num_steps, completed=step, description=f"{stage}  loss {loss:.4f}")

        yield report


@contextmanager
def load_progress(total: int) -> Iterator[Callable[[Outcome], None]]:
    """A bar on stderr for a load of `total` edits; the callable takes the outcome of each."""
    counts = dict.fromkeys(("done", "refused", "failed"), 0)
    with _bars() as bar:
        task = bar.add_task("sending", total=total)

        def report(outcome: Outcome) -> None:
            counts[outcome.kind] += 1
            bar.update(task, advance=1, description=", ".join(f"{count} {kind}" for kind, count in counts.items()))

        yield report


@bundle_commands.command("import")
def bundle_import(
    unet: Annotated[Path, typer.Option(help="Released UNet, unet_120000.pth.")],
    adapter: Annotated[Path, typer.Option(help="Released inversion adapter, inversion_adapter_120000.pth.")],
    out: Annotated[Path, typer.Option(help="Folder to write the bundle to.")],
    base: Annotated[
        str, typer.Option(help="Stable Diffusion 2 inpainting: a folder, or an id on the Hugging Face hub.")
    ] = "sd2-community/stable-diffusion-2-inpainting",
    vision: Annotated[
        str, typer.Option(help="CLIP vision tower: a folder, or an id on the Hugging Face hub.")
    ] = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    retrieval: Annotated[
        str, typer.Option(help="OpenCLIP model for retrieval: a folder, or MODEL/TAG.")
    ] = "ViT-L-14/laion2b_s32b_b82k",
    name: Annotated[str, typer.Option(help="What the bundle calls itself.")] = "fashion-rag",
    dtype: Annotated[Literal["float32", "float16"], typer.Option(help="How weights are stored.")] = "float32",
) -> None:
    """Make a bundle of the weights released with the paper; about 15 GB of memory."""
    import torch

    from fashion_rag.bundle_import import import_bundle

    bundle = import_bundle(base, unet, adapter, vision, retrieval, out, name, dtype=getattr(torch, dtype))
    typer.echo(f"{out}: {bundle.manifest.licence}")


@bundle_commands.command("check")
def bundle_check(path: Annotated[Path, typer.Argument(help="Folder of a model bundle.")]) -> None:
    """Load every part of a bundle, strictly, and say so."""
    from fashion_rag.bundle import Bundle

    bundle = Bundle.open(path)
    height, width = bundle.manifest.image_size
    typer.echo(f"{bundle.manifest.name}: {height}x{width}, {bundle.manifest.num_pseudo_words} pseudo-words a garment")
    loaders = (
        bundle.load_unet,
        bundle.load_vae,
        bundle.load_prompt_encoder,
        bundle.load_garment_encoder,
        bundle.load_retrieval_encoder,
    )
    for load in loaders:
        load()
        typer.echo(f"  {load.__name__.removeprefix('load_')}: loaded")


@index_commands.command("build")
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
    from fashion_rag.bundle import Bundle
    from fashion_rag.catalogue.build import in_process
    from fashion_rag.catalogue.ingest import on_ray
    from fashion_rag.catalogue.store import garments_in

    garments = garments_in(source)
    with build_progress() as report:
        built = Bundle.open(bundle.resolve()).build_catalogue(
            out,
            garments,
            "cuda" if num_gpus else "cpu",
            compute=partial(on_ray, num_workers=workers, num_gpus=num_gpus) if workers else in_process,
            mirror=mirror,
            work=work,
            progress=partial(report, "encoding garments"),
        )
    _show_built(out, built)


@index_commands.command("publish")
def index_publish(
    catalogue: CatalogueOption,
    bundle: BundleOption = DEMO_BUNDLE,
) -> None:
    """Publish a version of a catalogue that holds the garments added and deleted since the last."""
    from fashion_rag.bundle import Bundle

    with build_progress() as report:
        built = Bundle.open(bundle).build_catalogue(catalogue, (), progress=partial(report, "encoding garments"))
    _show_built(catalogue, built)


@index_commands.command("versions")
def index_versions(
    catalogue: CatalogueOption,
    activate: Annotated[str | None, typer.Option(help="Make this version live instead.")] = None,
    prune: Annotated[int | None, typer.Option(help="Remove all but so many of the newest, and the live one.")] = None,
) -> None:
    """List the versions of a catalogue; the live one has a star."""
    from fashion_rag.catalogue import changes, versions
    from fashion_rag.catalogue.root import Root

    root = Root.at(catalogue)
    if activate:
        versions.activate(root, activate, replacing=versions.current(root))
    if prune is not None:
        removed = versions.prune(root, keep=prune)
        typer.echo(f"removed {len(removed)} versions and {len(changes.clear(root))} changes that all versions hold")
    live = versions.current(root)
    for version in versions.versions(root):
        typer.echo(f"{'*' if version.name == live else ' '} {version.name}  {version.num_garments} garments")


@index_commands.command("evaluate")
def index_evaluate(
    catalogue: CatalogueOption,
    bundle: BundleOption = DEMO_BUNDLE,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the report here.")] = None,
) -> None:
    """Measure how often a garment's own caption finds it: recall by category, with one and three noun chunks."""
    from fashion_rag.bundle import Bundle
    from fashion_rag.catalogue.recall import RANKS, evaluate
    from fashion_rag.provenance import provenance, write_result

    found = Bundle.open(bundle).open_catalogue(catalogue)
    with progress("searching") as advance:
        recalls = evaluate(found, progress=advance)
    table = Table("category", "chunks", "garments", *(f"@{rank}" for rank in RANKS), box=SIMPLE)
    for recall in recalls:
        shown = (f"{recall.at[rank]:.3f}" for rank in RANKS)
        table.add_row(recall.category, str(recall.num_chunks), str(recall.num_garments), *shown)
    Console().print(table)
    if json_file:
        write_result(json_file, {"from": provenance(), "recall": [dataclasses.asdict(recall) for recall in recalls]})


def _show_built(catalogue: str, built: Built) -> None:
    for garment_id, reason in (*built.skipped, *built.refused.items()):
        typer.echo(f"skipped {garment_id}: {reason}", err=True)
    counts = f"{built.num_encoded} encoded, {built.num_kept} kept, {built.num_removed} removed"
    typer.echo(f"{catalogue}: {built.version.num_garments} garments ({counts}), version {built.version.name}")


@app.command()
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
    from fashion_rag.bundle import Bundle
    from fashion_rag.catalogue.attributes import parse_filter

    found = Bundle.open(bundle).open_catalogue(catalogue)
    for match in found.search(text, category, k, parse_filter(attribute or [])):
        typer.echo(f"{match.score:.3f}  {match.garment.id}  {match.garment.caption}  {match.garment.picture}")


@app.command()
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
    from serve.schemas import parse_keypoints

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
        shortcuts=_shortcuts(solver, guided, cache_interval),
    )
    given = [Garment(path.stem, category, "", path) for path in garment] if garment else None
    with progress("editing"):
        result = pipeline(request, given)
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(result.image).save(out)
    typer.echo(f"{out}: garments {', '.join(result.garment_ids) or 'none'}, seed {result.seed}")


@app.command()
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
            shortcuts=_shortcuts(solver, guided, cache_interval),
            seed=seed,
        )
        orders: list[Order] = ["paired", "unpaired"] if order == "both" else [order]
        counts = (_numbers(int, "num_retrieved", num_retrieved), _numbers(int, "num_chunks", num_chunks))
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


@app.command()
def serve(
    catalogue: Annotated[
        str | None, typer.Option(help="Folder or URL written by `index build`.", show_default="drawn garments")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Folder of a model bundle.", show_default="the packaged demo bundle")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Serve config file, as for `serve deploy`; what is given here goes before what it says."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    api_keys: Annotated[Path | None, typer.Option(help="File with an API key a line; no other may enter.")] = None,
    catalogue_keys: Annotated[
        Path | None, typer.Option(help="File with a key a line, for those who may change the catalogue.")
    ] = None,
    backend: BackendOption = None,
    compiled: CompiledOption = None,
) -> None:
    """Answer edits over HTTP until Ctrl-C."""
    from serve.app import run

    paths = {"api_keys": api_keys, "catalogue_keys": catalogue_keys, "compiled": compiled}
    given = {name: str(path.resolve()) for name, path in paths.items() if path}
    if backend:
        given["backend"] = backend
    run(bundle, catalogue, host, port, config, **given)


@app.command()
def bench(
    out: Annotated[Path, typer.Option(help="JSON to write the result to; its table goes beside it, as .md.")],
    url: Annotated[str | None, typer.Option(help="Of a server, without /v1.", show_default="one is started")] = None,
    catalogue: Annotated[
        str | None, typer.Option(help="Of a server that is started.", show_default="drawn garments")
    ] = None,
    bundle: Annotated[
        Path,
        typer.Option(
            help="Of a server that is started, and whose size photos have.", show_default="the packaged demo bundle"
        ),
    ] = DEMO_BUNDLE,
    backend: BackendOption = None,
    compiled: CompiledOption = None,
    rate: Annotated[str, typer.Option(help="Edits a second on average; 1,2,4: one rate after the other.")] = "1",
    duration: Annotated[float, typer.Option(help="For how many seconds edits arrive, at each rate.")] = 60.0,
    steps: Annotated[str, typer.Option(help="10,20,50: each as likely.")] = "20",
    garments: Annotated[str, typer.Option(help="How many garments to look for; 0,1,3: each as likely.")] = "1",
    categories: Annotated[str, typer.Option(help="Each as likely.")] = ",".join(CATEGORIES),
    unguided: Annotated[float, typer.Option(help="Share of edits without guidance.")] = 0.0,
    repeat_person: Annotated[float, typer.Option(help="Share of edits of a person who was there before.")] = 0.0,
    stream: Annotated[float, typer.Option(help="Share of edits that are streamed, with previews.")] = 0.0,
    deadline_s: Annotated[float | None, typer.Option(help="Of every edit.", show_default="the server's")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="JSON: [PROMPT, ...] or {CATEGORY: [PROMPT, ...]}.", show_default="drawn ones")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same edits at the same times.")] = 0,
    trace: Annotated[Path | None, typer.Option(help="Send the edits of this file, whatever is said above.")] = None,
    save_trace: Annotated[Path | None, typer.Option(help="Write the edits to this file; needs a single rate.")] = None,
    warm_up: Annotated[int, typer.Option(help="Edits sent before the clock starts.")] = 4,
    objective_s: Annotated[float, typer.Option(help="What an edit may take to be good.")] = 5.0,
    timeout_s: Annotated[float, typer.Option(help="When the client gives an edit up.")] = 300.0,
    api_keys: Annotated[Path | None, typer.Option(help="File with an API key a line; edits use them in turn.")] = None,
    metrics_url: Annotated[
        list[str] | None, typer.Option(help="Metrics of a Ray node of the server; may be repeated.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG to draw the latencies to; needs matplotlib.")] = None,
) -> None:
    """Send edits at random times, whether the server keeps up or not, and measure what becomes of them."""
    from serve.bench import drawn, mix
    from serve.bench.run import Settings, run, write

    wanted = mix.Mix(
        prompts=mix.read_prompts(prompts) if prompts else drawn.drawn_prompts(),
        categories=categories.split(","),
        steps=_numbers(int, "steps", steps),
        num_garments=_numbers(int, "garments", garments),
        unguided=unguided,
        repeat_person=repeat_person,
        stream=stream,
        deadline_s=deadline_s,
    )
    settings = Settings(
        out,
        bundle,
        wanted,
        rates=_numbers(float, "rate", rate),
        duration_s=duration,
        seed=seed,
        num_warm_up=warm_up,
        objective_s=objective_s,
        timeout_s=timeout_s,
        url=url,
        catalogue=catalogue,
        backend=backend,
        compiled=compiled,
        trace=trace,
        save_trace=save_trace,
        api_keys=api_keys,
        metrics_urls=metrics_url or (),
        plot=plot,
    )
    runs = run(settings, partial(progress, "drawing photos"), load_progress)
    typer.echo(write(settings, runs), nl=False)
    for each in runs:
        if each.summary.late:
            typer.echo(f"{each.name}: this client was late, so the latencies are in part its own", err=True)


def _shortcuts(solver: Solver, guided: str, cache_interval: int) -> Shortcuts:
    part = _numbers(float, "guided", guided)
    if len(part) != 2:
        raise InvalidRequest("guided", guided, "must be two numbers, the beginning and the end")
    start, end = part
    return Shortcuts(solver, start, end, cache_interval)


def _numbers(kind: Callable[[str], Number], name: str, text: str) -> list[Number]:
    """The numbers in an option such as 10,20,50."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise InvalidRequest(name, text, "must be numbers with commas between them") from None


@app.command()
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
    from importlib.util import find_spec

    import torch

    if find_spec("tensorboard") is None:
        raise InvalidRequest("train", "tensorboard missing", "needs more packages: pip install 'fashion-rag[train]'")

    from fashion_rag.training.data import Source
    from fashion_rag.training.fit import Plan, pick_precision
    from fashion_rag.training.objective import Mix
    from fashion_rag.training.run import Settings
    from fashion_rag.training.run import train as train_here

    shares = _numbers(float, "garment_shares", garment_shares or ("0,.4,.3,.3" if retrieval else "0,1,0,0"))
    settings = Settings(
        base=bundle.resolve(),
        source=Source(data.resolve(), retrieval.resolve() if retrieval else None, mask_type=mask_type),
        work=work.resolve(),
        out=out.resolve(),
        plan=Plan(
            num_steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            num_parts=parts,
            warmup_steps=warmup_steps,
            precision=precision or pick_precision(),
            save_every_s=save_every,
        ),
        mix=Mix(
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
    if workers:
        from fashion_rag.training.on_ray import train_on_ray

        train_on_ray(settings, workers, gpus)
    else:
        with training_progress() as report:
            train_here(settings, processes, report)
    typer.echo(f"{out}: written")


@export_commands.command("onnx")
def export_onnx(
    bundle: Annotated[Path, typer.Argument(help="Folder of a model bundle.")],
    out: Annotated[Path, typer.Option(help="Folder to write the ONNX files to.")],
    dtype: Annotated[Literal["float32", "float16"], typer.Option(help="Of the weights.")] = "float32",
) -> None:
    """Write the networks of a bundle as ONNX files, each compared with PyTorch."""
    import torch

    from export import to_onnx
    from export.modules import module_specs
    from fashion_rag.bundle import Bundle

    opened = Bundle.open(bundle)
    with progress("exporting", len(module_specs(opened))) as advance:
        parities = to_onnx.export_onnx(opened, out, getattr(torch, dtype), progress=advance)
    for parity in parities:
        typer.echo(
            f"  {parity.module}: within {parity.max_rel_error:.1e} of the output's spread, at most {parity.tolerance}"
        )
    typer.echo(f"{out}: {len(parities)} networks, {dtype}")


@export_commands.command("tensorrt")
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
    from export import to_tensorrt
    from export.flavours import find_flavour
    from fashion_rag.bundle import Bundle

    found = find_flavour(flavour)
    targets = to_tensorrt.build_targets(found, tuple(architecture or ()))
    with build_progress() as report:
        engines = to_tensorrt.export_tensorrt(Bundle.open(bundle), folder, found, targets, report)
    for name, path in engines.items():
        typer.echo(f"  {name}: {path.stat().st_size / 1e6:.1f} MB")
    made_for = ", ".join(targets) or "all that it supports"
    typer.echo(f"{folder}: {len(engines)} engines, {found.name} {found.version}, for {made_for}")


@demo_commands.command("world")
def demo_world(
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    num_pairs: Annotated[int, typer.Option(help="Persons, and garments, of each category.")] = 16,
    seed: Annotated[int, typer.Option(help="Same seed, same files.")] = 0,
    phase: Annotated[Literal["train", "test"], typer.Option(help="Which lists of pairs are written.")] = "test",
) -> None:
    """Draw paper-doll persons and garments in the Dress Code layout."""
    from fashion_rag.demo.layout import write_dresscode
    from fashion_rag.request import CATEGORIES

    with progress("drawing", num_pairs * len(CATEGORIES)) as advance:
        write_dresscode(out, num_pairs, seed, phase=phase, progress=advance)
    typer.echo(f"{out}: {num_pairs} pairs of each of {', '.join(CATEGORIES)}")


@demo_commands.command("train")
def demo_train(
    work: Annotated[Path, typer.Option(help="Folder for cases and checkpoints; an earlier run in it goes on.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write the bundle to at the end.")] = None,
    stage: Annotated[list[str] | None, typer.Option(help="Only this stage; may be repeated.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of each stage.", show_default="the recipe's")] = None,
    seed: Annotated[int, typer.Option(help="Draws the cases and the first weights.")] = 0,
) -> None:
    """Train the demo model from nothing; hours on a CPU."""
    from fashion_rag.demo.train import STAGES, package, train

    stages = tuple(stage or STAGES)
    with training_progress() as report:
        train(work, stages, dict.fromkeys(stages, steps) if steps else None, seed=seed, report=report)
    if out:
        package(work, out)
        typer.echo(f"{out}: written")


@demo_commands.command("evaluate")
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
    import torch

    from fashion_rag.demo.evaluate import NUM_PAINTED, evaluate
    from fashion_rag.provenance import provenance, write_result

    with progress("painting", NUM_PAINTED * cases) as advance:
        report = evaluate(bundle, cases, device=device, dtype=getattr(torch, dtype), progress=advance)
    Console().print(report_table(report))
    if json_file:
        write_result(json_file, {"from": provenance()} | report.as_dict())


def report_table(report: Report) -> Table:
    """The report of `demo evaluate` for a terminal."""
    from fashion_rag.demo.evaluate import Row

    table = Table(
        box=SIMPLE,
        padding=(0, 1, 0, 0),
        title=f"{report.num_cases} held-out cases, {report.num_inference_steps} steps, "
        f"guidance {report.guidance_scale}",
        caption=f"full captions find kind, colour and pattern: first {report.retrieval_at_1:.3f}, among three "
        f"{report.retrieval_at_3:.3f}; VAE {report.vae_psnr_db:.1f} dB; a second and third garment change the "
        f"repainted part by {report.third_garment_change:.1f} of 255",
    )
    names = [field.name for field in dataclasses.fields(Row)]
    for name in names:
        if name == "name":
            table.add_column("", no_wrap=True)
        else:
            table.add_column(name.replace("_", " "), justify="right", min_width=5)
    for row in report.rows:
        table.add_row(row.name, *(f"{getattr(row, name):.3f}" for name in names[1:]))
    return table


@demo_commands.command("run")
def demo_run(
    out: Annotated[Path, typer.Option(help="Picture to write.")] = Path("out/demo.png"),
    keep: Annotated[bool, typer.Option("--keep", help="Go on serving until Ctrl-C.")] = False,
) -> None:
    """Serve the demo bundle, send it some edits over HTTP and put the pictures side by side."""
    from serve.showcase import run

    run(out, keep)
