"""Resolving what a build tool is asked to run: a rule of the Makefile, a recipe, a session of nox."""

from __future__ import annotations

import re

from apr_falsify.contracts.names import BuildTarget
from apr_falsify.contracts.resolution import RESOLVED, UNCHECKED, Resolution, did_you_mean, missing
from apr_falsify.contracts.roots import SearchScope
from apr_falsify.symbols.tree import SourceTree

_FILES = {
    "make": ("GNUmakefile", "makefile", "Makefile"),
    "just": ("justfile", "Justfile", ".justfile"),
    "nox": ("noxfile.py",),
}
_NAMES = {
    "make": re.compile(r"^([\w./ -]+?)\s*:(?![=:])", re.MULTILINE),
    "just": re.compile(r"^@?([\w-]+)(?:\s+[^:\n]*)?:(?!=)|^alias\s+([\w-]+)", re.MULTILINE),
    "nox": re.compile(r"^\s*(?:async\s+)?def\s+(\w+)|name\s*=\s*[\"']([\w.-]+)[\"']", re.MULTILINE),
}
# with one of these, names may come from where nobody looks
_OPEN = {
    "make": re.compile(r"^-?s?include\b|%.*:|\$\(eval|^[^\t\n#]*\$[({][^\n]*:|\.DEFAULT", re.MULTILINE),
    "just": re.compile(r"^(?:import|mod)\b", re.MULTILINE),
    "nox": re.compile(r"^\s*(?:from\s+\S+\s+import\s+\*|nox\.session\()|parametrize", re.MULTILINE),
}


def resolve_target(target: BuildTarget, scope: SearchScope) -> Resolution:
    """Look for a target in the file its tool reads; where there is none, or it is open, say nothing."""
    for tree in scope.local:
        for folder in (target.within, ""):
            for name in _FILES[target.tool]:
                path = f"{folder}/{name}" if folder else name
                raw = tree.read_bytes(path)
                if raw is not None:
                    return _in_file(target, path, raw.decode("utf-8", "replace"), tree)
    return UNCHECKED


def _in_file(target: BuildTarget, path: str, text: str, tree: SourceTree) -> Resolution:
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
