"""Our own graph on this machine, started like the baselines: `fashion-rag serve` with a choice of threads.

python -m benchmarks.against.baselines.ours --catalogue out/world/catalogue --port 8003 --backend torch
"""

import os
from typing import Annotated

import typer

from benchmarks.against.baselines.eager import HOST, BundleOption, CatalogueOption, PortOption
from fashion_rag.manifest import DEMO_BUNDLE
from serve import app


def main(
    catalogue: CatalogueOption,
    bundle: BundleOption = DEMO_BUNDLE,
    port: PortOption = 8003,
    backend: Annotated[str, typer.Option(help="torch, onnx, or another of `fashion-rag serve`.")] = "onnx",
    threads: Annotated[int | None, typer.Option(help="Threads of each network.", show_default="one a core")] = None,
) -> None:
    """Answer edits until Ctrl-C."""
    app.run(bundle, catalogue, HOST, port, backend=backend, num_threads=threads or os.cpu_count())


if __name__ == "__main__":
    typer.run(main)
