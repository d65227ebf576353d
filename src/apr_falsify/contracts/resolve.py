"""Resolving what a contract cites against the trees: found, missing, unresolved, or not checkable."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from apr_falsify.contracts.hollow import PROOFS, without_comments
from apr_falsify.contracts.model import Citation
from apr_falsify.contracts.resolution import (
    RESOLVED,
    UNCHECKED,
    Resolution,
    ResolutionState,
    broken_files,
    did_you_mean,
    file_resolution,
    missing,
    unresolved,
)
from apr_falsify.contracts.resolve_pytest import why_file_not_run
from apr_falsify.contracts.resolve_target import resolve_script, resolve_target
from apr_falsify.contracts.resolve_tests import resolve_test
from apr_falsify.contracts.roots import FoundPath, SearchScope
from apr_falsify.symbols.index import SymbolIndex
from apr_falsify.symbols.listing import INDEXERS
from apr_falsify.symbols.match import fits, has_foreign_base, is_inherited, is_reexported, lookup
from apr_falsify.symbols.rust_project import rust_project
from apr_falsify.symbols.tree import MOST_BYTES, SourceTree

_MOST_FILES_OF_A_DIRECTORY = 400
_EMPTY = SymbolIndex(language="")


def resolve(citation: Citation, scope: SearchScope) -> Resolution:
    """Resolve one citation of the contract that ``scope`` is of."""
    if citation.kind == "prose":
        return UNCHECKED
    if citation.kind == "file":
        return _file(citation, scope)
    if citation.kind == "symbol":
        return _symbol(citation, scope)
    if citation.kind == "target":
        assert citation.target is not None
        return resolve_target(citation.target, scope, resolve)
    return resolve_test(citation, scope)


def _file(citation: Citation, scope: SearchScope) -> Resolution:
    found = scope.find(citation.paths[0])
    if not found:
        return file_resolution(citation.paths[0], scope, citation.role)
    broken = broken_files(found)
    if broken:
        return Resolution(state=ResolutionState.RESOLVED, broken=broken)
    if citation.role != "test" or len(found) != 1:
        return RESOLVED
    whole = why_file_not_run(found[0])
    return resolve_script(found[0], scope, resolve) if whole is RESOLVED else whole


def _symbol(citation: Citation, scope: SearchScope) -> Resolution:
    paths = [path for path in citation.paths if path.path]
    files = [found for path in paths for found in scope.find(path)]
    if files:
        return _in_files(citation.name, files, scope)
    if paths:  # the file itself is the problem, and is reported as such
        states = [file_resolution(path, scope, citation.role).state for path in paths]
        if ResolutionState.UNRESOLVED in states:
            return Resolution(state=ResolutionState.UNRESOLVED)
        return UNCHECKED
    prefix = next((path.source for path in citation.paths), "")
    if prefix and prefix not in scope.sources:
        return unresolved(f"{prefix}:{citation.name} is of source {prefix!r}", f"--source {prefix}=DIR")
    return _anywhere(citation.name, scope, prefix)


def _in_files(name: str, files: list[FoundPath], scope: SearchScope) -> Resolution:
    checkable = False
    for found in files:
        state = _in_one(name, found)
        if state is ResolutionState.RESOLVED:
            return _compiled(name, found)
        checkable |= state is ResolutionState.MISSING
    if not checkable:
        return _not_read(name, files)
    trees = list(dict.fromkeys([*(found.tree for found in files), *scope.trees]))
    shown = ", ".join(found.shown for found in files[:3]) + (" ..." if len(files) > 3 else "")
    return _report_missing(name, shown, files, trees)


def _not_read(name: str, files: list[FoundPath]) -> Resolution:
    """Say so where it may stand in a file that is too large for a source file, or may not be read."""
    shut = [one for one in files if not one.is_directory and one.tree.read_bytes(one.relative) is None]
    if not shut:
        return UNCHECKED
    why = f"whether {name} exists is not known: {shut[0].shown} is over {MOST_BYTES >> 20} MiB, or unreadable"
    return Resolution(state=ResolutionState.UNCHECKED, code="source-not-read", message=why)


def _compiled(name: str, found: FoundPath) -> Resolution:
    """A Rust test that stands in a file which nothing compiles is none."""
    if found.is_directory or not found.relative.endswith(".rs") or "*" in name:
        return RESOLVED
    one = lookup(found.tree, found.relative, name)
    why = rust_project(found.tree).why_not_compiled(found.relative) if one and one.is_test else ""
    if not why:
        return RESOLVED
    return missing(
        "test-not-collected", f"{found.shown} holds the test {name}, and {why}", "declare it with `mod`"
    )


def _in_one(name: str, found: FoundPath) -> ResolutionState:
    """Look in one named file, or in all files below a named directory."""
    if found.is_directory:
        below = [file for file in found.tree.files() if file.startswith(found.relative.rstrip("/") + "/")]
        if found.relative == ".":
            below = found.tree.files()
        if not below:
            return ResolutionState.UNCHECKED
        states = [_in_source(name, found.tree, file) for file in below[:_MOST_FILES_OF_A_DIRECTORY]]
        return ResolutionState.RESOLVED if ResolutionState.RESOLVED in states else ResolutionState.MISSING
    return _in_source(name, found.tree, found.relative)


def _in_source(name: str, tree: SourceTree, relative: str) -> ResolutionState:
    if not relative.endswith(tuple(INDEXERS)):
        return _in_text(name, tree, relative)
    if lookup(tree, relative, name) or is_reexported(tree, relative, name):
        return ResolutionState.RESOLVED
    index = tree.index(relative)
    if index is None:
        return ResolutionState.UNCHECKED
    if index.error_line is not None and _in_text(name, tree, relative) is ResolutionState.RESOLVED:
        return ResolutionState.UNCHECKED  # it stands there, but the file does not parse: that is reported
    if is_inherited(tree, relative, name):
        return ResolutionState.RESOLVED
    return ResolutionState.UNCHECKED if _may_be_foreign(name, tree, relative) else ResolutionState.MISSING


def _may_be_foreign(name: str, tree: SourceTree, relative: str) -> bool:
    """A method that a library's base class may have, and that is no near spelling of one written here."""
    if not has_foreign_base(tree, relative, name):
        return False
    owner, _, last = name.rpartition("::")
    index = tree.index(relative) or _EMPTY
    written = [
        one.name for one in index.definitions if one.parents and one.parents[-1] == owner.split("::")[-1]
    ]
    return not difflib.get_close_matches(last, written, n=1, cutoff=0.75)


def _in_text(name: str, tree: SourceTree, relative: str) -> ResolutionState:
    """In a language that is not indexed a name exists if its last part stands in the text as a word."""
    source = tree.read_bytes(relative)
    last = name.rpartition("::")[2].replace("*", "")
    if source is None or not last:
        return ResolutionState.UNCHECKED
    text = source.decode("utf-8", "replace")
    code = without_comments(relative, text) if relative.endswith(PROOFS) else text
    found = re.search(r"(?<!\w)" + re.escape(last) + ("" if "*" in name else r"(?!\w)"), code)
    return ResolutionState.RESOLVED if found else ResolutionState.MISSING


def _report_missing(name: str, shown: str, files: list[FoundPath], trees: list[SourceTree]) -> Resolution:
    """Say where else the name is, or, where it is nowhere, what is nearest to it."""
    *qualifiers, last = name.split("::")
    elsewhere = [
        f"{tree.name + ':' if tree.name else ''}{file}:{one.line}"
        for tree in trees
        for file, one in tree.find(last)
        if fits(one, qualifiers, file, tree.index(file) or _EMPTY, tree.package_of(file))
    ]
    if elsewhere:
        hint = "it is defined in " + ", ".join(elsewhere[:3])
        return missing("symbol-not-in-file", f"{name!r} is not defined in {shown}", hint)
    return missing(
        "symbol-not-found", f"{name!r} exists nowhere, and not in {shown}", nearest_in(name, files, trees)
    )


def nearest_in(name: str, files: list[FoundPath], trees: list[SourceTree]) -> str:
    """Offer the nearest names of the named files; of the whole tree where those have none alike."""
    last = name.rpartition("::")[2]
    for found in files:
        known = _offerable(found, last)
        near = found.tree.nearest(last, known) if known else []
        if near:
            return did_you_mean(near)
    owner = name.rpartition("::")[0].rpartition("::")[2]
    if owner[:1].isupper() and not any(tree.find(owner, limit=1) for tree in trees):
        last = owner  # the type itself is nowhere: its method tells nothing
    for tree in trees[:1]:
        near = tree.nearest(last, tree.vocabulary.defined)[:2]
        if near:
            return did_you_mean(near)
    return ""


def _offerable(found: FoundPath, last: str) -> list[str]:
    """Names of a file that a citation may mean: not its tests, and of the same spelling style."""
    if found.is_directory:
        return []
    parts = [one for _, index in found.tree.parts(found.relative) for one in index.definitions]
    wired = [one for one in parts if not one.is_test and "tests" not in "::".join(one.parents)]
    style = [one.name for one in wired if one.name[:1].isupper() == last[:1].isupper()]
    return style or [one.name for one in wired or parts]


def _anywhere(name: str, scope: SearchScope, prefix: str) -> Resolution:
    """A name cited without a file: somewhere in the trees."""
    trees = [scope.sources[prefix]] if prefix else list(scope.trees)
    state = exists_anywhere(name, trees, scope, sure=bool(prefix))
    if state is ResolutionState.UNRESOLVED:
        return unresolved(f"{name!r} is in no tree that was given")
    if state is ResolutionState.MISSING:
        return missing("symbol-not-found", f"{name!r} exists nowhere", nearest_in(name, [], trees))
    return Resolution(state=state)


def exists_anywhere(
    name: str, trees: Sequence[SourceTree], scope: SearchScope, *, sure: bool = False
) -> ResolutionState:
    """Whether a name is defined somewhere in the trees; ``sure`` says that what they lack is missing."""
    *qualifiers, last = name.split("::")
    if "*" in name:
        return ResolutionState.UNCHECKED
    for tree in trees:
        for file, one in tree.find(last, limit=20_000 if qualifiers else 200):
            if fits(one, qualifiers, file, tree.index(file) or _EMPTY, tree.package_of(file)):
                return ResolutionState.RESOLVED
    sure = sure or scope.owns() or any(_knows_file(tree, qualifiers) for tree in trees)
    return ResolutionState.MISSING if sure else ResolutionState.UNRESOLVED


def _knows_file(tree: SourceTree, qualifiers: list[str]) -> bool:
    return any(tree.find_file(f"{one}{suffix}") for one in qualifiers for suffix in INDEXERS)
