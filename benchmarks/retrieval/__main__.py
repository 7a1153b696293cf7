"""Run `python -m benchmarks.retrieval`; what it does is in run.py."""

import typer

from benchmarks.retrieval.run import main

if __name__ == "__main__":
    typer.run(main)
