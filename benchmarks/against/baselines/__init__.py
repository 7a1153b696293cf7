"""The servers that ours is compared with, and ours, each started as a script: `python -m benchmarks.against.baselines.NAME`."""
