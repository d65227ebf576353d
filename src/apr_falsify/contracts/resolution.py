"""What became of one citation, and the ways in which a path that a contract names may be wrong."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from apr_falsify.contracts.names import PathName
from apr_falsify.contracts.roots import FoundPath, SearchScope


class ResolutionState(Enum):
    """What became of one citation; only ``RESOLVED`` counts as checked and right."""

    RESOLVED = "resolved"
    MISSING = "missing"
    UNRESOLVED = "unresolved"  # of a tree that was not given
    UNCHECKED = "not checkable"  # prose, a placeholder, or in a file that is itself missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """The outcome for one citation; ``code`` and ``message`` where it is a problem."""

    state: ResolutionState
    code: str = ""
    message: str = ""
    hint: str = ""
    broken: tuple[tuple[str, int, str], ...] = ()  # cited files that do not parse: shown path, line, why


RESOLVED = Resolution(state=ResolutionState.RESOLVED)
UNCHECKED = Resolution(state=ResolutionState.UNCHECKED)


def missing(code: str, message: str, hint: str = "") -> Resolution:
    """A problem: the name certainly does not exist where it is said to be."""
    return Resolution(state=ResolutionState.MISSING, code=code, message=message, hint=hint)


def unresolved(message: str, hint: str = "give its tree with --source NAME=DIR") -> Resolution:
    """Not a verdict: the tree it would be in was not given."""
    return Resolution(state=ResolutionState.UNRESOLVED, code="unresolved-name", message=message, hint=hint)


def not_checkable(why: str) -> Resolution:
    """Not a verdict: reading alone cannot tell, and why."""
    message = f"whether it runs is not known: {why}"
    return Resolution(state=ResolutionState.UNCHECKED, code="test-not-checkable", message=message)


def file_resolution(path: PathName, scope: SearchScope, role: str) -> Resolution:
    """Resolve one path."""
    if path.is_placeholder:
        return UNCHECKED
    if scope.find(path):
        return RESOLVED
    shown = f"{path.source}:{path.path}" if path.source else path.path
    repository = scope.repository_of(path)
    if path.escapes and not repository:
        message = f"{shown!r} leads out of the source tree and is not looked at"
        return missing("path-outside-source", message, "cite it relative to the source root")
    if path.source and path.source not in scope.sources:
        return unresolved(f"{shown!r} is of source {path.source!r}", f"--source {path.source}=DIR")
    if not scope.surely_missing(path, role=role):
        return _of_no_tree(path, shown, repository, scope)
    like = scope.like(path)
    return missing("file-not-found", f"{shown!r} does not exist", did_you_mean(like))


def _of_no_tree(path: PathName, shown: str, repository: str, scope: SearchScope) -> Resolution:
    """Say which tree a path may be of, as far as the path or the trees that were given tell."""
    if repository:
        message = f"{shown!r} is of another repository, {repository!r}, which was not given"
        return unresolved(message, f"--source {repository}=DIR")
    elsewhere = scope.elsewhere(path)
    if elsewhere:
        return unresolved(f"{shown!r} is in no tree as it is written", f"cite it as {elsewhere!r}")
    return unresolved(f"{shown!r} is in no tree that was given")


def did_you_mean(names: list[str]) -> str:
    """Return names that may have been meant as a question, nothing where there is none."""
    return "did you mean " + ", ".join(repr(name) for name in names) + "?" if names else ""


def broken_files(files: tuple[FoundPath, ...]) -> tuple[tuple[str, int, str], ...]:
    """Return those of the named files that do not parse."""
    broken = []
    for found in files:
        index = None if found.is_directory else found.tree.index(found.relative)
        if index is not None and index.error_line is not None:
            broken.append((found.shown, index.error_line, index.error))
    return tuple(broken)
