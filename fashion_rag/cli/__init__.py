"""The `fashion-rag` command: it reads arguments, shows progress, and calls the modules that do the work.

Each command imports what it needs when it runs, so that `--help` is quick. An expected error is one line on stderr. The
exit status is 2 for wrong usage and for InvalidRequest, 1 for the other errors of this project and for those of the
operating system, such as a full disk, and 130 after Ctrl-C. Any other error is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
from typing import Any

import typer
from typer.core import TyperGroup

from fashion_rag.cli import bundles, catalogues, demo, edits, evaluation, preparation, serving, training
from fashion_rag.errors import FashionRAGError, InvalidRequest


class _Commands(TyperGroup):
    """The group of all commands, which turns expected errors into one line and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the arguments name."""
        try:
            return super().invoke(ctx)
        except FashionRAGError as error:
            raise _ended(str(error), 2 if isinstance(error, InvalidRequest) else 1) from None
        except typer.TyperException as error:
            usage: Any = error
            message = usage.format_message()
            if not message or "\n" in message:  # a group without a command shows its help instead
                raise
            path = (usage.ctx or ctx).command_path
            raise _ended(f"{message} See `{path} --help`.", 2) from None
        except KeyboardInterrupt:
            raise _ended("interrupted", 130) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # nobody reads the output any more; typer ends quietly
                raise
            where = f"{error.filename}: " if error.filename else ""
            raise _ended(f"{where}{error.strerror or error}", 1) from None


def _ended(message: str, status: int) -> typer.Exit:
    """Print on one line of stderr why the command ends, and return the exception that ends it."""
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    return typer.Exit(status)


app = typer.Typer(
    cls=_Commands, no_args_is_help=True, add_completion=False, help="Dress a person in a garment found by text."
)
app.add_typer(bundles.commands, name="bundle")
app.add_typer(catalogues.commands, name="index")
app.add_typer(demo.commands, name="demo")
app.add_typer(bundles.export, name="export")
for command in (
    catalogues.search,
    edits.edit,
    evaluation.evaluate,
    serving.serve,
    serving.bench,
    serving.trace,
    preparation.prepare,
    training.train,
    training.distill,
):
    app.command()(command)
