"""Checks of the manifests that need no cluster: `make k8s-check`, or `python -m k8s.checks`.

Each module has a `check` that returns faults, one line each. What only a cluster can tell is in k8s/README.md.
"""
