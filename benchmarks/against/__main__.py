"""Run `python -m benchmarks.against`; what it does is in run.py."""

import typer

from benchmarks.against.run import main

if __name__ == "__main__":
    typer.run(main)
