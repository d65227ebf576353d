"""A tree of source files: reads named files, follows what they pull in, and finds a name elsewhere."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from apr_falsify.symbols.index import Definition, SymbolIndex

INDEXERS = {".py": "python", ".pyi": "python", ".rs": "rust"}
# never descended into when a name is looked for in the whole tree: not the project's own sources
_NOT_SOURCES = frozenset(
    """
    .git .hg .venv venv .tox .nox node_modules target __pycache__ site-packages .mypy_cache
    .ruff_cache
    """.split()  # noqa: SIM905 - words read best as words
)
_MOST_FILES = 60_000
_MOST_BYTES = 4 * 2**20
_DEFINES = re.compile(
    rb"\b(?:fn|def|class|struct|enum|trait|const|static|type|macro_rules!)\s+(?:ref\s+|mut\s+)?([A-Za-z_]\w*)"
)

Load = Callable[[str, bytes], SymbolIndex]


def build_index(suffix: str, source: bytes) -> SymbolIndex:
    """Index one file by its suffix. The parsers are imported only when a file needs them."""
    if INDEXERS[suffix] == "python":
        from apr_falsify.symbols.python import index_python

        return index_python(source)
    from apr_falsify.symbols.rust import index_rust

    return index_rust(source)


class SourceTree:
    """One root directory. Nothing outside it is ever read, whatever a contract says.

    ``load`` turns (suffix, bytes) into an index; a caching one may be handed in.
    """

    def __init__(self, root: Path, name: str = "", load: Load = build_index) -> None:
        self.root = root.resolve()
        self.name = name
        self._load = load
        self._indexes: dict[str, SymbolIndex | None] = {}
        self._files: list[str] | None = None
        self._texts: dict[str, bytes] = {}
        self._frequency: Counter[str] | None = None
        self._exists: dict[str, Path | None] = {}
        self._packages: dict[str, str] = {}
        # what answers rested on since they were last cleared: files looked into, and the whole listing
        self.touched: set[str] = set()
        self.walked = False

    def locate(self, relative: str) -> Path | None:
        """Return the existing path for ``relative``, or None; never one outside the root."""
        if relative not in self._exists:
            self._exists[relative] = self._locate(relative)
        return self._exists[relative]

    def _locate(self, relative: str) -> Path | None:
        try:
            path = (self.root / relative).resolve()
            inside = path == self.root or self.root in path.parents
            return path if inside and path.exists() else None
        except (OSError, ValueError, RuntimeError):  # a symlink loop, a NUL, a name too long
            return None

    def relative(self, path: Path) -> str:
        """``path`` as it is written in a contract: relative to the root, with forward slashes."""
        return path.relative_to(self.root).as_posix()

    def index(self, relative: str) -> SymbolIndex | None:
        """Index of one file of the tree, or None where it is no readable Python or Rust file."""
        self.touched.add(relative)
        if relative not in self._indexes:
            self._indexes[relative] = self._read(relative)
        return self._indexes[relative]

    def _read(self, relative: str) -> SymbolIndex | None:
        path = self.locate(relative)
        if path is None or path.suffix not in INDEXERS or not path.is_file():
            return None
        source = self.read_bytes(relative)
        return None if source is None else self._load(path.suffix, source)

    def read_bytes(self, relative: str) -> bytes | None:
        """A file's bytes, or None where it cannot be read or is too large to be a source file."""
        self.touched.add(relative)
        path = self.locate(relative)
        try:
            if path is None or path.stat().st_size > _MOST_BYTES:
                return None
            return path.read_bytes()
        except OSError:
            return None

    def package_of(self, relative: str) -> str:
        """Name of the crate a Rust file is of, by the manifest beside its ``src``; empty if there is none."""
        folder, found, _ = f"/{relative}".rpartition("/src/")
        if not found or not relative.endswith(".rs"):
            return ""
        if folder not in self._packages:
            manifest = self.read_bytes(f"{folder}/Cargo.toml".lstrip("/")) or b""
            match = re.search(rb'^\s*name\s*=\s*"([^"]+)"', manifest, re.MULTILINE)
            self._packages[folder] = match[1].decode("utf-8", "replace") if match else ""
        return self._packages[folder]

    def parts(self, relative: str) -> Iterator[tuple[str, SymbolIndex]]:
        """A file and what it pulls in: itself, ``include!`` files, then child modules, depth first."""
        first = self.index(relative)
        if first is None:
            return
        yield relative, first
        if not first.includes and not first.modules:
            return  # nearly every file, asked for every name cited
        pending = [*self._children(relative, first)[::-1], *self._included(relative, first)[::-1]]
        seen = {relative}
        while pending:
            here = pending.pop()
            index = self.index(here) if here not in seen else None
            seen.add(here)
            if index is None:
                continue
            yield here, index
            pending.extend(reversed([*self._included(here, index), *self._children(here, index)]))

    def _included(self, relative: str, index: SymbolIndex) -> list[str]:
        folder = os.path.dirname(relative)
        return [os.path.normpath(os.path.join(folder, name)) for name in index.includes]

    def _children(self, relative: str, index: SymbolIndex) -> list[str]:
        """Files of ``mod name;``: beside mod.rs, lib.rs and main.rs, else in a folder named for the file."""
        folder, file = os.path.split(relative)
        stem = os.path.splitext(file)[0]
        below = folder if stem in ("mod", "lib", "main") else os.path.join(folder, stem)
        found = []
        for name, path in index.modules:
            places = (
                [os.path.join(folder, path)]
                if path
                else [
                    os.path.join(where, leaf)
                    for where in (below, folder)
                    for leaf in (f"{name}.rs", f"{name}/mod.rs")
                ]
            )
            found.extend([os.path.normpath(place) for place in places if self.locate(place)][:1])
        return found

    def files(self) -> list[str]:
        """Every Python and Rust file of the tree, links not followed."""
        self.walked = True
        if self._files is None:
            self._files = list(self._walk())
        return self._files

    def _walk(self) -> Iterator[str]:
        count = 0
        for folder, names, files in os.walk(self.root):
            names[:] = sorted(name for name in names if name not in _NOT_SOURCES)
            for file in sorted(files):
                if os.path.splitext(file)[1] in INDEXERS:
                    count += 1
                    if count > _MOST_FILES:
                        return
                    yield os.path.relpath(os.path.join(folder, file), self.root).replace(os.sep, "/")

    def _text(self, relative: str) -> bytes:
        if relative not in self._texts:
            self._texts[relative] = self.read_bytes(relative) or b""
        return self._texts[relative]

    def find(self, name: str, *, under: str = "", limit: int = 20) -> list[tuple[str, Definition]]:
        """Where in the whole tree ``name`` is defined."""
        word = re.compile(rb"\b" + re.escape(name.encode()) + rb"\b")
        found: list[tuple[str, Definition]] = []
        for file in self.files():
            if file.startswith(under) and word.search(self._text(file)):
                index = self.index(file)
                found.extend((file, one) for one in (index.named(name) if index else ()))
                if len(found) >= limit:
                    break
        return found

    def find_file(self, name: str) -> list[str]:
        """Files of the tree with that last path component."""
        return [file for file in self.files() if file.rpartition("/")[2] == name]

    def _token_frequency(self) -> Counter[str]:
        if self._frequency is None:
            names = {name for file in self.files() for name in _DEFINES.findall(self._text(file))}
            self._frequency = Counter(token for name in names for token in tokens(name.decode()))
        return self._frequency

    def nearest(self, name: str, candidates: list[str], *, limit: int = 4) -> list[str]:
        """``candidates`` most like ``name``: near spellings first, then those sharing its rarest word.

        A name that was made up shares few letters with what was meant, but its rarest word, rare in the
        whole tree, is the one that tells what it was about.
        """
        spelt = difflib.get_close_matches(name, candidates, n=1, cutoff=0.8)
        frequency = self._token_frequency()
        weight = {token: 1 / math.log(2 + frequency[token]) for token in tokens(name) if len(token) > 1}

        def score(candidate: str) -> tuple[float, float]:
            shared = [weight[token] for token in tokens(candidate) if token in weight]
            return max(shared, default=0.0), difflib.SequenceMatcher(None, name, candidate).ratio()

        scored = sorted(((score(one), one) for one in set(candidates)), reverse=True)
        alike = [one for points, one in scored if points[0] > 0 or points[1] > 0.6]
        return list(dict.fromkeys([*spelt, *alike]))[:limit]


def tokens(name: str) -> set[str]:
    """Words of an identifier: ``parse_stage_list`` and ``ParseStageList`` alike."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)}
