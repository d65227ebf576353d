"""Running a validation over files: discovery, reading, resolving, and the rules across contracts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from apr_falsify.contracts.discover import discover
from apr_falsify.contracts.facts import Facts
from apr_falsify.contracts.roots import Roots
from apr_falsify.contracts.validate import Counts, Report, across, read_facts, resolve_names


def shown_path(path: Path) -> str:
    """A path relative to the working directory, with forward slashes: what every format prints."""
    try:
        return os.path.relpath(path).replace(os.sep, "/")
    except ValueError:  # another drive
        return path.as_posix()


def run(paths: Iterable[Path], sources: dict[str, Path], *, cached: bool = True) -> Report:
    """Validate every contract under ``paths`` against their own trees and the named sources."""
    files = discover(paths)
    roots = Roots(sources)
    suite = [read_facts(path, shown_path(path)) for path in files]
    problems = [problem for facts in suite for problem in facts.problems]
    counts = Counts()
    for path, facts in zip(files, suite, strict=True):
        found, mine = resolve_names(facts, path.absolute(), roots)
        problems.extend(found)
        counts += mine
    owns = {facts.path: roots.owns(path.absolute()) for path, facts in zip(files, suite, strict=True)}
    known = read_siblings(suite, files, roots)
    problems.extend(across(suite, known, owns, None))
    return Report(problems=tuple(problems), counts=counts, suite=tuple(suite))


def read_siblings(suite: list[Facts], files: list[Path], roots: Roots) -> list[Facts]:
    """Cited contracts not validated now that lie beside those that are, or in a tree's contracts folder."""
    have = {alias for facts in suite for alias in facts.aliases}
    known: dict[str, Facts] = {}
    for facts, path in zip(suite, files, strict=True):
        for sibling in facts.siblings:
            if sibling.name in have or sibling.name in known:
                continue
            folders = [
                path.absolute().parent,
                *(tree.root / "contracts" for tree in roots.trees(path.absolute())),
            ]
            places = [
                folder / f"{sibling.name}{suffix}" for folder in folders for suffix in (".yaml", ".yml")
            ]
            place = next((place for place in places if place.is_file()), None)
            if place is not None:
                known[sibling.name] = read_facts(place, shown_path(place))
    return list(known.values())
