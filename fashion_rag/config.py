"""The bundle's manifest: the sizes and defaults that the method needs beside the weights."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fashion_rag.errors import ArtifactError

FORMAT_VERSION = 1
# The small model that ships with the package.
DEMO_BUNDLE = Path(__file__).parent / "demo" / "bundle"


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` of a bundle says. Full-size values are the defaults.

    image_size: (height, width) that the UNet was trained at. num_pseudo_words: per garment. pose_sigma: width of a
    heat map in pixels of `image_size`. mask_rule_size: size at which the mask rule works, whose widths are in pixels.
    """

    name: str
    image_size: tuple[int, int] = (512, 384)
    num_pseudo_words: int = 16
    pose_sigma: float = 9.0
    mask_rule_size: tuple[int, int] = (512, 384)
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    licence: str = ""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ArtifactError(f"manifest: format_version is {self.format_version}; must be {FORMAT_VERSION}")
        height, width = self.image_size
        if height <= 0 or width <= 0 or height % 8 or width % 8:
            raise ArtifactError(f"manifest: image_size is {self.image_size}; both must be positive multiples of 8")
        if not 1 <= self.num_pseudo_words <= 77:
            raise ArtifactError(f"manifest: num_pseudo_words is {self.num_pseudo_words}; must be from 1 to 77")

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """The manifest in a JSON file. Raises ArtifactError for a missing file, unknown or missing keys."""
        try:
            raw: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path}: not a readable manifest: {error}") from error
        names = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(raw) - names):
            raise ArtifactError(f"{path}: unknown keys {unknown}; known are {sorted(names)}")
        if "name" not in raw:
            raise ArtifactError(f"{path}: the key 'name' is missing")
        for key in ("image_size", "mask_rule_size"):
            if key in raw:
                raw[key] = tuple(raw[key])
        return cls(**raw)

    def write(self, path: Path) -> None:
        """Write the manifest as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")
