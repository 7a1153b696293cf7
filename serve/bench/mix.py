"""The edits of a load and their times, drawn ahead from a seed or read from a trace. Nothing is sent here.

mix = EditMix(prompts={"dresses": ["long red dress"]}, categories=("dresses",), steps=(10, 50))
planned = draw(mix, poisson(rate=2.0, duration_s=60.0, seed=0), seed=0)
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from fashion_rag.errors import InvalidRequest
from fashion_rag.request import CATEGORIES, MAX_GARMENTS, MAX_STEPS

NUM_PREVIEWS = 3
# An edit with a guidance scale above this has two rows in a UNet call, and any other has one.
NO_GUIDANCE = 1.0
# Arrivals and edits have separate random numbers, so that edits are the same at every rate.
ARRIVALS, EDITS = 0, 1
PROMPTS_RULE = "must hold JSON: [PROMPT, ...] or {CATEGORY: [PROMPT, ...]}; a prompt: text, or a list of noun chunks"

T = TypeVar("T")


@dataclass(frozen=True)
class EditMix:
    """The distribution that edits are drawn from.

    Each entry of a sequence is equally likely, so an entry that is in it twice comes twice as often. prompts: by
    category. unguided, repeat_person, stream: shares of all edits, from 0 to 1, that have no guidance, where the others
    have the server's; that are of a person who was there before; and that are streamed, with NUM_PREVIEWS previews.
    deadline_s: that of every edit; None for the server's. Raises InvalidRequest, naming the field.
    """

    prompts: Mapping[str, Sequence[str]]
    categories: Sequence[str] = CATEGORIES
    steps: Sequence[int] = (20,)
    num_garments: Sequence[int] = (1,)
    unguided: float = 0.0
    repeat_person: float = 0.0
    stream: float = 0.0
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        known = [category for category in CATEGORIES if self.prompts.get(category)]
        self._require_each("categories", lambda value: value in known, f"with prompts: {', '.join(known)}")
        self._require_each("steps", lambda value: 1 <= value <= MAX_STEPS, f"from 1 to {MAX_STEPS}")
        self._require_each("num_garments", lambda value: 0 <= value <= MAX_GARMENTS, f"from 0 to {MAX_GARMENTS}")
        for name in ("unguided", "repeat_person", "stream"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidRequest(name, getattr(self, name), "must be a share from 0 to 1")

    def _require_each(self, name: str, fits: Callable[[Any], bool], rule: str) -> None:
        values = getattr(self, name)
        if not values or not all(map(fits, values)):
            raise InvalidRequest(name, values, f"must be one or more {rule}")


@dataclass(frozen=True)
class Planned:
    """An edit that is to arrive `at_s` seconds after the start.

    person: the number of one of the category's photos. The other fields are those of the form; None is left out.
    """

    at_s: float
    category: str
    prompt: str
    person: int = 0
    steps: int = 20
    guidance_scale: float | None = None
    solver: str | None = None
    num_garments: int = 1
    stream: bool = False
    partial_images: int = 0
    seed: int = 0
    deadline_s: float | None = None

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    @property
    def num_rows(self) -> int:
        """Return the rows of all its UNet calls together, if the server's own guidance is on."""
        guided = self.guidance_scale is None or self.guidance_scale > NO_GUIDANCE
        return 2 * self.steps if guided else self.steps

    def form(self) -> dict[str, Any]:
        """Return the fields of the form, without those of the photo."""
        fields = dataclasses.asdict(self)
        return {name: fields[name] for name in fields if name not in ("at_s", "person") and fields[name] is not None}


@dataclass(frozen=True)
class Photo:
    """The fields of the form that belong to the photo: two PNG files, and key points as JSON."""

    image: bytes
    mask: bytes
    keypoints: str


# The photo of each person, by category and number.
Photos = Mapping[tuple[str, int], Photo]


def poisson(rate: float, duration_s: float, seed: int) -> list[float]:
    """Return the seconds at which edits arrive at random, `rate` a second on average, for `duration_s` seconds.

    The same seed gives the same arrivals, which are closer together at a higher rate. Raises InvalidRequest.
    """
    for name, value in (("rate", rate), ("duration", duration_s)):
        if not 0 < value < math.inf:
            raise InvalidRequest(name, value, "must be a number above 0")
    rng = np.random.default_rng([seed, ARRIVALS])
    arrivals, at_s = list[float](), rng.exponential() / rate
    while at_s < duration_s:
        arrivals.append(at_s)
        at_s += rng.exponential() / rate
    if not arrivals:
        raise InvalidRequest("duration", duration_s, f"must be long enough for an edit to arrive at a rate of {rate}")
    return arrivals


def draw(mix: EditMix, arrivals: Sequence[float], seed: int) -> list[Planned]:
    """Return an edit for each arrival, in their order. The same seed gives the same edits, whenever they arrive."""
    rng = np.random.default_rng([seed, EDITS])

    def pick(options: Sequence[T]) -> T:
        return options[int(rng.integers(len(options)))]

    planned: list[Planned] = []
    num_seen = dict.fromkeys(mix.categories, 0)
    for at_s in arrivals:
        category = pick(mix.categories)
        if rng.random() < mix.repeat_person and num_seen[category]:
            person = int(rng.integers(num_seen[category]))
        else:
            person = num_seen[category]
            num_seen[category] += 1
        stream = bool(rng.random() < mix.stream)
        planned.append(
            Planned(
                at_s=at_s,
                category=category,
                prompt=pick(mix.prompts[category]),
                person=person,
                steps=pick(mix.steps),
                guidance_scale=NO_GUIDANCE if rng.random() < mix.unguided else None,
                num_garments=pick(mix.num_garments),
                stream=stream,
                partial_images=NUM_PREVIEWS if stream else 0,
                seed=int(rng.integers(2**31)),
                deadline_s=mix.deadline_s,
            )
        )
    return planned


def write_trace(path: Path, planned: Sequence[Planned]) -> None:
    """Write edits as JSON lines, which `read_trace` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(dataclasses.asdict(edit)) + "\n" for edit in planned))


def read_trace(path: Path) -> list[Planned]:
    """Return the edits of a trace, by arrival.

    A trace is JSON lines with `at_s`, `category`, `prompt`, and other fields of Planned. Raises InvalidRequest, naming
    the line, for a line that is not an edit.
    """
    reader = TypeAdapter(Planned)
    planned: list[Planned] = []
    for number, line in enumerate(_text("trace", path).splitlines(), start=1):
        try:
            planned.append(reader.validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InvalidRequest(f"{path}, line {number}", line, f"{where or 'the line'}: {first['msg']}") from error
    if not planned or min(edit.at_s for edit in planned) < 0:
        raise InvalidRequest("trace", str(path), "must hold one edit or more, and at_s must be 0 or more")
    return sorted(planned, key=lambda edit: edit.at_s)


def read_prompts(path: Path) -> dict[str, list[str]]:
    """Return prompts by category from a JSON file with one list for all categories, or a list for each.

    A prompt may itself be a list of noun chunks, which are joined as the catalogue's captions are. Raises
    InvalidRequest.
    """
    try:
        content = json.loads(_text("prompts", path))
        lists = content if isinstance(content, dict) else dict.fromkeys(CATEGORIES, content)
        prompts = TypeAdapter(dict[str, list[str | list[str]]]).validate_python(lists)
    except ValueError as error:
        raise InvalidRequest("prompts", str(path), PROMPTS_RULE) from error
    joined: dict[str, list[str]] = {}
    for category, listed in prompts.items():
        joined[category] = [prompt if isinstance(prompt, str) else ", ".join(prompt) for prompt in listed]
    return joined


def _text(field: str, path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError) as error:
        raise InvalidRequest(field, str(path), f"must be a file that can be read: {error}") from error
