"""Checks of the manifests that need no cluster; `make k8s-check` and `python -m k8s.checks` run them.

Each module has a function `check` that returns faults, one line each. k8s/README.md lists what only a cluster can show.
"""
