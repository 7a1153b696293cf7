"""The `fashion-rag` command: reads arguments, shows progress, calls the modules that do the work.

Each command imports what it needs when it runs, so that `--help` is quick. What this project refuses on purpose
(`FashionRAGError`) ends in one line on stderr and exit status 2.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from fashion_rag.cli import bundles, catalogues, demo, edits, serving, training
from fashion_rag.errors import FashionRAGError


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
app.add_typer(bundles.commands, name="bundle")
app.add_typer(catalogues.commands, name="index")
app.add_typer(demo.commands, name="demo")
app.add_typer(bundles.export, name="export")
for command in (catalogues.search, edits.edit, edits.evaluate, serving.serve, serving.bench, training.train):
    app.command()(command)
