"""Our server beside what one would use instead: `python -m benchmarks.against`."""
