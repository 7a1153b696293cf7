"""Prints what pyproject.toml requires, a line each: of the project, or of the extra that is named."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
print(*(project["optional-dependencies"][sys.argv[1]] if len(sys.argv) > 1 else project["dependencies"]), sep="\n")
