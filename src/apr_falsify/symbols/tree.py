"""A tree of source files: reads named files, follows what they pull in, and finds a name elsewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from apr_falsify.symbols.index import Definition, SymbolIndex
from apr_falsify.symbols.listing import INDEXERS, Listing
from apr_falsify.symbols.store import SourceStore

if TYPE_CHECKING:
    from apr_falsify.symbols.pytest_items import PythonItems
    from apr_falsify.symbols.rust_outline import Outline
    from apr_falsify.symbols.vocabulary import Vocabulary

MOST_BYTES = 4 * 2**20
"""Of a source file: a larger one is data that a program wrote, and is not read."""


def build_index(suffix: str, source: bytes) -> SymbolIndex:
    """Index one file by its suffix. The parsers are imported only when a file needs them."""
    if INDEXERS[suffix] == "python":
        from apr_falsify.symbols.python import index_python

        return index_python(source)
    from apr_falsify.symbols.rust import index_rust

    return index_rust(source)


class SourceTree:
    """One root directory. Nothing outside it is ever read, whatever a contract says.

    ``store`` keeps what was read by content, between trees and runs.
    """

    def __init__(self, root: Path, name: str = "", store: SourceStore | None = None) -> None:
        self.root = root.resolve()
        self.name = name
        self.store = store or SourceStore()
        self._indexes: dict[str, SymbolIndex | None] = {}
        self._outlines: dict[str, Outline | None] = {}
        self._listing: Listing | None = None
        self._exists: dict[str, Path | None] = {}
        self._packages: dict[str, str] = {}
        self._vocabulary: Vocabulary | None = None
        self.memory: dict[str, object] = {}
        """What others worked out of the whole tree, by their own names for it."""
        # what answers rested on since they were last cleared: files looked into, and the whole listing
        self.touched: set[str] = set()
        self.walked = False
        self.is_matched = False
        """Whether a pattern was matched against names of any kind, which nothing keeps."""

    def locate(self, relative: str) -> Path | None:
        """Return the existing path for ``relative``, or None; never one outside the root."""
        self.touched.add(relative)
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

    def has(self, relative: str) -> bool:
        """Whether a file is in the tree, where the whole of it is looked at anyway."""
        return relative in self.listing or self.locate(relative) is not None

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
        suffix = path.suffix
        if source is None:
            return None
        found: SymbolIndex = self.store.get(suffix, source, lambda content: build_index(suffix, content))
        return found

    def items(self, relative: str) -> PythonItems:
        """The tests that a Python file holds; none where it cannot be read."""
        from apr_falsify.symbols.pytest_items import PythonItems, read_items

        source = self.read_bytes(relative)
        if source is None:
            return PythonItems(is_open=True)
        found: PythonItems = self.store.get("items", source, read_items)
        return found

    def outline(self, relative: str) -> Outline | None:
        """What a Rust file holds for its crate, or None where it cannot be read or is too large."""
        if relative not in self._outlines:
            from apr_falsify.symbols.rust_outline import outline_rust

            source = self.read_bytes(relative)
            self._outlines[relative] = (
                None if source is None else self.store.get("outline", source, outline_rust)
            )
        return self._outlines[relative]

    def read_outlines(self, files: list[str]) -> None:
        """Read many outlines at once, before they are requested."""
        from apr_falsify.symbols.rust_outline import outline_rust
        from apr_falsify.symbols.store import thaw

        wanted = {f"{self.root}/{file}": file for file in files if file not in self._outlines}
        for path, key in self.store.prepare("outline", list(wanted), outline_rust, MOST_BYTES):
            self._outlines[wanted[path]] = thaw(self.store.known[key])

    def read_bytes(self, relative: str) -> bytes | None:
        """A file's bytes, or None where it cannot be read or is too large to be a source file."""
        path = self.locate(relative)
        try:
            if path is None or path.stat().st_size > MOST_BYTES:
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
            return  # nearly every file, for every name cited
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

    @property
    def listing(self) -> Listing:
        """Every file that a whole look at the tree sees."""
        self.walked = True
        if self._listing is None:
            self._listing = self.store.listing(self.root)
        return self._listing

    def files(self) -> list[str]:
        """Every Python and Rust file of the tree, links not followed."""
        return self.listing.sources

    def below(self, start: str) -> list[str]:
        """Python and Rust files whose path begins with ``start``."""
        return self.listing.below(start)

    def named_files(self, name: str) -> list[str]:
        """Sources and settings of the tree with that last path component."""
        return self.listing.named(name)

    def find(self, name: str, *, under: str = "", limit: int = 20) -> list[tuple[str, Definition]]:
        """Where in the whole tree ``name`` is defined."""
        found: list[tuple[str, Definition]] = []
        for file in self.vocabulary.files_with(name):
            if file.startswith(under):
                index = self.index(file)
                found.extend((file, one) for one in (index.named(name) if index else ()))
                if len(found) >= limit:
                    break
        return found

    def find_file(self, name: str) -> list[str]:
        """Source files of the tree with that last path component."""
        return [file for file in self.named_files(name) if os.path.splitext(file)[1] in INDEXERS]

    @property
    def vocabulary(self) -> Vocabulary:
        """The words of the whole tree."""
        from apr_falsify.symbols.vocabulary import Vocabulary

        files = self.files()
        if self._vocabulary is None:
            self._vocabulary = Vocabulary(self.root, files, self.store)
        return self._vocabulary

    def nearest(self, name: str, candidates: list[str], *, limit: int = 4) -> list[str]:
        """``candidates`` most like ``name``, see :meth:`Vocabulary.nearest`."""
        return self.vocabulary.nearest(name, candidates, limit=limit)
