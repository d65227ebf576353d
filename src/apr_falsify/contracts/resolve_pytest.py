"""Resolving what ``pytest`` chooses: node ids that would run, and ``-k`` and ``-m`` that choose something."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from apr_falsify.contracts.names import PathName, parse_path
from apr_falsify.contracts.pytest_command import PytestRun, read_pytest
from apr_falsify.contracts.pytest_left_out import is_deselected, is_left_out_by_conftest
from apr_falsify.contracts.resolution import (
    RESOLVED,
    UNCHECKED,
    Resolution,
    ResolutionState,
    did_you_mean,
    missing,
    not_checkable,
    unresolved,
)
from apr_falsify.contracts.roots import FoundPath, SearchScope
from apr_falsify.contracts.shell import Command
from apr_falsify.symbols.collect import SETTINGS_FILES, PytestSettings, is_file_collected, read_settings
from apr_falsify.symbols.pytest_expression import (
    Expression,
    alternatives,
    chooses,
    names_in,
    parse_expression,
    shown,
)
from apr_falsify.symbols.pytest_items import PythonItem, collected_names
from apr_falsify.symbols.tree import SourceTree
from apr_falsify.symbols.vocabulary import close_matches

_HOOKS = (
    b"pytest_generate_tests",
    b"pytest_collect",
    b"pytest_pycollect",
    b"pytest_itemcollected",
    b"params=",
)
_MARKING = (b"add_marker", b"pytest_collection_modifyitems", b"pytest_itemcollected", b"own_markers")
"""What gives tests marks that stand nowhere on them."""


def settings_of(found: FoundPath) -> PytestSettings:
    """Pytest's settings nearest to a file: those of a project inside the repository before its own."""
    root = found.tree.root
    folders = [
        folder for folder in (root / found.relative).parents if folder == root or root in folder.parents
    ]
    found.tree.touched.update(
        found.tree.relative(folder / name) for folder in folders for name in SETTINGS_FILES
    )
    return next((one for folder in folders if (one := read_settings(folder)) is not None), PytestSettings())


def why_not_run(found: FoundPath, parts: list[str], settings: PytestSettings) -> Resolution:
    """Say why a test that is defined never runs, or that it hides another; ``RESOLVED`` where all is well."""
    read = found.tree.items(found.relative)
    shown = f"{found.shown}::{'::'.join(parts)}"
    below = [one for one in read.items if list(one.parts[: len(parts)]) == parts]
    hidden = next((line for one, line in read.hidden if list(one) == parts), None)
    if not below:
        never = [why for one, why in read.never if list(one[: len(parts)]) == parts]
        if never:
            return missing("test-not-collected", f"{shown} is not collected by pytest: {never[0]}")
        if hidden is None:
            return RESOLVED
        message = f"{shown} is not collected: its name is defined again in line {hidden}, which hides it"
        return missing("test-not-collected", message, "give one of them another name")
    if all(one.skip for one in below):
        hint = "a skipped test is no evidence"
        return missing("test-ignored", f"{shown} is skipped always: {below[0].skip}", hint)
    left_out = _by_settings(settings)
    if left_out and all(_is_left_out(one, left_out) for one in below):
        message = f"{shown} is left out by -m {left_out!r} of pytest's own addopts"
        return missing("test-not-collected", message, "give the command its own -m")
    if below[0].hides and len(below) == 1:
        return Resolution(
            state=ResolutionState.RESOLVED,
            code="test-defined-twice",
            message=f"{shown} is defined in line {below[0].hides[0]} too, where it never runs",
            hint="give one of them another name",
        )
    return RESOLVED


def why_case_not_there(found: FoundPath, parts: list[str], case: str) -> Resolution:
    """Say that a test has no such case, where its own decorators state all that it has."""
    read = found.tree.items(found.relative)
    tests = [one for one in read.items if list(one.parts) == parts]
    sure = [one for one in tests if one.cases and one.is_whole]
    shown = f"{found.shown}::{'::'.join(parts)}[{case}]"
    if len(tests) == len(sure) == 1 and case in tests[0].skipped_cases:
        message = f"{shown} is skipped always: its own marks say so"
        return missing("test-ignored", message, "a skipped test is no evidence")
    if not sure or len(sure) < len(tests) or any(case in (one.cases or ()) for one in sure):
        return RESOLVED
    if b"params=" in (found.tree.read_bytes(found.relative) or b"") or b"autouse" in (
        found.tree.read_bytes(os.path.join(os.path.dirname(found.relative), "conftest.py")) or b""
    ):
        return RESOLVED
    near = close_matches(case, sure[0].cases or (), 2, 0.6)
    return missing("test-not-found", f"{shown} does not exist: the test has no such case", did_you_mean(near))


def why_file_not_run(found: FoundPath) -> Resolution:
    """Say why no test of a file of tests ever runs; ``RESOLVED`` where one may."""
    if found.is_directory or not found.relative.endswith(".py"):
        return RESOLVED
    read = found.tree.items(found.relative)
    tests = [one for one in read.items if one.parts[-1].startswith("test")]
    if not tests and read.never and not read.is_open and not read.origins:
        message = f"no test of {found.shown} is collected by pytest: {read.never[0][1]}"
        return missing("test-not-collected", message, "a test that is not collected is no evidence")
    if read.is_open or read.origins or not tests or not all(one.skip for one in tests):
        return RESOLVED
    message = f"every test of {found.shown} is skipped always: {tests[0].skip}"
    return missing("test-ignored", message, "a skipped test is no evidence")


def _by_settings(settings: PytestSettings) -> str:
    run = read_pytest(Command(words=("pytest", *settings.options)))
    return (run.marker or "") if run else ""


def _is_left_out(item: PythonItem, expression: str) -> bool:
    """A mark that is not read may still be given when tests are collected: only one that is there counts."""
    parsed = parse_expression(expression)
    return parsed is not None and _marked(parsed, item) is False


def _marked(expression: Expression, item: PythonItem, *, sure: bool = False) -> bool | None:
    return chooses(expression, lambda name: name in item.marks or (False if sure else None))


def _may_be_marked(place: _Place, is_open: bool) -> bool:
    """Whether tests of a file may carry marks that are not read: of one case, of a class elsewhere."""
    return is_open or b"marks=" in (place.tree.read_bytes(place.file) or b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A file that a run looks into; ``parts`` narrow it to a class or a test."""

    tree: SourceTree
    file: str
    parts: tuple[str, ...] = ()


def resolve_run(run: PytestRun, scope: SearchScope) -> Resolution:
    """Whether ``-k`` (and ``-m``) of a command choose any test among the files that it names.

    Each part of ``-k "test_a or test_b"`` names a test: one that chooses none is missing.
    """
    keyword = parse_expression(run.keyword)
    if keyword is None and run.keyword:
        return UNCHECKED
    parts: list[Expression | None] = [*alternatives(keyword)] if keyword else [None]
    found = [_resolve_run(run, one, scope) for one in parts]
    return next((one for one in found if one.state is ResolutionState.MISSING), found[0])


def _resolve_run(run: PytestRun, keyword: Expression | None, scope: SearchScope) -> Resolution:
    places = _places(run, scope)
    if places is None:
        return UNCHECKED  # a path that is not there is said for itself
    if not places and not scope.owns():
        return unresolved(f"the tests of {run.keyword or run.marker!r} are in no tree that was given")
    marker = parse_expression(_marker_of(run, places))
    marked_by_hooks = marker is not None and _has_hooks(scope, _MARKING)
    unsure = False
    skipped: list[str] = []
    names: list[str] = []
    for place in places:
        read = place.tree.items(place.file)
        is_open = read.is_open or _may_come_from(read.origins, keyword, scope)
        unsure |= is_open
        sure = marker is not None and not marked_by_hooks and not _may_be_marked(place, is_open)
        for item in read.items:
            if item.parts[: len(place.parts)] != place.parts or is_deselected(run, place.file, item.parts):
                continue
            by_name = True if keyword is None else _chosen(keyword, item, place.file)
            by_mark = True if marker is None else _marked(marker, item, sure=sure)
            names.append(item.parts[-1])
            if by_name is False or by_mark is False:
                continue
            if by_name is None:
                unsure = True
            elif not item.skip:
                return RESOLVED
            else:
                skipped.append(f"{place.file}:{item.line}")
    return _nothing(run, keyword, scope, skipped, names, unsure)


def _may_come_from(origins: tuple[str, ...], keyword: Expression | None, scope: SearchScope) -> bool:
    """Whether what is asked for may be a test of a class or module elsewhere, which a file takes over."""
    for origin in origins:
        trees = [one for one in scope.trees if one.find_file(f"{origin}.py") or one.find(origin, limit=1)]
        words = [word.lower() for word in names_in(keyword)] if keyword else []
        if not trees or not words:
            return True
        names = (name.lower() for tree in trees for name in tree.vocabulary.defined)
        if any(word in name for name in names for word in words):
            return True
    return False


def _marker_of(run: PytestRun, places: list[_Place]) -> str:
    """The command's own ``-m``, or that of the settings."""
    if run.marker is not None or not places:
        return run.marker or ""
    return _by_settings(
        settings_of(FoundPath(tree=places[0].tree, relative=places[0].file, is_directory=False))
    )


def _nothing(
    run: PytestRun,
    keyword: Expression | None,
    scope: SearchScope,
    skipped: list[str],
    names: list[str],
    unsure: bool,
) -> Resolution:
    asked = f"-k {shown(keyword)!r}" if keyword else f"-m {run.marker!r}"
    if skipped:
        return missing("test-ignored", f"every test that {asked} chooses is skipped always ({skipped[0]})")
    if unsure or _has_hooks(scope):
        return not_checkable(f"{asked} chooses none of the tests that stand there, and others may be made")
    where = " ".join(run.arguments) or "the tests"
    wanted = names_in(keyword)[:1] if keyword else []
    near = [one for word in wanted for one in scope.trees[0].nearest(word, names)[:3]]
    return missing("test-not-found", f"{asked} chooses no test of {where}", did_you_mean(near))


def _chosen(expression: Expression, item: PythonItem, file: str) -> bool | None:
    found = [_case_chosen(expression, item, names) for names in collected_names(item, file)]
    return True if True in found else None if None in found else False


def _case_chosen(expression: Expression, item: PythonItem, names: tuple[str, ...]) -> bool | None:
    lower = [one.lower() for one in names]

    def decide(word: str) -> bool | None:
        if any(word.lower() in name for name in lower):
            return True
        if item.cases is not None:
            return False
        return (
            None if item.case_words is None or word.lower().rstrip("0123456789") in item.case_words else False
        )

    return chooses(expression, decide)


def _has_hooks(scope: SearchScope, hooks: tuple[bytes, ...] = _HOOKS) -> bool:
    files = [(tree, file) for tree in scope.local for file in tree.find_file("conftest.py")]
    return any(hook in (tree.read_bytes(file) or b"") for tree, file in files for hook in hooks)


def _places(run: PytestRun, scope: SearchScope) -> list[_Place] | None:
    """Files that a run looks into; ``None`` where one that it names is not there, or cannot be read so."""
    if not run.arguments:
        trees = [tree for tree in scope.local if not run.folder or tree.locate(run.folder)]
        return [one for tree in trees[:1] for one in _below(tree, run.folder, named=False)]
    found: list[_Place] = []
    for argument in run.arguments:
        name, _, rest = argument.partition("::")
        path = parse_path(name, surely=True)
        there = scope.find(PathName(path=path.path, source=path.source, within=run.folder)) if path else ()
        if not there:
            return None
        for one in there:
            parts = tuple(part.partition("[")[0] for part in rest.split("::") if part)
            found.extend(_of(one, parts))
    return found


def _of(one: FoundPath, parts: tuple[str, ...]) -> Iterator[_Place]:
    if not one.is_directory:
        yield _Place(tree=one.tree, file=one.relative, parts=parts)
    else:
        yield from _below(one.tree, "" if one.relative == "." else one.relative, named=True)


def _below(tree: SourceTree, folder: str, *, named: bool) -> Iterator[_Place]:
    """Files that pytest collects below a folder; where none is named, below those of its settings."""
    start = f"{folder}/" if folder else ""
    settings = settings_of(FoundPath(tree=tree, relative=f"{start}x.py", is_directory=False))
    bases = (
        [start] if named or not settings.paths else [f"{start}{one.strip('./')}" for one in settings.paths]
    )
    for file in tree.below(start):
        inside = any(file.startswith(base) for base in bases) and not is_left_out_by_conftest(tree, file)
        if inside and file.endswith(".py") and is_file_collected(file, settings):
            yield _Place(tree=tree, file=file)
