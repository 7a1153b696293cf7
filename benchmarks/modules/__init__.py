"""The networks of an edit, by what runs them: `python -m benchmarks.modules`."""
