"""Resolving what a build tool is asked to run: its target is there, and so is what the target runs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace

from apr_falsify.contracts.cited_tests import cited_tests
from apr_falsify.contracts.model import Citation
from apr_falsify.contracts.names import BuildTarget, parse_test
from apr_falsify.contracts.problem import Place
from apr_falsify.contracts.recipes import recipe_of
from apr_falsify.contracts.resolution import (
    RESOLVED,
    UNCHECKED,
    Resolution,
    ResolutionState,
    did_you_mean,
    file_resolution,
    missing,
)
from apr_falsify.contracts.roots import FoundPath, SearchScope
from apr_falsify.contracts.tox import environments_of
from apr_falsify.symbols.tree import SourceTree

Resolve = Callable[[Citation, SearchScope], Resolution]

_FILES = {
    "make": ("GNUmakefile", "makefile", "Makefile"),
    "just": ("justfile", "Justfile", ".justfile"),
    "nox": ("noxfile.py",),
    "tox": ("tox.ini", "pyproject.toml", "tox.toml"),
}
_NAMES = {
    "make": re.compile(r"^([\w./ -]+)::?(?![=:])", re.MULTILINE),
    "just": re.compile(r"^@?([\w-]+)(?:[ \t][^:\n]*)?:(?!=)|^alias[ \t]+([\w-]+)", re.MULTILINE),
    "nox": re.compile(r"^[ \t]*(?:async[ \t]+)?def[ \t]+(\w+)|name\s*=\s*[\"']([\w.-]+)[\"']", re.MULTILINE),
}
# with one of these, names may come from where nobody looks
_OPEN = {
    "make": re.compile(
        r"^-?s?include\b|%[^\n:%]*:|\$\(eval|^[^\t\n#$]*\$[({][^\n]*:|\.DEFAULT", re.MULTILINE
    ),
    "just": re.compile(r"^(?:import|mod)\b", re.MULTILINE),
    "nox": re.compile(
        r"^[ \t]*(?:from[ \t]+\S+[ \t]+import[ \t]+\*|nox\.session\()|parametrize", re.MULTILINE
    ),
}
_PYTHONS = re.compile(r"^(?:py|pypy|cpython|python)?-?[\d.]*t?$")
_MOST_BYTES = 256 * 1024
_MOST_TARGETS = 200


def resolve_target(target: BuildTarget, scope: SearchScope, resolve: Resolve) -> Resolution:
    """Look for a target in the file its tool reads, and for what it runs; where no file is, say nothing.

    Args:
        target: what is asked for.
        scope: of the contract.
        resolve: resolves the tests that the target's own commands name.

    """
    return _resolve(target, scope, resolve, set())


def _resolve(target: BuildTarget, scope: SearchScope, resolve: Resolve, seen: set[BuildTarget]) -> Resolution:
    for tree in scope.local:
        for folder in (target.within, ""):
            for name in _FILES[target.tool]:
                path = f"{folder}/{name}" if folder else name
                raw = tree.read_bytes(path)
                if raw is None or len(raw) > _MOST_BYTES:
                    continue
                text = raw.decode("utf-8", "replace")
                if target.tool == "tox" and environments_of(text) is None:
                    continue
                there = _in_file(target, path, text, tree)
                if there is not RESOLVED:
                    return there
                here = replace(target, within=folder)
                seen.update((here, target))
                return _followed(here, path, text, scope, resolve, seen)
    return UNCHECKED


def _in_file(target: BuildTarget, path: str, text: str, tree: SourceTree) -> Resolution:
    if target.tool == "tox":
        return _environment(target, path, text, tree)
    found = [word for match in _NAMES[target.tool].findall(text) for word in _words(match)]
    if target.name in found or tree.locate(target.name):
        return RESOLVED
    if _OPEN[target.tool].search(text):
        return UNCHECKED
    near = tree.nearest(target.name, found)[:2]
    return missing("test-not-found", f"{path} has no target {target.name!r}", did_you_mean(near))


def _words(match: str | tuple[str, ...]) -> list[str]:
    groups = (match,) if isinstance(match, str) else match
    return [word for group in groups for word in group.split()]


def _environment(target: BuildTarget, path: str, text: str, tree: SourceTree) -> Resolution:
    factors = environments_of(text)
    if factors is None:
        return UNCHECKED
    unknown = [one for one in target.name.split("-") if one not in factors and not _PYTHONS.match(one)]
    if target.name in factors or not unknown:
        return RESOLVED
    near = tree.nearest(target.name, sorted(factors))[:2]
    return missing("test-not-found", f"{path} has no environment {target.name!r}", did_you_mean(near))


def _followed(
    target: BuildTarget,
    path: str,
    text: str,
    scope: SearchScope,
    resolve: Resolve,
    seen: set[BuildTarget],
) -> Resolution:
    """What a target runs, and what the targets before it run, is there too."""
    recipe = recipe_of(target.tool, target.name, text, target.arguments)
    for need in recipe.needs:
        before = replace(target, name=need)
        if before not in seen and len(seen) < _MOST_TARGETS:
            found = _resolve(before, scope, resolve, seen)
            if found.state is ResolutionState.MISSING and found.message.startswith(_RUNS):
                return found
    for line, command in recipe.commands:
        whole = f"cd {target.within} && {command}" if target.within else command
        found = _of_command(whole, scope, resolve, seen, told=target.arguments)
        if found.state is ResolutionState.MISSING:
            where = f"{_RUNS} {target.tool} {target.name} ({path}:{line}): {found.message}"
            return replace(found, message=found.message if found.message.startswith(_RUNS) else where)
    return RESOLVED


_RUNS = "run by"


def _of_command(
    command: str, scope: SearchScope, resolve: Resolve, seen: set[BuildTarget], told: tuple[str, ...] = ()
) -> Resolution:
    """The first test of a command that is surely missing; ``RESOLVED`` where none is.

    A file in ``told`` is cited by the line that asks for the target, and reported there.
    """
    nowhere = Place(line=1, column=1, key="")
    for citation in cited_tests(parse_test(command), command, lambda _: nowhere, absent=False):
        if citation.kind == "file" and citation.paths[0].path in told:
            continue
        if citation.target is not None:
            found = RESOLVED if citation.target in seen else _resolve(citation.target, scope, resolve, seen)
        else:
            found = resolve(citation, scope)
        if found.state is ResolutionState.MISSING:
            return found
    return RESOLVED


def resolve_script(script: FoundPath, scope: SearchScope, resolve: Resolve) -> Resolution:
    """The tests that a script of a shell runs are there, as far as it names them."""
    raw = script.tree.read_bytes(script.relative) or b""
    if len(raw) > _MOST_BYTES or not script.relative.endswith((".sh", ".bash")):
        return RESOLVED

    def there(citation: Citation, inner: SearchScope) -> Resolution:
        """A script within a script need only be there: the two may lead to each other."""
        is_file = citation.kind == "file"
        return file_resolution(citation.paths[0], inner, "test") if is_file else resolve(citation, inner)

    text = raw.decode("utf-8", "replace")
    if re.search(r"^[ \t]*(?:pushd|cd)\b|<<-?\s*['\"]?\w+", text, re.MULTILINE):
        return RESOLVED  # where it runs, or what is text in it, only a run shows
    for at, line in enumerate(text.replace("\\\n", "  ").splitlines(), 1):
        if "$" in line or line.lstrip().startswith(("#", "echo", "printf")):
            continue
        found = _of_command(line.strip(), scope, there, set())
        if found.state is ResolutionState.MISSING:
            name = os.path.basename(script.relative)
            message = f"{_RUNS} {name} ({script.shown}:{at}): {found.message}"
            return replace(found, message=message)
    return RESOLVED
