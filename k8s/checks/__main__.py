"""Checks all that `kubectl apply -k` is meant for, and the command lines in all pages of documentation.

Prints a line a folder or page, its faults below it, and exits with their number.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from k8s.checks import capacity, commands, monitoring, references, schemas, security, serving
from k8s.checks.overlay import ROOT, Overlay

RUNBOOK = ROOT / "README.md"
REPOSITORY = ROOT.parent


def main() -> None:
    """Check everything, print what is found, and exit with the number of faults."""
    found = [(folder, list(faults_of(folder))) for folder in folders()]
    found += [(page, commands.check_page(page.read_text("utf-8"))) for page in commands.pages(REPOSITORY)]
    for path, faults in found:
        print(f"{path.relative_to(REPOSITORY)}: {'ok' if not faults else f'{len(faults)} faults'}")
        for fault in faults:
            print(f"  {fault}")
    sys.exit(min(sum(len(faults) for _, faults in found), 100))


def folders() -> list[Path]:
    """Return what is applied: the overlays, what lies below them, and the loader."""
    return [*sorted(path.parent for path in (ROOT / "overlays").rglob("kustomization.yaml")), ROOT / "jobs/loader"]


def faults_of(folder: Path) -> Iterator[str]:
    """Yield what all checks find in a folder."""
    try:
        overlay = Overlay.render(folder)
        # Jobs and the loader work for an overlay: the one that they lie in, or any.
        above = folder.parent if (folder.parent / "kustomization.yaml").exists() else ROOT / "overlays/gpu"
        parents = [] if overlay.ray_services else Overlay.render(above).documents
    except ValueError as error:
        yield str(error)
        return
    runbook = RUNBOOK.read_text("utf-8")
    yield from schemas.check(overlay)
    yield from serving.check(overlay)
    yield from capacity.check(overlay)
    yield from references.check(overlay, parents, runbook)
    yield from security.check(overlay)
    yield from commands.check(overlay)
    yield from monitoring.check(overlay.documents, dashboards(overlay), runbook)


def dashboards(overlay: Overlay) -> list[dict[str, Any]]:
    """Return the Grafana dashboards in an overlay's ConfigMaps."""
    maps = overlay.of_kind("ConfigMap")
    return [json.loads(text) for one in maps for name, text in one.get("data", {}).items() if name.endswith(".json")]


if __name__ == "__main__":
    main()
