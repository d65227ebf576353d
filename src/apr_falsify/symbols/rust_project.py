"""The Rust tests of a tree: of each package's targets, and those in files that no target reaches."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from dataclasses import dataclass

from apr_falsify.symbols.cargo import MANIFEST, CargoTarget, Package, Unread, Workspace, read_workspace
from apr_falsify.symbols.rust_build import settable_options
from apr_falsify.symbols.rust_crate import Crate, RustTest, read_crate
from apr_falsify.symbols.rust_outline import MacroRules
from apr_falsify.symbols.tree import SourceTree


class Tests:
    """The tests of one target, which are found by a part of their paths."""

    def __init__(self, crate: Crate) -> None:
        self.crate = crate
        self.by_name: dict[str, list[RustTest]] = {}
        self._starts: list[int] = []
        at, lines = 0, []
        for test in crate.tests:
            self.by_name.setdefault(test.name, []).append(test)
            self._starts.append(at)
            lines.append(test.path)
            at += len(test.path) + 1
        self._text = "\n".join(lines)
        self._open = [test for test in crate.tests if test.is_open]

    def holding(self, part: str) -> Iterator[RustTest]:
        """Tests whose path holds ``part``; all where it is empty."""
        if not part:
            yield from self.crate.tests
            return
        at = self._text.find(part) if "\n" not in part else -1
        while at >= 0:
            number = bisect.bisect_right(self._starts, at) - 1
            yield self.crate.tests[number]
            following = self._starts[number + 1] if number + 1 < len(self._starts) else len(self._text)
            at = self._text.find(part, following)

    def leading_to(self, name: str, *, whole: bool) -> Iterator[RustTest]:
        """Tests of unknown cases, one of which ``name`` may be: it begins as a path of theirs ends."""
        for test in self._open:
            heads = [name[: match.start()] for match in re.finditer("::", name)]
            if any(test.path == head if whole else head and test.path.endswith(head) for head in heads):
                yield test


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """A test in a file of a package that none of its targets reaches."""

    name: str
    file: str
    line: int


class RustProject:
    """The packages of a tree and their tests; each is read when it is requested."""

    def __init__(self, tree: SourceTree) -> None:
        self.tree = tree
        self.workspace: Workspace = read_workspace(tree)
        self._settable: tuple[frozenset[str] | None] | None = None
        self._files: dict[str, list[str]] = {}
        self._rules: dict[str, dict[str, list[MacroRules]]] = {}
        self._tests: dict[tuple[str, CargoTarget], Tests] = {}
        self._orphans: dict[str, dict[str, Orphan]] = {}
        self._names: dict[str, list[str]] = {}

    @property
    def settable(self) -> frozenset[str] | None:
        """See :func:`settable_options`."""
        if self._settable is None:
            self._settable = (settable_options(self.tree),)
        return self._settable[0]

    def files_of(self, package: Package) -> list[str]:
        """Rust files below a package's folder that are of no package within it."""
        if package.folder not in self._files:
            inner = [f"{one.folder}/" for one in self.workspace.packages if one.folder != package.folder]
            inner = [one for one in inner if one.startswith(package.path(""))]
            files = (file for file in self.tree.below(package.path("")) if file.endswith(".rs"))
            self._files[package.folder] = [one for one in files if not one.startswith(tuple(inner))]
        return self._files[package.folder]

    def prepare(self, package: Package) -> None:
        """Read all files of a package at once."""
        self.tree.read_outlines(self.files_of(package))

    def unread(self, package: Package) -> list[Unread]:
        """What keeps cargo from building a package: manifests around it, and its own modules."""
        crates = (self.tests(package, target).crate for target in package.targets if target.is_tested)
        own = [one for crate in crates for one in crate.unread if one.stops]
        return [*self.workspace.unread_around(package), *own]

    def rules_of(self, package: Package) -> dict[str, list[MacroRules]]:
        """The macros that a package defines, by name."""
        if package.folder not in self._rules:
            self.prepare(package)
            found: dict[str, list[MacroRules]] = {}
            for file in self.files_of(package):
                outline = self.tree.outline(file)
                for one in outline.rules if outline else ():
                    found.setdefault(one.name, []).append(one)
            self._rules[package.folder] = found
        return self._rules[package.folder]

    def tests(self, package: Package, target: CargoTarget) -> Tests:
        """The tests of one target."""
        key = (package.folder, target)
        if key not in self._tests:
            self._tests[key] = Tests(read_crate(self.tree, target, self.rules_of(package)))
        return self._tests[key]

    def orphans(self, package: Package) -> dict[str, Orphan]:
        """Tests by name in files of a package that no target of it reaches, the first of each name."""
        if package.folder not in self._orphans:
            reached = {file for target in package.targets for file in self.tests(package, target).crate.files}
            found: dict[str, Orphan] = {}
            for file in self.files_of(package):
                outline = self.tree.outline(file) if file not in reached else None
                for one in outline.tests if outline else ():
                    found.setdefault(one.parts[-1], Orphan(name=one.parts[-1], file=file, line=one.line))
            self._orphans[package.folder] = found
        return self._orphans[package.folder]

    def why_not_compiled(self, file: str) -> str:
        """Why no target of its package reaches a file; empty where one does, or where no manifest tells."""
        package = self.workspace.around(file)
        if package is None or package.features is None or file not in self.files_of(package):
            return ""
        if any(file in self.tests(package, target).crate.files for target in package.targets):
            return ""
        if file.startswith(package.path("tests/")) and package.why_no_others:
            return package.why_no_others
        return "no `mod` and no target reaches it, so that it is never compiled"

    def names(self, package: Package) -> list[str]:
        """Names of all tests of a package that surely are there, one list each time."""
        if package.folder not in self._names:
            tests = (one for target in package.targets for one in self.tests(package, target).crate.tests)
            names = dict.fromkeys(one.name for one in tests if not one.unsure)
            self._names[package.folder] = list(names)
        return self._names[package.folder]


def rust_project(tree: SourceTree) -> RustProject:
    """Return the Rust tests of a tree, read once."""
    found = tree.memory.get(MANIFEST)
    if not isinstance(found, RustProject):
        found = tree.memory[MANIFEST] = RustProject(tree)
    tree.walked = True
    return found
