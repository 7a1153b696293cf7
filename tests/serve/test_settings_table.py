"""Tests that the table in serve/README.md has the fields, defaults and ranges of the dataclasses."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve.config import Config, ServeConfig

PAGE = (Path(__file__).parents[2] / "serve/README.md").read_text()
SECTION = PAGE.split("\n## Settings\n")[1].split("\n## ")[0]
ROWS = re.findall(r"^\| `(\S+)` \| (.+?) \| (.+?) \| (.+?) \|$", SECTION, re.MULTILINE)
JUST_BELOW = 1e-4


def settings(kind: type[Config], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the name and the default of every setting, those of nested configurations included."""
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if isinstance(field.default, Config):
            yield from settings(type(field.default), f"{field.name}.")
        else:
            yield prefix + field.name, default(field)


def default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return ", ".join(field.default_factory())
    if field.default is dataclasses.MISSING:
        return "required"
    return "none" if field.default in (None, ()) else str(field.default)


def config(name: str, value: object) -> ServeConfig:
    head, _, tail = name.partition(".")
    return ServeConfig.from_args({"bundle": "b", "catalogue": "c"} | {head: {tail: value} if tail else value})


def test_the_table_has_every_setting_with_its_default() -> None:
    assert sorted((name, shown) for name, shown, _, _ in ROWS) == sorted(settings(ServeConfig))


BOUNDS = [
    (name, kind, number)
    for name, _, allowed, _ in ROWS
    for kind, number in re.findall(r"\b(from|above|to) ([\d.]+)", allowed)
]


@pytest.mark.parametrize(("name", "kind", "number"), BOUNDS)
def test_a_range_ends_where_the_table_says(name: str, kind: str, number: str) -> None:
    bound = float(number)
    outside = {"from": bound - JUST_BELOW, "above": bound, "to": bound + JUST_BELOW}[kind]
    if kind != "above":
        config(name, bound)
    with pytest.raises(ValueError, match=name.rpartition(".")[2]):
        config(name, outside)


def test_every_number_has_its_range_in_the_table() -> None:
    numbers = {name for name, shown in settings(ServeConfig) if re.fullmatch(r"[\d.]+", shown)}
    assert {name for name, _, _ in BOUNDS} == numbers


@pytest.mark.parametrize("name", ["backend", "precision"])
def test_every_choice_is_in_the_table(name: str) -> None:
    (allowed,) = [allowed for row, _, allowed, _ in ROWS if row == name]
    for choice in allowed.split(", "):
        config(name, choice)
    with pytest.raises(ValueError, match=re.escape(", ".join(f"'{choice}'" for choice in allowed.split(", ")[1:-1]))):
        config(name, "another")
