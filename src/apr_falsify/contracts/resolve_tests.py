"""Resolving the tests a contract names: pytest node ids, ``cargo test`` filters, bare test names.

Nothing is run or imported: a test is really collected when the parsed file says that it would be.
"""

from __future__ import annotations

from apr_falsify.contracts.model import Citation
from apr_falsify.contracts.names import PathName
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
from apr_falsify.contracts.resolve_cargo import resolve_cargo
from apr_falsify.contracts.resolve_pytest import resolve_run, settings_of, why_case_not_there, why_not_run
from apr_falsify.contracts.roots import FoundPath, SearchScope
from apr_falsify.symbols.collect import (
    PytestSettings,
    is_file_collected,
    test_names,
    why_not_collected,
)
from apr_falsify.symbols.index import Definition, SymbolIndex
from apr_falsify.symbols.match import fits, is_inherited
from apr_falsify.symbols.rust_project import rust_project
from apr_falsify.symbols.tree import SourceTree


def resolve_test(citation: Citation, scope: SearchScope) -> Resolution:
    """Resolve a citation of a test, whatever runs it."""
    if citation.kind == "pytest":
        return _pytest(citation, scope)
    if citation.kind == "unittest":
        return _unittest(citation, scope)
    if citation.kind == "cargo":
        assert citation.cargo is not None
        return resolve_cargo(citation.cargo, scope)
    if citation.kind == "harness":
        return _harness(citation, scope)
    if citation.kind == "run":
        assert citation.run is not None
        return resolve_run(citation.run, scope)
    return _bare(citation, scope)


def _pytest(citation: Citation, scope: SearchScope) -> Resolution:
    path = citation.paths[0]
    resolution = file_resolution(path, scope, "test")
    if resolution is not RESOLVED:
        return resolution
    found = scope.find(path)[0]
    name, _, case = citation.name.partition("[")
    parts = name.split("::")
    whole = _node(found, parts, scope)
    return why_case_not_there(found, parts, case.removesuffix("]")) if case and whole is RESOLVED else whole


def _node(found: FoundPath, parts: list[str], scope: SearchScope) -> Resolution:
    index = found.tree.index(found.relative)
    if index is None:
        return UNCHECKED
    if index.error_line is not None:
        return Resolution(state=ResolutionState.UNCHECKED, broken=broken_files((found,)))
    shown = f"{found.shown}::{'::'.join(parts)}"
    defined = [one for one in index.named(parts[-1]) if [*one.parents, one.name] == parts]
    if not defined:
        return _absent_node(found, index, parts, shown, scope.trees)
    settings = settings_of(found)
    collected = _collected(defined[-1], index, settings, found.relative, shown)
    if collected.state is ResolutionState.RESOLVED:
        running = why_not_run(found, parts, settings)
        return running if running.code else collected
    return collected


def _collected(
    one: Definition, index: SymbolIndex, settings: PytestSettings, relative: str, shown: str
) -> Resolution:
    reason = "" if one.kind == "constant" else why_not_collected(one, index, settings)
    if reason:
        return missing("test-not-collected", f"{shown} is not collected by pytest: {reason}")
    if "ignored" in one.marks:
        return missing("test-ignored", f"{shown} is skipped always", "a skipped test is no evidence")
    if not is_file_collected(relative, settings):
        hint = f"python_files is {' '.join(settings.files)!r}"
        return Resolution(
            state=ResolutionState.RESOLVED,
            code="test-file-not-discovered",
            message=f"plain pytest does not look into {relative}",
            hint=hint,
        )
    return RESOLVED


def _absent_node(
    found: FoundPath, index: SymbolIndex, parts: list[str], shown: str, trees: tuple[SourceTree, ...]
) -> Resolution:
    imported = {known_by for known_by, _ in index.reexports}
    if parts[0] in imported or (
        len(parts) > 1 and is_inherited(found.tree, found.relative, "::".join(parts))
    ):
        running = why_not_run(found, parts, settings_of(found))
        return running if running.code else RESOLVED
    if "*" in imported or (len(parts) > 1 and _has_foreign_base(index, parts[0])):
        return UNCHECKED  # it may come with the star or with the base class, and neither is here
    elsewhere = [
        f"{file}:{one.line}"
        for tree in dict.fromkeys((found.tree, *trees))
        for file, one in tree.find(parts[-1])
        if one.kind in ("function", "method", "class")
    ]
    if elsewhere:
        hint = "there is one in " + ", ".join(elsewhere[:3])
    else:
        hint = did_you_mean(found.tree.nearest(parts[-1], test_names(index))[:3])
    return missing("test-not-found", f"{shown} does not exist", hint)


def _has_foreign_base(index: SymbolIndex, name: str) -> bool:
    shape = index.classes.get(name)
    bases = [base.rpartition(".")[2] for base in shape.bases] if shape else []
    return any(base not in index.classes and base not in ("object", "TestCase") for base in bases)


def _unittest(citation: Citation, scope: SearchScope) -> Resolution:
    """``tests.unit.test_x.TestX.test_y``: as many leading parts as make a file."""
    words = citation.name.split(".")
    for count in range(len(words), 0, -1):
        found = scope.find(PathName(path="/".join(words[:count]) + ".py"))
        if found:
            return RESOLVED if count == len(words) else _node(found[0], words[count:], scope)
    if scope.find(PathName(path="/".join(words))):
        return RESOLVED
    path = PathName(path="/".join(words) + ".py")
    if not scope.surely_missing(path, role="test"):
        return unresolved(f"{citation.name!r} is in no tree that was given")
    return missing("test-not-found", f"no file for {citation.name!r}", did_you_mean(scope.like(path)))


def _bare(citation: Citation, scope: SearchScope) -> Resolution:
    """A test named without its file: somewhere in the trees, whatever it is called there."""
    *qualifiers, last = citation.name.split("::")
    trees = scope.trees
    wanted = [part for part in qualifiers if part != "tests"]
    found = [
        (tree, file, one)
        for tree in trees
        for file, one in tree.find(last, limit=200)
        if fits(one, wanted, file, tree.index(file) or SymbolIndex(language=""))
    ]
    for tree, file, one in found:
        if not _is_off(one) and not _why_not_compiled(tree, file, one):
            return RESOLVED
    for tree, file, one in found:
        if _is_off(one):
            return missing("test-ignored", f"{last} is ignored in {file}")
        why = _why_not_compiled(tree, file, one)
        return missing("test-not-collected", f"{last} is in {file}:{one.line}, and {why}")
    known = any(
        tree.find_file(f"{part}.rs") or tree.find_file(f"{part}.py") for tree in trees for part in qualifiers
    )
    if not known and not scope.owns():
        return unresolved(f"{citation.name!r} is in no tree that was given")
    near = [name for tree in trees for name in tree.nearest(last, tree.vocabulary.defined)[:3]][:3]
    return missing("test-not-found", f"test {citation.name!r} exists nowhere", did_you_mean(near))


def _harness(citation: Citation, scope: SearchScope) -> Resolution:
    """A proof that Kani is asked for by a part of its name."""
    last = citation.name.rpartition("::")[2]
    defined = (name for tree in scope.trees for name in tree.vocabulary.defined)
    return RESOLVED if any(last in name for name in defined) else _bare(citation, scope)


def _why_not_compiled(tree: SourceTree, file: str, one: Definition) -> str:
    return rust_project(tree).why_not_compiled(file) if one.is_test and file.endswith(".rs") else ""


def _is_off(one: Definition) -> bool:
    return one.is_test and "ignored" in one.marks
