"""How many GPUs a load needs, simulated: `python -m benchmarks.plan`."""
