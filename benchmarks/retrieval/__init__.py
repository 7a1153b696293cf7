"""The search of a catalogue, beside exact search and graphs: `python -m benchmarks.retrieval`."""
