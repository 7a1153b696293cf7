"""How an edit is denoised: its steps, guidance scale and shortcuts, from what is asked for, a preset and the bundle.

The command line and the server have the same names for these options and resolve them here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple

from fashion_rag.errors import InvalidRequest
from fashion_rag.manifest import Manifest, Student
from fashion_rag.request import MAX_GUIDANCE_SCALE, MAX_STEPS, PLAIN, Shortcuts

SHORTCUT_OPTIONS = tuple(field.name for field in fields(Shortcuts))
SAMPLING_OPTIONS = ("steps", "guidance_scale", *SHORTCUT_OPTIONS)


class Sampling(NamedTuple):
    """Resolved options: the arguments of an EditRequest that say how it is denoised."""

    num_inference_steps: int
    guidance_scale: float
    shortcuts: Shortcuts


@dataclass(frozen=True)
class Preset:
    """Sampling options under a name. Steps or guidance scale None = the bundle's own.

    Raises ValueError for what is outside its range.
    """

    # A config file that names an unknown option is refused.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    steps: int | None = None
    guidance_scale: float | None = None
    shortcuts: Shortcuts = PLAIN

    def __post_init__(self) -> None:
        if self.steps is not None and not 1 <= self.steps <= MAX_STEPS:
            raise ValueError(f"steps: got {self.steps}; must be from 1 to {MAX_STEPS}")
        if self.guidance_scale is not None and not 0 <= self.guidance_scale <= MAX_GUIDANCE_SCALE:
            rule = f"must be a finite number from 0 to {MAX_GUIDANCE_SCALE}"
            raise ValueError(f"guidance_scale: got {self.guidance_scale}; {rule}")


NO_PRESET = Preset()


def resolve_sampling(options: Mapping[str, Any], manifest: Manifest, preset: Preset = NO_PRESET) -> Sampling:
    """Return how an edit is denoised: as the options say, else as the preset says, else as the bundle does.

    The student has steps and guidance of its own. options: values by the names in SAMPLING_OPTIONS; a value of None
    counts as not given. Raises InvalidRequest for shortcuts outside their ranges, for a student that the bundle lacks,
    and for guidance beside the student's own, and KeyError for an unknown name.
    """
    given = {name: value for name, value in options.items() if value is not None}
    changes = {name: given.pop(name) for name in SHORTCUT_OPTIONS if name in given}
    steps = given.pop("steps", preset.steps)
    guidance_scale = given.pop("guidance_scale", preset.guidance_scale)
    if given:
        raise KeyError(f"{', '.join(given)}: must be of {', '.join(SAMPLING_OPTIONS)}")
    shortcuts = replace(preset.shortcuts, **changes)
    default: Manifest | Student = manifest
    if shortcuts.student:
        if manifest.student is None:
            raise InvalidRequest("student", True, "needs a bundle that has a student", "unsupported_value")
        default = manifest.student
    return Sampling(
        num_inference_steps=default.num_inference_steps if steps is None else steps,
        guidance_scale=default.guidance_scale if guidance_scale is None else guidance_scale,
        shortcuts=shortcuts,
    )
