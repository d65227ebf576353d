"""Which trees a contract's names are looked up in, and how sure one may be that a missing one is missing."""

from __future__ import annotations

import functools
import glob as globbing
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from apr_falsify.contracts.names import PathName
from apr_falsify.symbols.store import SourceStore
from apr_falsify.symbols.tree import SourceTree
from apr_falsify.symbols.vocabulary import close_matches

# a directory that holds one of these is a whole project: what it lacks does not exist
_MARKERS = (".git", "pyproject.toml", "Cargo.toml", "setup.py", "setup.cfg", "package.json", "go.mod")


_LAID_OUT = frozenset(
    ("src", "crates", "tests", "contracts", "lib", "scripts", "docs", "benches", "examples", "lean", "book")
)
"""Folders that stand at the root of a repository: what stands before one is the repository's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPath:
    """An existing file or directory: its tree and its path in it."""

    tree: SourceTree
    relative: str
    is_directory: bool

    @property
    def shown(self) -> str:
        """The path as a reader would cite it."""
        return f"{self.tree.name}:{self.relative}" if self.tree.name else self.relative


class Roots:
    """All trees of a run: the contracts' own projects, and the named sources given on the command line."""

    def __init__(self, sources: dict[str, Path], store: SourceStore | None = None) -> None:
        self._store = store or SourceStore()
        self.sources = {name: SourceTree(root, name, self._store) for name, root in sources.items()}
        self._local: dict[Path, SourceTree] = {}
        self._around: dict[str, str] = {}
        self._chains: dict[str, tuple[SourceTree, ...]] = {}
        self.found: dict[str, dict[PathName, tuple[FoundPath, ...]]] = {}

    def local(self, folder: str) -> tuple[SourceTree, ...]:
        """Trees a contract in ``folder`` is part of: its nearest project, then the repository around it."""
        if folder not in self._chains:
            self._chains[folder] = tuple(self._tree(root) for root in _projects(Path(folder)))
        return self._chains[folder]

    def around(self, folder: str) -> str:
        """Identity of the projects that a contract in ``folder`` is of, and of which are marked as one."""
        if folder not in self._around:
            known = (f"{int(_is_project(root))}{root}" for root in _projects(Path(folder or ".")))
            self._around[folder] = "\0".join(known)
        return self._around[folder]

    def _tree(self, root: Path) -> SourceTree:
        if root not in self._local:
            self._local[root] = SourceTree(root, "", self._store)
        return self._local[root]

    def all_trees(self) -> list[SourceTree]:
        """Every tree of the run."""
        return [*self._local.values(), *self.sources.values()]


class SearchScope:
    """What one contract sees: its own trees, then the named sources."""

    def __init__(self, contract: Path, roots: Roots) -> None:
        folder = os.path.dirname(contract)
        self._folder, self._contract = folder, contract
        self.sources = roots.sources
        self.local = roots.local(folder)
        self.trees = (*self.local, *roots.sources.values())
        self._found = roots.found.setdefault(folder, {})
        self._cites_its_own = False

    def owns(self) -> bool:
        """Whether the contract's own tree is there: a project's marker, or a file of it that it cites."""
        return self._cites_its_own or any(_is_project(tree.root) for tree in self.local)

    def find(self, path: PathName) -> tuple[FoundPath, ...]:
        """Existing files a cited path stands for; a pattern may stand for several."""
        found = self._found.get(path)
        if found is None:
            inner = replace(path, path=f"{path.within}/{path.path}", within="") if path.within else None
            found = self._found[path] = tuple((inner and self._find(inner)) or self._find(path))
        if not found:
            self._note_absent(path)
        for one in found:
            one.tree.touched.add(one.relative)
            self._cites_its_own |= not one.tree.name
        return found

    def _note_absent(self, path: PathName) -> None:
        """What is not there may come to be: an answer rests on its absence."""
        for tree in self.local:
            tree.touched.update(_bases(Path(self._folder), tree.root, path))
        for tree in self.sources.values():
            tree.touched.add(path.path)

    def _find(self, path: PathName) -> list[FoundPath]:
        if path.source:
            tree = self.sources.get(path.source)
            return _in_source(tree, path.path) if tree else []
        for tree in self.local:
            for base in _bases(Path(self._folder), tree.root, path):
                found = _in_tree(tree, base)
                if found:
                    return found
        for tree in self.sources.values():
            found = _in_source(tree, path.path)
            if found:
                return found
        return []

    def surely_missing(self, path: PathName, *, role: str) -> bool:
        """Whether a path that was not found is certainly missing, rather than of a tree not given."""
        if path.source:
            return path.source in self.sources
        if path.within:  # from a directory that only the command's own runner knows
            return any(tree.locate(path.within) for tree in self.local)
        top = path.path.split("/")[0]
        repository = self.repository_of(path)
        if repository:
            return any(_is_named(tree, repository) for tree in self.sources.values())
        if self.owns():
            return role != "location" or any(tree.locate(top) for tree in self.local)
        folder = os.path.dirname(path.path)
        return bool(folder) and any(tree.locate(folder) for tree in self.trees)

    def repository_of(self, path: PathName) -> str:
        """The other repository that a path begins with: ``realizar/src/x.rs``, ``../realizar/src/x.rs``."""
        parts = [part for part in path.path.split("/") if part != ".."]
        if path.source or path.path.startswith(("/", "~")) or len(parts) < 3 or parts[1] not in _LAID_OUT:
            return ""
        is_here = not path.escapes and any((tree.root / parts[0]).exists() for tree in self.local)
        return "" if is_here or parts[0] in _LAID_OUT else parts[0]

    def elsewhere(self, path: PathName) -> str:
        """Where a source that was given has a file which is cited as seen from one of its crates."""
        for tree in self.sources.values() if "/" in path.path and not path.escapes else ():
            for file in tree.find_file(path.path.rpartition("/")[2]):
                if file.endswith(f"/{path.path}"):
                    return f"{tree.name}:{file}"
        return ""

    def like(self, path: PathName) -> list[str]:
        """Existing paths a missing one may have meant: the same file elsewhere, else a near spelling."""
        named = self.sources.get(path.source)
        found: list[str] = []
        for tree in (named,) if named else self.trees:
            same = tree.find_file(path.path.rpartition("/")[2])
            folder = tree.locate(os.path.dirname(path.path) or ".")
            beside = _listing(folder, tree) if folder and folder.is_dir() else []
            near = close_matches(path.path, [*beside, *tree.files()], 2, 0.75)
            prefix = f"{tree.name}:" if tree.name else ""
            found.extend(prefix + one for one in [*same[:2], *near] if tree.root / one != self._contract)
        return list(dict.fromkeys(found))[:3]


@functools.cache
def _is_project(root: Path) -> bool:
    return any((root / marker).exists() for marker in _MARKERS)


def _listing(folder: Path, tree: SourceTree) -> list[str]:
    try:
        return [tree.relative(folder / name) for name in sorted(os.listdir(folder))[:2000]]
    except OSError:
        return []


def project_of(folder: Path) -> Path:
    """Return the root of the project that a contract in ``folder`` is of."""
    return _projects(folder)[0]


def repository_around(folder: Path) -> Path:
    """Return the git repository that a folder is in, else its project, else the folder itself."""
    folder = folder.resolve()
    ancestors = [folder, *folder.parents]
    project = next((one for one in ancestors if _is_project(one)), folder)
    return next((one for one in ancestors if (one / ".git").exists()), project)


def _projects(folder: Path) -> list[Path]:
    """The nearest project around ``folder`` and the git repository around that; else a plain guess."""
    folder = folder.resolve()
    ancestors = [folder, *folder.parents]
    nearest = next((one for one in ancestors if _is_project(one)), None)
    outer = next((one for one in ancestors if (one / ".git").exists()), None)
    if nearest is None:
        named = next((one for one in ancestors if one.name == "contracts"), None)
        nearest = named.parent if named else _working_directory(folder)
    return [nearest] if outer is None or outer == nearest else [nearest, outer]


def _working_directory(folder: Path) -> Path:
    here = Path.cwd()
    return here if here == folder or here in folder.parents else folder


def _bases(folder: Path, root: Path, path: PathName) -> list[str]:
    """``path`` as seen from the root, then from each directory between the root and the contract."""
    if path.path.startswith(("/", "~")):
        return []
    try:
        folder = folder.resolve().relative_to(root)
    except ValueError:
        return [] if path.escapes else [path.path]
    steps = ["", *("/".join(folder.parts[:count]) for count in range(len(folder.parts), 0, -1))]
    if path.escapes:  # only ever relative to the contract's own directory, and only if it stays inside
        steps = steps[1:2]
    joined = [os.path.normpath(os.path.join(step, path.path)) for step in steps]
    return [one for one in joined if not one.startswith("..")]


def _names_of(tree: SourceTree) -> set[str]:
    """Names that a tree goes by: that it was given under, its folder's, its crate's."""
    manifest = tree.read_bytes("Cargo.toml") or b""
    crate = re.search(rb'^\s*name\s*=\s*"([^"]+)"', manifest, re.MULTILINE)
    names = (tree.name, tree.root.name, crate[1].decode("utf-8", "replace") if crate else "")
    return {name.replace("_", "-") for name in names if name}


def _is_named(tree: SourceTree, name: str) -> bool:
    return name.replace("_", "-") in _names_of(tree)


def _in_source(tree: SourceTree, path: str) -> list[FoundPath]:
    """Find a path in a source that was given, also where it begins with the source's own folder."""
    parts = path.split("/")
    found = [] if ".." in parts or path.startswith(("/", "~")) else _in_tree(tree, path)
    if found or path.startswith(("/", "~")):
        return found
    own = [at for at, part in enumerate(parts[:3]) if part not in ("..", "src") and _is_named(tree, part)]
    inner = "/".join(parts[own[0] + 1 :]) if own else ""
    return _in_tree(tree, inner) if inner and ".." not in inner.split("/") else []


def _in_tree(tree: SourceTree, relative: str) -> list[FoundPath]:
    if any(char in relative for char in "*?"):
        tree.is_matched = True
        matches = globbing.glob(relative, root_dir=tree.root, recursive=True)[:200]
        return [found for match in sorted(matches) for found in _in_tree(tree, globbing.escape(match))]
    path = tree.locate(relative)
    if path is None:
        return []
    return [
        FoundPath(
            tree=tree, relative=os.path.normpath(relative).replace(os.sep, "/"), is_directory=path.is_dir()
        )
    ]
