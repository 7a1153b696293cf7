"""Commands around the graph: serve it, and put load on it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fashion_rag.cli.base import BackendOption, CompiledOption, load_progress, numbers, progress
from fashion_rag.config import DEMO_BUNDLE
from fashion_rag.request import CATEGORIES


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
        rates=numbers(float, "rate", rate),
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
