"""Run `python -m benchmarks.modules`; what it does is in run.py."""

import typer

from benchmarks.modules.run import main

if __name__ == "__main__":
    typer.run(main)
