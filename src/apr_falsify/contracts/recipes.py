"""The commands behind a target of make or just, a session of nox, an environment of tox.

Sources: the GNU make manual, "Writing Rules"; the just manual; nox's documentation of its file; ``tox``.
A command that holds what only a run knows (an argument, a variable of the shell) is left out.
"""

from __future__ import annotations

import ast
import functools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from apr_falsify.contracts.tox import PREFIX, commands_of_environment


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a target runs.

    Attributes:
        commands: line of the file, and the command as a shell would read it.
        needs: targets of the same file that run before it.

    """

    commands: tuple[tuple[int, str], ...] = ()
    needs: tuple[str, ...] = ()


@functools.lru_cache(2048)
def recipe_of(tool: str, name: str, text: str, arguments: tuple[str, ...] = ()) -> Recipe:
    """Read what a target runs; nothing where the file does not say it.

    Args:
        tool: make, just, nox or tox.
        name: of the target.
        text: of the file that the tool reads.
        arguments: what is handed on behind ``--``.

    """
    if tool == "nox":
        return Recipe(commands=tuple(_of_session(name, text)))
    if tool == "tox":
        return Recipe(commands=tuple(commands_of_environment(name, text, arguments)))
    return _of_make(name, text) if tool == "make" else _of_just(name, text)


_VARIABLE = re.compile(r"^\s*(?:export\s+|override\s+)?([\w.]+)\s*(?::{1,3}|\?|\+)?=\s*(.*?)\s*$")
_RULE = re.compile(r"^(?P<targets>[^\s#:=][^#:=]*?)\s*::?(?!=)\s*(?P<needs>[^;#=]*)(?:;(?P<inline>.*))?$")
_USE = re.compile(r"\$(?:\((\w+)\)|\{(\w+)\})")
_BLANKS = re.compile(r"[ \t]+")
_LONGEST = 20_000


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines of a file, those that a backslash joins as one."""
    held, start = "", 0
    for at, line in enumerate(text.splitlines(), 1):
        start = start or at
        if line.endswith("\\"):
            held += line[:-1] + " "
            continue
        whole = held + line
        yield start, whole if whole[:1] in ("\t", " ") else _BLANKS.sub(" ", whole)
        held, start = "", 0
    if held:
        yield start, held


def _of_make(name: str, text: str) -> Recipe:
    variables = {"MAKE": "make"}
    commands: list[tuple[int, str]] = []
    needs: list[str] = []
    inside = False
    for at, line in _logical_lines(text):
        if line.startswith("\t"):
            command = _expanded(line.lstrip(PREFIX).rstrip(), variables)
            if inside and command and not command.startswith("#") and "$" not in command:
                commands.append((at, command))
        elif rule := _RULE.match(line):
            inside = name in _expanded(rule["targets"], variables).split()
            if inside:
                needs += _expanded(rule["needs"], variables).split()
                if rule["inline"]:
                    commands.append((at, _expanded(rule["inline"].lstrip(PREFIX), variables)))
        elif assigned := _VARIABLE.match(line):
            variables[assigned[1]] = assigned[2].partition(" #")[0]
    return Recipe(commands=tuple(commands), needs=tuple(one for one in needs if one != "|"))


def _expanded(text: str, variables: dict[str, str], depth: int = 0) -> str:
    """Put in variables of the file; others stay as they are."""
    if "$" not in text or depth > 8:
        return text
    put = _USE.sub(lambda match: variables.get(match[1] or match[2], match.group()), text)
    return text if put == text or len(put) > _LONGEST else _expanded(put, variables, depth + 1)


_RECIPE = re.compile(r"^@?(?P<name>[A-Za-z_][\w-]*)(?P<rest>(?:\s+[^:]*)?):(?!=)(?P<needs>.*)$")


def _of_just(name: str, text: str) -> Recipe:
    alias = re.search(rf"^alias\s+{re.escape(name)}\s*:=\s*([\w-]+)", text, re.MULTILINE)
    if alias:
        return Recipe(needs=(alias[1],))
    commands: list[tuple[int, str]] = []
    needs: list[str] = []
    inside = False
    for at, line in _logical_lines(text):
        if line[:1] in (" ", "\t"):
            command = line.lstrip(PREFIX).rstrip()
            if inside and command and not command.startswith("#") and "{{" not in command:
                commands.append((at, command))
        elif line.strip():
            found = _RECIPE.match(line)
            inside = bool(found) and found is not None and found["name"] == name
            if inside and found is not None:
                needs += re.findall(
                    r"(?<![\w\"'-])[A-Za-z_][\w-]*", re.sub(r"\([^)]*\)|\"[^\"]*\"", "", found["needs"])
                )
    return Recipe(commands=tuple(commands), needs=tuple(needs))


def _of_session(name: str, text: str) -> Iterator[tuple[int, str]]:
    """``session.run("pytest", "tests")`` of one session; with an argument that a run gives it is left out."""
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in module.body:
        if not isinstance(node, ast.FunctionDef) or name not in (node.name, *_session_names(node)):
            continue
        for call in ast.walk(node):
            if (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Attribute)
                and call.func.attr == "run"
            ):
                plain = [one for one in call.args if not isinstance(one, ast.Starred)]
                words = [one.value for one in plain if isinstance(one, ast.Constant)]
                if words and len(words) == len(plain):
                    yield call.lineno, shlex.join(str(word) for word in words)


def _session_names(node: ast.FunctionDef) -> Iterator[str]:
    for one in node.decorator_list:
        for keyword in one.keywords if isinstance(one, ast.Call) else ():
            if keyword.arg == "name" and isinstance(keyword.value, ast.Constant):
                yield str(keyword.value.value)
