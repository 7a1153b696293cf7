"""The check that every `fashion-rag ...` command line in a manifest or a page of the documentation would run.

The program's own parser reads each command line. It finds unknown commands and options, missing options, missing or
superfluous arguments, and values of the wrong type. Nothing is run, and the files that are named need not exist.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import typer

from fashion_rag.cli import app
from k8s.checks.overlay import Overlay

PROGRAM = "fashion-rag"
# Folders whose pages are not part of the repository, like those of hidden folders.
FOREIGN = {"out", "shared"}
SHELL_FENCES = ("", "bash", "sh", "shell", "console")
FENCE = re.compile(r"^[ \t]*```(\w*)[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)
# A span of code may go on in the next line.
SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
# Words that may stand before a program's name: keywords of the shell, and programs that start another one.
BEFORE = {"!", "{", "do", "else", "exec", "if", "nohup", "then", "time", "until", "while"}
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
# Comments and redirections, which are not words of a command. Quoted text and escaped characters are matched first, so
# that nothing inside them is taken for one; they are kept.
NO_WORDS = re.compile(
    r"""('[^']*'|"(?:\\.|[^"\\])*"|\\.)"""
    r"""|(?<![^\s;&|()])\#[^\n]*"""
    r"""|(?:(?<!\S)\d)?(?:>>?|<{1,3}-?)(?:&[\d-]|[ \t]*[^\s;&|()<>]+)""",
    re.DOTALL,
)
SEPARATORS = ";&|()"
# In a page, these stand for arguments that are left out.
ELISION = {"...", "…"}


def check(overlay: Overlay) -> list[str]:
    """Return the faults of the command lines in an overlay's documents."""
    faults = []
    for document in overlay.documents:
        where = f"{document['kind']} {document['metadata']['name']}"
        faults += [f"{where}: {fault}" for fault in _in_document(document)]
    return faults


def pages(root: Path) -> list[Path]:
    """Return the pages of documentation below `root`."""
    paths = sorted(root.rglob("*.md"))
    return [path for path in paths if not any(map(_is_foreign, path.relative_to(root).parts))]


def check_page(text: str) -> list[str]:
    """Return the faults of the command lines in a Markdown page.

    Blocks of shell commands and code spans are looked at. A code span may also name a command alone, such as
    `fashion-rag serve`.
    """
    faults: list[str] = []
    for language, block in FENCE.findall(text):
        if language in SHELL_FENCES:
            faults += check_script(re.sub(r"^[ \t]*\$ ", "", block, flags=re.MULTILINE))
    for span in SPAN.findall(FENCE.sub("", text)):
        if span.startswith(f"{PROGRAM} "):
            faults += check_script(span.replace("\n", " "), mention=True)
    return faults


def check_script(script: str, mention: bool = False) -> list[str]:
    """Return the faults of the command lines in a shell script.

    mention: the script may also name a command without its arguments.
    """
    try:
        lines = list(command_lines(script))
    except ValueError as error:
        return [f"not a shell script: {error}: {script.strip()}"] if PROGRAM in script else []
    faults = []
    for arguments in lines:
        if fault := fault_of(arguments, mention):
            faults.append(f"{shlex.join([PROGRAM, *arguments])}: {fault}")
    return faults


def command_lines(script: str) -> Iterator[list[str]]:
    """Yield the arguments of each call of the program in a shell script, without replacing variables.

    Raises ValueError for a script with a quotation that does not end.
    """
    for words in _simple_commands(script):
        while words and (words[0] in BEFORE or ASSIGNMENT.match(words[0])):
            words = words[1:]
        starts = [0, *(place + 1 for place, word in enumerate(words) if word == "--")]
        for start in starts:
            if start < len(words) and PurePosixPath(words[start]).name == PROGRAM:
                yield words[start + 1 :]
                break
        # A shell may be called with a script, as in sh -ec SCRIPT.
        for option, script_inside in pairwise(words):
            if re.fullmatch(r"-[a-z]*c", option) and PROGRAM in script_inside:
                yield from command_lines(script_inside)


def fault_of(arguments: Sequence[str], mention: bool = False) -> str | None:
    """Return the error that the program would print for these arguments, None if it would run them.

    mention: it is no fault if a command's name stands without arguments.
    """
    command: Any = typer.main.get_command(app)
    words = list(arguments)
    while hasattr(command, "commands"):
        if not words:
            return None if mention else "is not a whole command"
        name = words.pop(0)
        if name in ELISION or name == "--help":
            return None
        if name not in command.commands:
            return f"there is no command {name}; there are {', '.join(sorted(command.commands))}"
        command = command.commands[name]
    if (mention and not words) or "--help" in words:
        return None
    has_elision = bool(ELISION & set(words))
    for parameter in command.params:
        parameter.required = parameter.required and not has_elision
        parameter.process_value = _unless_variable(parameter.process_value)
    try:
        command.make_context(command.name, [word for word in words if word not in ELISION])
    except typer.TyperException as error:
        return str(error.format_message())
    return None


def _unless_variable(process: Any) -> Any:
    """Return the parser `process` of an option's value, changed so that it accepts a shell variable as any value."""
    return lambda context, value: value if "$" in str(value) else process(context, value)


def _is_foreign(part: str) -> bool:
    return part.startswith(".") or part in FOREIGN


def _in_document(part: Any) -> Iterator[str]:
    """Yield the faults of the command lines in a part of a document: commands with their args, and shell scripts."""
    if isinstance(part, list):
        for item in part:
            yield from _in_document(item)
    if not isinstance(part, dict):
        return
    words = [*(part.get("command") or ()), *(part.get("args") or ())] if _has_words(part) else []
    if words:
        yield from check_script(shlex.join(words))
    for key, item in part.items():
        if not (words and key in ("command", "args")):
            yield from _in_document(item)


def _has_words(part: dict[str, Any]) -> bool:
    """Return whether a part of a document has a command or args, and these are lists of strings."""
    values = [part[key] for key in ("command", "args") if part.get(key)]
    return bool(values) and all(map(_is_list_of_strings, values))


def _is_list_of_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _simple_commands(script: str) -> Iterator[list[str]]:
    """Yield the words of each simple command in a script. Line ends, pipes, semicolons, ands and ors separate them."""
    script = NO_WORDS.sub(lambda match: match[1] or "", script.replace("\\\n", " "))
    lexer = shlex.shlex(script, posix=True, punctuation_chars=f"{SEPARATORS}\n")
    lexer.commenters = ""
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    words: list[str] = []
    for token in lexer:
        if token and set(token) <= set(f"{SEPARATORS}\n"):
            yield words
            words = []
        else:
            words.append(token)
    yield words
