"""The claims of this project, each a module or a package that measures one: `python -m benchmarks.NAME`."""
