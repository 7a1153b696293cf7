"""The commands that start the server, that measure it under load, and that show where the time of an edit goes."""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from fashion_rag.cli.base import (
    BackendOption,
    BundleOption,
    CompiledOption,
    UntrainedOption,
    load_progress,
    numbers,
    progress,
    start_progress,
)
from fashion_rag.cli.checks import (
    check_bundle,
    check_catalogue,
    check_file,
    check_folder,
    check_least,
    check_out_file,
)
from fashion_rag.errors import InvalidRequest
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.request import CATEGORIES

WIDTH_IN_FILES = 160


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
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    api_keys: Annotated[Path | None, typer.Option(help="File with an API key a line; no other may enter.")] = None,
    catalogue_keys: Annotated[
        Path | None, typer.Option(help="File with a key a line, for those who may change the catalogue.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Origin whose pages may use the server, as https://shop.example; * for all; may be repeated."
        ),
    ] = None,
    backend: BackendOption = None,
    compiled: CompiledOption = None,
    precision: Annotated[
        Literal["auto", "float32", "float16", "bfloat16"] | None,
        typer.Option(
            help="Of torch, compile and openvino; onnx and tensorrt compute as was exported.", show_default="auto"
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of each replica.", show_default="1")] = None,
    max_rows: Annotated[
        int | None, typer.Option(help="Rows of one call of the UNet; a guided edit takes two.", show_default="8")
    ] = None,
    deadline_s: Annotated[
        float | None, typer.Option(help="Seconds that an edit may take at most.", show_default="300")
    ] = None,
    untrained: UntrainedOption = False,
    traced: Annotated[
        bool,
        typer.Option(
            "--traced", help="Send the spans of each request to an OTLP collector, which OTEL_* variables name."
        ),
    ] = False,
) -> None:
    """Answer edits over HTTP until Ctrl-C."""
    for option, path in (("config", config), ("api-keys", api_keys), ("catalogue-keys", catalogue_keys)):
        check_file(option, path)
    check_folder("compiled", compiled)
    check_catalogue(catalogue)
    if bundle is not None:
        check_bundle(bundle)

    from serve.starter import Starter
    from serve.startup_listener import StartupListener

    paths = {"api_keys": api_keys, "catalogue_keys": catalogue_keys, "compiled": compiled}
    given: dict[str, Any] = {name: str(path.resolve()) for name, path in paths.items() if path}
    given |= {"allow_origins": allow_origin, "backend": backend, "precision": precision, "num_threads": threads}
    given |= {
        "untrained": untrained or None,
        "denoiser": None if max_rows is None else {"max_rows": max_rows},
        "ingress": None if deadline_s is None else {"deadline_s": deadline_s},
    }
    try:
        listener = StartupListener(host, port, allow_origin or ())
    except OSError as error:
        typer.echo(f"error: --host {host} --port {port}: cannot listen there: {error.strerror}", err=True)
        raise typer.Exit(1) from None
    # The starter's process imports while this one does.
    with listener, Starter() as starter:
        from serve.app import run

        settings = {name: value for name, value in given.items() if value is not None}
        run(
            bundle,
            catalogue,
            host,
            port,
            config,
            listener=listener,
            progress=start_progress,
            starter=starter,
            traced=traced,
            **settings,
        )


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
    for option, path in (("prompts", prompts), ("trace", trace), ("api_keys", api_keys)):
        check_file(option, path)
    for option, path in (("out", out), ("save-trace", save_trace), ("plot", plot)):
        check_out_file(option, path)
    check_bundle(bundle)
    if url is None:  # else both are refused, as nothing is started
        check_folder("compiled", compiled)
        check_catalogue(catalogue)
    if url and not url.startswith(("http://", "https://")):
        raise InvalidRequest("url", url, "must be a URL, as http://127.0.0.1:8000")
    check_least("warm-up", warm_up, 0)
    rates = numbers(float, "rate", rate)

    from serve.bench import drawn, mix
    from serve.bench.run import BenchSettings, run, write

    edit_mix = mix.EditMix(
        prompts=mix.read_prompts(prompts) if prompts else drawn.drawn_prompts(),
        categories=categories.split(","),
        steps=numbers(int, "steps", steps),
        num_garments=numbers(int, "garments", garments),
        unguided=unguided,
        repeat_person=repeat_person,
        stream=stream,
        deadline_s=deadline_s,
    )
    settings = BenchSettings(
        out=out,
        bundle=bundle,
        mix=edit_mix,
        rates=rates,
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
    for load in runs:
        if load.summary.late:
            typer.echo(f"{load.name}: this client was late, so the latencies are in part its own", err=True)


def trace(
    steps: Annotated[int, typer.Option(min=1, help="Of each edit.")] = 20,
    edits: Annotated[int, typer.Option(min=1, help="Edits, one after the other, whose budget is averaged.")] = 5,
    warm_up: Annotated[int, typer.Option(min=0, help="Edits made before them.")] = 3,
    photo_alone: Annotated[
        bool, typer.Option("--photo-alone", help="Send no mask, key points and category; the server finds them.")
    ] = False,
    catalogue: Annotated[str | None, typer.Option(help="What is searched.", show_default="drawn garments")] = None,
    bundle: BundleOption = DEMO_BUNDLE,
    backend: BackendOption = None,
    compiled: CompiledOption = None,
    seed: Annotated[int, typer.Option(help="Same seed, same edits.")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON to write the budget and all spans to.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG to draw the waterfall to; needs matplotlib.")] = None,
) -> None:
    """Make edits with a graph that is started, and show where the time of an edit goes."""
    for option, path in (("out", out), ("plot", plot)):
        check_out_file(option, path)
    check_bundle(bundle)
    check_folder("compiled", compiled)
    check_catalogue(catalogue)
    if plot and importlib.util.find_spec("matplotlib") is None:
        raise InvalidRequest("plot", str(plot), "needs matplotlib: pip install matplotlib")

    from serve.bench.traced import TraceSettings, run, show, write, write_plot

    settings = TraceSettings(
        bundle=bundle,
        steps=steps,
        num_edits=edits,
        num_warm_up=warm_up,
        photo_alone=photo_alone,
        seed=seed,
        catalogue=catalogue,
        backend=backend,
        compiled=compiled,
    )
    with progress("making edits", warm_up + edits) as advance:
        traced = run(settings, advance)
    if out:
        write(out, settings, traced)
    if plot:
        write_plot(plot, settings, traced)
    # In a file there is room for a line a span.
    show(Console(width=None if sys.stdout.isatty() else WIDTH_IN_FILES), settings, traced)
