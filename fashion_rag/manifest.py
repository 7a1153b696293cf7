"""The manifest of a bundle: the sizes and defaults that the method needs beside the weights."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fashion_rag.errors import ArtifactError

FORMAT_VERSION = 1
# The small model that ships with the package.
DEMO_BUNDLE = Path(__file__).parent / "demo" / "bundle"


def has_parser(bundle: Path) -> bool:
    """Return whether the bundle in this folder has a human parser, so that masks can be found."""
    return (bundle / "parser" / "config.json").is_file()


def has_student(bundle: Path) -> bool:
    """Return whether the bundle in this folder has a student, which paints in few steps."""
    return (bundle / "unet_turbo" / "config.json").is_file()


@dataclass(frozen=True)
class Student:
    """How a bundle's student paints: a UNet that was distilled from the bundle's own, and takes few steps of one row.

    teacher: the digest of the UNet that it learned from, as `Bundle.fingerprint` has it. guidance_scale: 1, because the
    teacher's guidance is part of what it learned.
    """

    teacher: str
    num_inference_steps: int = 4
    solver: str = "ddim"
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise ArtifactError(f"manifest: student takes {self.num_inference_steps} steps; must be at least 1")
        if (self.solver, self.guidance_scale) != ("ddim", 1):
            got = f"{self.solver} and guidance {self.guidance_scale}"
            raise ArtifactError(f"manifest: student has {got}; only ddim and guidance 1 are supported")


@dataclass(frozen=True)
class Manifest:
    """The content of a bundle's `manifest.json`. The defaults are the values of the full-size model.

    image_size: (height, width) that the UNet was trained at. num_pseudo_words: how many each garment has.
    pose_sigma: width of a heat map in pixels of `image_size`.
    mask_rule_size: (height, width) at which the mask rule is applied, because its widths are in pixels.
    untrained: whether UNet and inversion adapter have not been trained together yet, so that edits are noise.
    preview: the map from latents to colours that `models.autoencoder.fit_preview` makes; None = no previews.
    student: how the UNet in `unet_turbo` paints; None = there is none.
    """

    name: str
    image_size: tuple[int, int] = (512, 384)
    num_pseudo_words: int = 16
    pose_sigma: float = 9.0
    mask_rule_size: tuple[int, int] = (512, 384)
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    licence: str = ""
    untrained: bool = False
    preview: tuple[tuple[float, float, float], ...] | None = None
    student: Student | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ArtifactError(f"manifest: format_version is {self.format_version}; must be {FORMAT_VERSION}")
        height, width = self.image_size
        if height <= 0 or width <= 0 or height % 8 or width % 8:
            raise ArtifactError(f"manifest: image_size is {self.image_size}; both must be positive multiples of 8")
        if not 1 <= self.num_pseudo_words <= 77:
            raise ArtifactError(f"manifest: num_pseudo_words is {self.num_pseudo_words}; must be from 1 to 77")
        if self.preview is not None and not _is_preview(self.preview):
            raise ArtifactError(f"manifest: preview is {self.preview}; must be five rows of three finite numbers")

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Return the manifest in a JSON file. Raises ArtifactError for a missing file, unknown or missing keys."""
        try:
            raw: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path}: not a readable manifest: {error}") from error
        names = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(raw) - names):
            raise ArtifactError(f"{path}: unknown keys {unknown}; known are {sorted(names)}")
        if "name" not in raw:
            raise ArtifactError(f"{path}: the key 'name' is missing")
        student = raw.pop("student", None)
        if student is not None:
            student = _student(student, path)
        return cls(**{key: _as_tuples(value) for key, value in raw.items()}, student=student)

    def check_trained(self, bundle: Path, untrained: bool) -> None:
        """Raise ArtifactError if the bundle in this folder is untrained, unless `untrained` allows for that."""
        if self.untrained and not untrained:
            raise ArtifactError(
                f"{bundle}: is untrained, so its edits would be noise; train it with `fashion-rag train`, or use it as "
                f"it is with --untrained (in a Serve config file: untrained: true)"
            )

    def write(self, path: Path) -> None:
        """Write the manifest as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def _student(raw: Any, path: Path) -> Student:
    try:
        return Student(**raw)
    except TypeError as error:
        raise ArtifactError(f"{path}: student is {raw!r}; must have the keys of `Student`: {error}") from error


def _as_tuples(value: Any) -> Any:
    """Return `value` with its lists, which JSON knows, as tuples."""
    if not isinstance(value, list):
        return value
    return tuple(_as_tuples(entry) for entry in value)


def _is_preview(value: object) -> bool:
    """Return whether `value` is five tuples of three finite numbers."""
    if not isinstance(value, tuple) or not all(isinstance(row, tuple) for row in value):
        return False
    numbers = [number for row in value for number in row]
    finite = all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
    return finite and [len(row) for row in value] == [3] * 5
