"""Holds the tables of fields in serve/README.md to the forms that the server reads."""

import re
from enum import Enum
from pathlib import Path
from typing import Any

import annotated_types
import pytest
from pydantic import BaseModel

from serve.http.forms import EditForm, MaskForm

PAGE = (Path(__file__).parents[2] / "serve/README.md").read_text()
FORMS: dict[str, type[BaseModel]] = {"Fields of an edit": EditForm, "What is found in the photo": MaskForm}
FIELDS = [(heading, name) for heading, form in FORMS.items() for name in form.model_fields]


def table(heading: str) -> dict[str, tuple[str, str]]:
    """Return the default and the range of each field in the table under a heading."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|", section, re.MULTILINE)
    return {name: (default, values) for name, default, values in rows}


def shown(value: Any) -> str:
    """Return a default as the table shows it."""
    if value is None or value == []:
        return "none"
    return str(value.value if isinstance(value, Enum) else value).lower()


@pytest.mark.parametrize("heading", FORMS)
def test_the_table_has_every_field_with_its_default(heading: str) -> None:
    defaults = {
        name: "required" if field.is_required() else shown(field.default)
        for name, field in FORMS[heading].model_fields.items()
    }
    assert {name: default for name, (default, _) in table(heading).items()} == defaults


@pytest.mark.parametrize(("heading", "name"), FIELDS)
def test_every_bound_is_in_the_table(heading: str, name: str) -> None:
    bounds = []
    for rule in FORMS[heading].model_fields[name].metadata:
        if isinstance(rule, annotated_types.Ge):
            bounds.append(rule.ge)
        if isinstance(rule, annotated_types.Le):
            bounds.append(rule.le)
        if isinstance(rule, annotated_types.MaxLen):
            bounds.append(rule.max_length)
    numbers = re.findall(r"[\d.]+", table(heading)[name][1])
    assert [str(bound) for bound in bounds if str(bound) not in numbers] == []
