"""Resolving the tests a contract names: pytest node ids, ``cargo test`` filters, bare test names.

Nothing is run or imported: a test is really collected when the parsed file says that it would be.
"""

from __future__ import annotations

from collections.abc import Iterator

from apr_falsify.contracts.model import Citation
from apr_falsify.contracts.names import CargoTest, PathName
from apr_falsify.contracts.resolution import (
    RESOLVED,
    UNCHECKED,
    Resolution,
    State,
    broken_files,
    did_you_mean,
    file_resolution,
    missing,
    unresolved,
)
from apr_falsify.contracts.roots import Found, Scope
from apr_falsify.symbols.collect import (
    SETTINGS_FILES,
    PytestSettings,
    is_file_collected,
    read_settings,
    test_names,
    why_not_collected,
)
from apr_falsify.symbols.index import Definition, SymbolIndex
from apr_falsify.symbols.match import fits, is_inherited
from apr_falsify.symbols.tree import SourceTree


def resolve_test(citation: Citation, scope: Scope) -> Resolution:
    """Resolve a citation of kind pytest, unittest, cargo or test."""
    if citation.kind == "pytest":
        return _pytest(citation, scope)
    if citation.kind == "unittest":
        return _unittest(citation, scope)
    if citation.kind == "cargo":
        assert citation.cargo is not None
        return _cargo(citation.cargo, scope)
    return _bare(citation, scope)


def _pytest(citation: Citation, scope: Scope) -> Resolution:
    path = citation.paths[0]
    resolution = file_resolution(path, scope, "test")
    if resolution is not RESOLVED:
        return resolution
    return _node(scope.find(path)[0], citation.name.split("::"), scope)


def _node(found: Found, parts: list[str], scope: Scope) -> Resolution:
    index = found.tree.index(found.relative)
    if index is None:
        return UNCHECKED
    if index.error_line is not None:
        return Resolution(state=State.UNCHECKED, broken=broken_files((found,)))
    shown = f"{found.shown}::{'::'.join(parts)}"
    defined = [one for one in index.named(parts[-1]) if [*one.parents, one.name] == parts]
    if not defined:
        return _absent_node(found, index, parts, shown, scope.trees)
    settings = _settings_of(found)
    return _collected(defined[-1], index, settings, found.relative, shown)


def _settings_of(found: Found) -> PytestSettings:
    """Pytest's settings nearest to a file: those of a project inside the repository before its own."""
    root = found.tree.root
    folders = [
        folder for folder in (root / found.relative).parents if folder == root or root in folder.parents
    ]
    found.tree.touched.update(
        found.tree.relative(folder / name) for folder in folders for name in SETTINGS_FILES
    )
    return next((one for folder in folders if (one := read_settings(folder)) is not None), PytestSettings())


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
            state=State.RESOLVED,
            code="test-file-not-discovered",
            message=f"plain pytest does not look into {relative}",
            hint=hint,
        )
    return RESOLVED


def _absent_node(
    found: Found, index: SymbolIndex, parts: list[str], shown: str, trees: tuple[SourceTree, ...]
) -> Resolution:
    imported = {known_by for known_by, _ in index.reexports}
    if parts[0] in imported or (
        len(parts) > 1 and is_inherited(found.tree, found.relative, "::".join(parts))
    ):
        return RESOLVED
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


def _unittest(citation: Citation, scope: Scope) -> Resolution:
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


def _bare(citation: Citation, scope: Scope) -> Resolution:
    """A test named without its file: somewhere in the trees, whatever it is called there."""
    *qualifiers, last = citation.name.split("::")
    trees = scope.trees
    for tree in trees:
        for file, one in tree.find(last, limit=200):
            if fits(
                one,
                [part for part in qualifiers if part != "tests"],
                file,
                tree.index(file) or SymbolIndex(language=""),
            ):
                return missing("test-ignored", f"{last} is ignored in {file}") if _is_off(one) else RESOLVED
    known = any(
        tree.find_file(f"{part}.rs") or tree.find_file(f"{part}.py") for tree in trees for part in qualifiers
    )
    if not known and not scope.owns():
        return unresolved(f"{citation.name!r} is in no tree that was given")
    near = [name for tree in trees for name in tree.nearest(last, _all_tests(tree))][:3]
    return missing("test-not-found", f"test {citation.name!r} exists nowhere", did_you_mean(near))


def _is_off(one: Definition) -> bool:
    return one.is_test and "ignored" in one.marks


def _all_tests(tree: SourceTree) -> list[str]:
    indexes = (tree.index(file) for file in tree.files()[:2000] if "test" in file)
    return [
        one.name
        for index in indexes
        if index
        for one in index.definitions
        if one.is_test or one.name[:4] == "test"
    ]


def _cargo(command: CargoTest, scope: Scope) -> Resolution:
    """The crate is there, the test binaries it names are there, and each filter matches a test that runs."""
    crates = [crate for tree in scope.trees for crate in _crates(tree, command.package)]
    if not crates:
        return _no_crate(command, scope)
    for target in command.targets:
        if not any(_target(tree, folder, target) for tree, folder in crates):
            files = [
                file for tree, folder in crates for file in _below(tree, folder) if "/tests/" in f"/{file}"
            ]
            near = crates[0][0].nearest(
                target, [file.rpartition("/")[2].removesuffix(".rs") for file in files]
            )
            return missing(
                "test-not-found", f"no test binary {target!r} in {command.package}", did_you_mean(near)
            )
    results = [_filter(one, command, crates) for one in command.filters]
    return next((result for result in results if result is not RESOLVED), RESOLVED)


def _no_crate(command: CargoTest, scope: Scope) -> Resolution:
    known = {name: tree for tree in scope.trees for name in _packages(tree)}
    local = {name for tree in scope.local for name in _packages(tree)}
    if command.package and local and scope.owns():
        near = next(iter(known.values())).nearest(command.package, sorted(known))[:2]
        return missing(
            "test-not-found", f"no crate {command.package!r} in this workspace", did_you_mean(near)
        )
    return unresolved(f"crate {command.package or 'under test'!r} is in no tree that was given")


def _packages(tree: SourceTree) -> dict[str, str]:
    """Crates of a tree, package name -> folder; a folder with ``src`` and no manifest goes by its name."""
    import re

    found: dict[str, str] = {}
    folders = {
        file.rpartition("src/")[0].rstrip("/")
        for file in tree.files()
        if "src/" in file and file.endswith(".rs")
    }
    for folder in sorted(folders):
        manifest = tree.read_bytes(f"{folder}/Cargo.toml" if folder else "Cargo.toml")
        match = re.search(rb'^\s*name\s*=\s*"([^"]+)"', manifest, re.MULTILINE) if manifest else None
        name = match[1].decode("utf-8", "replace") if match else folder.rpartition("/")[2]
        found.setdefault(name, folder)
    return found


def _crates(tree: SourceTree, package: str) -> Iterator[tuple[SourceTree, str]]:
    packages = _packages(tree)
    if package in packages:
        yield tree, packages[package]
    elif not package and packages:
        yield tree, ""


def _below(tree: SourceTree, folder: str) -> list[str]:
    return [
        file
        for file in tree.files()
        if file.endswith(".rs") and (not folder or file.startswith(folder + "/"))
    ]


def _target(tree: SourceTree, folder: str, target: str) -> bool:
    base = f"{folder}/" if folder else ""
    if any(tree.locate(f"{base}tests/{target}{tail}") for tail in (".rs", "/main.rs")):
        return True
    manifest = tree.read_bytes(f"{base}Cargo.toml") or b""
    return f'"{target}"'.encode() in manifest or (not folder and bool(tree.find_file(f"{target}.rs")))


def _filter(wanted: str, command: CargoTest, crates: list[tuple[SourceTree, str]]) -> Resolution:
    """A filter is a substring of ``module::path::test_name``; its last part must meet a test or module."""
    parts = [part for part in wanted.split("::") if part]
    ignored: list[str] = []
    for tree, folder in crates:
        for file, index in _mentioning(tree, folder, parts):
            for one in index.definitions:
                if one.is_test and _path_has(one, file, parts):
                    if "ignored" not in one.marks or command.runs_ignored:
                        return RESOLVED
                    ignored.append(one.name)
    if ignored:
        hint = "run it with -- --ignored, or do not count it as evidence"
        return missing("test-ignored", f"every test that {wanted!r} matches is #[ignore]d", hint)
    tests = [name for tree, folder in crates for name in _test_names_of(tree, folder)]
    near = crates[0][0].nearest(parts[-1] if parts else wanted, tests)[:3] if tests else []
    return missing(
        "test-not-found",
        f"no #[test] matches {wanted!r} in {command.package or 'the crate'}",
        did_you_mean(near),
    )


def _mentioning(tree: SourceTree, folder: str, parts: list[str]) -> Iterator[tuple[str, SymbolIndex]]:
    """Files whose path or text holds the filter's last part, and those they are made of."""
    last = parts[-1].encode() if parts else b""
    for file in _below(tree, folder):
        if last.decode() in file or last in (tree.read_bytes(file) or b""):
            yield from tree.parts(file)


def _path_has(one: Definition, file: str, parts: list[str]) -> bool:
    """Whether ``parts`` may stand in the test's path.

    Where a file sits in the module tree can be changed by ``#[path]`` and ``include!``, so only what is
    certain is asked: the last part is in the test's name or in a module around it.
    """
    around = [*file.removesuffix(".rs").split("/"), *one.parents, one.name]
    return not parts or any(parts[-1] in place for place in around)


def _test_names_of(tree: SourceTree, folder: str) -> list[str]:
    indexes = [tree.index(file) for file in _below(tree, folder)[:3000]]
    return [one.name for index in indexes if index for one in index.definitions if one.is_test]
