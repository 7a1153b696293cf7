"""Holds the table of an edit's fields in serve/README.md to the form that the server reads."""

import re
from enum import Enum
from pathlib import Path
from typing import Any

import annotated_types
import pytest

from serve.http.forms import EditForm

PAGE = (Path(__file__).parents[2] / "serve/README.md").read_text()
SECTION = PAGE.split("\n## Fields of an edit\n")[1].split("\n## ")[0]
ROWS = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|", SECTION, re.MULTILINE)
TABLE = {name: (default, values) for name, default, values in ROWS}


def shown(value: Any) -> str:
    """Return a default as the table shows it."""
    if value is None or value == []:
        return "none"
    return str(value.value if isinstance(value, Enum) else value).lower()


def test_the_table_has_every_field_with_its_default() -> None:
    defaults = {
        name: "required" if field.is_required() else shown(field.default)
        for name, field in EditForm.model_fields.items()
    }
    assert {name: default for name, (default, _) in TABLE.items()} == defaults


@pytest.mark.parametrize("name", EditForm.model_fields)
def test_every_bound_is_in_the_table(name: str) -> None:
    bounds = []
    for rule in EditForm.model_fields[name].metadata:
        if isinstance(rule, annotated_types.Ge):
            bounds.append(rule.ge)
        if isinstance(rule, annotated_types.Le):
            bounds.append(rule.le)
        if isinstance(rule, annotated_types.MaxLen):
            bounds.append(rule.max_length)
    numbers = re.findall(r"[\d.]+", TABLE[name][1])
    assert [str(bound) for bound in bounds if str(bound) not in numbers] == []
