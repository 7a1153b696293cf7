"""The checks of all folders that `kubectl apply -k` applies, and of the command lines in all pages of documentation.

The program prints a line for each folder and page with its faults below it, and exits with the number of faults.
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
    """Check everything, print the faults, and exit with their number, at most 100."""
    results = [(folder, list(faults_of(folder))) for folder in folders()]
    results += [(page, commands.check_page(page.read_text("utf-8"))) for page in commands.pages(REPOSITORY)]
    for path, faults in results:
        outcome = f"{len(faults)} faults" if faults else "ok"
        print(f"{path.relative_to(REPOSITORY)}: {outcome}")
        for fault in faults:
            print(f"  {fault}")
    sys.exit(min(sum(len(faults) for _, faults in results), 100))


def folders() -> list[Path]:
    """Return the folders that are applied: the overlays, the kustomizations inside them, and the loader."""
    overlays = sorted(path.parent for path in (ROOT / "overlays").rglob("kustomization.yaml"))
    return [*overlays, ROOT / "jobs/loader"]


def faults_of(folder: Path) -> Iterator[str]:
    """Yield the faults that all checks find in a folder."""
    try:
        overlay = Overlay.render(folder)
        parents = [] if overlay.ray_services else Overlay.render(_overlay_of(folder)).documents
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


def _overlay_of(folder: Path) -> Path:
    """Return the overlay that the jobs in a folder work for: the one that it lies in, or any for the loader."""
    if (folder.parent / "kustomization.yaml").exists():
        return folder.parent
    return ROOT / "overlays/gpu"


def dashboards(overlay: Overlay) -> list[dict[str, Any]]:
    """Return the Grafana dashboards in an overlay's ConfigMaps."""
    files: list[tuple[str, str]] = []
    for config_map in overlay.of_kind("ConfigMap"):
        files += config_map.get("data", {}).items()
    return [json.loads(text) for name, text in files if name.endswith(".json")]


if __name__ == "__main__":
    main()
