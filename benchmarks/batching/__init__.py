"""Edits that share denoising steps, beside requests that are batched whole: `python -m benchmarks.batching`."""
