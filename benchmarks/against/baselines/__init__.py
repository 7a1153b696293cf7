"""The servers that ours is compared with, and ours, run with `python -m benchmarks.against.baselines.NAME`."""
