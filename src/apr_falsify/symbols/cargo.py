"""What Cargo makes of a tree: its packages, the targets of each, their features; read, nothing is run.

Rules: the Cargo book, "Cargo Targets" (target auto-discovery), "Features", "Workspaces".
"""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from apr_falsify.reading import table
from apr_falsify.symbols.cargo_features import feature_table, requested_features, texts_of, wanted_of
from apr_falsify.symbols.tree import SourceTree

MANIFEST = "Cargo.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class CargoTarget:
    """One thing that ``cargo test`` may build and run.

    Attributes:
        kind: lib, bin, test, example or bench.
        name: as ``--test NAME`` and the like name it.
        root: its first file, relative to the tree.
        is_tested: whether plain ``cargo test`` runs its tests.
        has_harness: whether the language's own test runner is linked, so that ``#[test]`` counts.
        has_doctests: whether code in its documentation is tested.
        needs: features without which cargo leaves it out.

    """

    kind: str
    name: str
    root: str
    is_tested: bool
    has_harness: bool = True
    has_doctests: bool = True
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One package.

    Attributes:
        name: as ``-p`` names it.
        folder: relative to the tree, empty for its root.
        targets: what it builds.
        features: its feature table, with the implicit features of optional dependencies; ``None`` where there
            is no manifest to say.
        forced: features that it enables itself by depending on itself.
        wants: packages that it depends on, with the features that it asks, or may ask, of each.
        why_no_others: why files beside those of ``targets`` make no target; empty where they would.

    """

    name: str
    folder: str
    targets: tuple[CargoTarget, ...]
    features: Mapping[str, tuple[str, ...]] | None = None
    forced: tuple[str, ...] = ()
    wants: tuple[tuple[str, tuple[str, ...]], ...] = ()
    why_no_others: str = ""

    def path(self, relative: str) -> str:
        """A path within the package, relative to the tree."""
        return f"{self.folder}/{relative}" if self.folder else relative

    def enabled(self, named: Iterable[str], *, default: bool) -> frozenset[str]:
        """Return the features that are on when these are named; those of other packages left out."""
        table_ = self.features or {}
        pending = [*named, *self.forced, *(("default",) if default else ())]
        on: set[str] = set()
        while pending:
            name = pending.pop().strip()
            own, slash, _ = name.partition("/")
            if slash and own.replace("-", "_") == self.name.replace("-", "_"):
                name = name.partition("/")[2]
            elif slash and own.endswith("?"):
                continue
            elif slash:
                name = own
            if name and not name.startswith("dep:") and name not in on:
                on.add(name)
                pending.extend(table_.get(name, ()))
        return frozenset(on)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """What could not be read: where, and why; ``stops`` tells whether cargo goes no further there."""

    where: str
    why: str
    stops: bool = True


@dataclass(slots=True, kw_only=True)
class Workspace:
    """The packages of a tree.

    Attributes:
        packages: in the order of their folders.
        members: folder of a workspace -> the folders of its members, those it names as default apart.
        defaults: folder of a workspace -> folders of its default members.
        shared: package -> features that the workspace asks of it for those members that depend on it.
        unread: manifests that cannot be read, and members that are not there.

    """

    packages: list[Package] = field(default_factory=list)
    members: dict[str, list[str]] = field(default_factory=dict)
    defaults: dict[str, list[str]] = field(default_factory=dict)
    shared: dict[str, set[str]] = field(default_factory=dict)
    unread: list[Unread] = field(default_factory=list)
    _asked: dict[frozenset[str], dict[str, set[str]]] = field(default_factory=dict)

    def chosen(self, folder: str) -> list[Package]:
        """Packages that cargo tests in a folder where no package is named."""
        own = [one for one in self.packages if one.folder == folder]
        around = [one for one in self.packages if _is_in(folder, one.folder)]
        wanted = self.defaults.get(folder)
        if wanted is None and own:
            return own
        if wanted is None and folder in self.members:
            wanted = self.members[folder]
        if wanted is not None:
            return [one for one in self.packages if one.folder in wanted]
        if around:
            return [max(around, key=lambda one: len(one.folder))]
        return [one for one in self.packages if _is_in(one.folder, folder)]

    def whole(self, folder: str) -> list[Package]:
        """Packages of the workspace around a folder: its members, and what they depend on within it."""
        roots = [one for one in self.members if _is_in(folder, one)]
        if not roots:
            return self.packages
        root = max(roots, key=len)
        listed = [one for one in self.packages if one.folder in self.members[root]]
        needed = self.asked(frozenset(one.name for one in listed))
        others = [one for one in self.packages if one.name in needed and _is_in(one.folder, root)]
        return list({one.folder: one for one in (*listed, *others)}.values())

    def unread_around(self, package: Package) -> list[Unread]:
        """Manifests around a package that cargo stops at."""
        folders = ((one, one.where.rpartition("/")[0]) for one in self.unread)
        return [one for one, folder in folders if _is_in(package.folder, folder)]

    def asked(self, chosen: frozenset[str]) -> Mapping[str, set[str]]:
        """Features by package that others ask of it, of those that are built where these are tested."""
        if chosen not in self._asked:
            by_name = {one.name: one for one in self.packages}
            found: dict[str, set[str]] = {}
            pending, seen = [*chosen], set(chosen)
            while pending:
                own = by_name.get(pending.pop())
                for other, features in own.wants if own else ():
                    if own and other != own.name:
                        found.setdefault(other, set()).update(features, self.shared.get(other, ()))
                    pending += [] if other in seen else [other]
                    seen.add(other)
            self._asked[chosen] = found
        return self._asked[chosen]

    def around(self, file: str) -> Package | None:
        """Return the package that a file is of: the innermost whose folder holds it."""
        found = [one for one in self.packages if _is_in(file.rpartition("/")[0], one.folder)]
        return max(found, key=lambda one: len(one.folder), default=None)

    def named(self, pattern: str) -> list[Package]:
        """Packages that ``-p`` means: a name, a pattern, ``name@1.0``, or an id that ends in it."""
        name = pattern.rpartition("#")[2].rpartition("/")[2].partition("@")[0].partition(":")[0]
        exact = [one for one in self.packages if one.name == name]
        return exact or [
            one
            for one in self.packages
            if fnmatch.fnmatchcase(one.name, name) or one.name.replace("_", "-") == name.replace("_", "-")
        ]


def _is_in(folder: str, outer: str) -> bool:
    return not outer or folder == outer or folder.startswith(f"{outer}/")


def read_workspace(tree: SourceTree) -> Workspace:
    """Read every manifest of a tree; a folder with ``src`` and without one is a package by its name."""
    workspace = Workspace()
    folders = [file.rpartition("/")[0] for file in tree.named_files(MANIFEST)]
    for folder in sorted(folders):
        manifest = _manifest(tree, folder, workspace)
        if manifest is not None:
            _take(tree, folder, manifest, workspace)
    known = {one.folder for one in workspace.packages} | set(folders)
    for folder in _folders_of_sources(tree):
        if folder not in known:
            workspace.packages.append(_bare(tree, folder))
    workspace.packages.sort(key=lambda one: one.folder)
    return workspace


def _folders_of_sources(tree: SourceTree) -> list[str]:
    found = {
        f"/{file}".rpartition("/src/")[0].lstrip("/")
        for file in tree.files()
        if file.endswith(".rs") and "/src/" in f"/{file}"
    }
    return sorted(found)


def _bare(tree: SourceTree, folder: str) -> Package:
    name = folder.rpartition("/")[2] or tree.root.name
    targets = tuple(_targets(tree, folder, name, {}))
    return Package(name=name, folder=folder, targets=targets)


def _manifest(tree: SourceTree, folder: str, workspace: Workspace) -> dict[str, Any] | None:
    where = f"{folder}/{MANIFEST}" if folder else MANIFEST
    raw = tree.read_bytes(where)
    try:
        return tomllib.loads((raw or b"").decode("utf-8"))
    except (ValueError, RecursionError) as error:
        workspace.unread.append(Unread(where=where, why=f"it does not parse: {error}"))
        return None


def _take(tree: SourceTree, folder: str, manifest: dict[str, Any], workspace: Workspace) -> None:
    if isinstance(manifest.get("workspace"), dict):
        _take_workspace(tree, folder, manifest["workspace"], workspace)
        for other, features in requested_features(manifest["workspace"]):
            workspace.shared.setdefault(other, set()).update(features)
    package = manifest.get("package")
    name = package.get("name") if isinstance(package, dict) else None
    if isinstance(name, str):
        workspace.packages.append(
            Package(
                name=name,
                folder=folder,
                targets=tuple(_targets(tree, folder, name, manifest)),
                features=feature_table(manifest),
                forced=tuple(
                    one for other, asked in requested_features(manifest) if other == name for one in asked
                ),
                wants=tuple(wanted_of(manifest)),
                why_no_others=_why_no_others(manifest),
            )
        )


def _take_workspace(tree: SourceTree, folder: str, said: dict[str, Any], workspace: Workspace) -> None:
    excluded = set(texts_of(said.get("exclude")))
    found: list[str] = [folder]
    for member in texts_of(said.get("members")):
        places = [one for one in _folders_like(tree, folder, member) if one not in excluded]
        if not places:
            where = f"{folder}/{MANIFEST}" if folder else MANIFEST
            why = f"its member {member!r} has no {MANIFEST}, and cargo stops there"
            if not any(sign in member for sign in "*?["):
                workspace.unread.append(Unread(where=where, why=why))
        found.extend(places)
    workspace.members[folder] = found
    defaults = texts_of(said.get("default-members"))
    if defaults:
        workspace.defaults[folder] = [one for name in defaults for one in _folders_like(tree, folder, name)]


def _folders_like(tree: SourceTree, folder: str, member: str) -> list[str]:
    member = member.removeprefix("./").strip("/")
    whole = (f"{folder}/{member}" if folder else member) if member != "." else folder
    folders = [file.rpartition("/")[0] for file in tree.named_files(MANIFEST)]
    if any(sign in member for sign in "*?["):
        return [
            one for one in folders if fnmatch.fnmatchcase(one, whole) and one.count("/") == whole.count("/")
        ]
    return [one for one in folders if one == whole]


def _why_no_others(manifest: dict[str, Any]) -> str:
    package = table(manifest, "package")
    if package.get("autotests") is False:
        return "autotests = false"
    if str(package.get("edition", "2015")) == "2015" and "autotests" not in package and manifest.get("test"):
        return "edition 2015 with a [[test]] of its own finds no others"
    return ""


_AUTO = (
    ("bin", "autobins", "src/bin"),
    ("test", "autotests", "tests"),
    ("example", "autoexamples", "examples"),
    ("bench", "autobenches", "benches"),
)


def _targets(tree: SourceTree, folder: str, name: str, manifest: dict[str, Any]) -> Iterator[CargoTarget]:
    package = table(manifest, "package")
    base = f"{folder}/" if folder else ""
    yield from _library(tree, base, name, table(manifest, "lib"))
    own = _entry(manifest, "bin", name)
    if package.get("autobins") is not False and not _is_main_of_another(manifest, name):
        yield from _stated(tree, base, "bin", {"name": name, "path": "src/main.rs"} | own)
    for kind, switch, place in _AUTO:
        yield from _of_kind(
            tree, base, kind, place, manifest, name, auto=_is_auto(package, switch, kind, manifest)
        )


def _is_main_of_another(manifest: dict[str, Any], name: str) -> bool:
    """Whether ``src/main.rs`` is given to a program of another name."""
    others = (one for one in _tables(manifest, "bin") if one.get("name") != name)
    return any(one.get("path") == "src/main.rs" for one in others)


def _entry(manifest: dict[str, Any], kind: str, name: str) -> dict[str, Any]:
    return next((one for one in _tables(manifest, kind) if one.get("name") == name), {})


def _tables(manifest: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    value = manifest.get(kind)
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _is_auto(package: Mapping[str, Any], switch: str, kind: str, manifest: dict[str, Any]) -> bool:
    if switch in package:
        return package[switch] is not False
    return str(package.get("edition", "2015")) != "2015" or not _tables(manifest, kind)


def _library(tree: SourceTree, base: str, name: str, said: Mapping[str, Any]) -> Iterator[CargoTarget]:
    path = said.get("path")
    root = f"{base}{path if isinstance(path, str) else 'src/lib.rs'}"
    if tree.has(root):
        yield CargoTarget(
            kind="lib",
            name=str(said.get("name", name)).replace("-", "_"),
            root=root,
            is_tested=said.get("test", True) is not False,
            has_harness=said.get("harness", True) is not False,
            has_doctests=said.get("doctest", True) is not False,
        )


def _of_kind(
    tree: SourceTree, base: str, kind: str, place: str, manifest: dict[str, Any], own: str, *, auto: bool
) -> Iterator[CargoTarget]:
    found = _discovered(tree, base, place)
    stated = [one for one in _tables(manifest, kind) if isinstance(one.get("name"), str)]
    taken: set[str] = set()
    for said in stated:
        name = said["name"]
        path = said.get("path") or found.get(name, f"{base}{place}/{name}.rs").removeprefix(base)
        taken.update((name, f"{base}{path}"))
        if not (kind == "bin" and name == own and path == "src/main.rs"):
            yield from _stated(tree, base, kind, said | {"path": path})
    for name, root in found.items() if auto else ():
        if name not in taken and root not in taken:
            yield from _stated(tree, base, kind, {"name": name, "path": root.removeprefix(base)})


def _discovered(tree: SourceTree, base: str, place: str) -> dict[str, str]:
    """``tests/a.rs`` and ``tests/b/main.rs``, by the names of their targets."""
    start = f"{base}{place}/"
    found: dict[str, str] = {}
    for file in tree.below(start):
        rest = file.removeprefix(start)
        if rest.endswith(".rs") and "/" not in rest:
            found[rest.removesuffix(".rs")] = file
        elif rest.count("/") == 1 and rest.endswith("/main.rs"):
            found[rest.partition("/")[0]] = file
    return found


def _stated(tree: SourceTree, base: str, kind: str, said: Mapping[str, Any]) -> Iterator[CargoTarget]:
    root = f"{base}{re.sub(r'^[.]/', '', str(said['path']))}"
    if tree.has(root):
        yield CargoTarget(
            kind=kind,
            name=str(said["name"]),
            root=root,
            is_tested=bool(said.get("test", kind in ("bin", "test"))),
            has_harness=said.get("harness", True) is not False,
            needs=tuple(texts_of(said.get("required-features"))),
        )
