"""Run `python -m benchmarks.plan`; what it does is in run.py."""

from benchmarks.plan.run import app

if __name__ == "__main__":
    app()
