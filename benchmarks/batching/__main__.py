"""Run `python -m benchmarks.batching`; what it does is in run.py."""

import typer

from benchmarks.batching.run import main

if __name__ == "__main__":
    typer.run(main)
