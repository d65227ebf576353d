"""The files of a tree that say what it defines, builds and tests, found in one walk."""

from __future__ import annotations

import os

from apr_falsify.symbols.stamps import Stamps, digest

INDEXERS = {".py": "python", ".pyi": "python", ".rs": "rust"}
"""Suffix of a file whose definitions are read -> its language."""

# what a listing of a tree notes beside its sources: files that decide what is built and collected
_SETTINGS = (".toml", ".cfg", ".ini", ".mk", ".just", ".sh")
_SETTINGS_NAMES = frozenset(("Makefile", "makefile", "GNUmakefile", "justfile", "Justfile", ".justfile"))
# never descended into when a name is looked for in the whole tree: not the project's own sources
_NOT_SOURCES = frozenset(
    """
    .git .hg .venv venv .tox .nox node_modules target __pycache__ site-packages .mypy_cache
    .ruff_cache
    """.split()  # noqa: SIM905 - words read best as words
)
_MOST_FILES = 60_000


def is_listed(path: str) -> bool:
    """Whether a listing notes a file of that name, where the tree has it."""
    name = path.rpartition("/")[2]
    wanted = name.endswith((*INDEXERS, *_SETTINGS)) or name in _SETTINGS_NAMES or path.startswith(".github/")
    return wanted and _NOT_SOURCES.isdisjoint(path.split("/"))


class Listing:
    """The files of a tree, found once.

    Args:
        sources: Python and Rust files, in order.
        settings: files that decide what is built and collected.

    """

    def __init__(self, sources: list[str], settings: list[str]) -> None:
        self.sources = sources
        self.settings = settings
        self._named: dict[str, list[str]] = {}
        for file in (*sources, *settings):
            self._named.setdefault(file.rpartition("/")[2], []).append(file)
        self._all = frozenset((*sources, *settings))
        self._by_folder: dict[str, list[str]] = {}

    def __contains__(self, path: object) -> bool:
        """Whether a file of that path is listed."""
        return path in self._all

    def named(self, name: str) -> list[str]:
        """Files with that last path component."""
        return self._named.get(name, [])

    def below(self, start: str) -> list[str]:
        """Sources whose path begins with ``start``."""
        if start not in self._by_folder:
            self._by_folder[start] = [file for file in self.sources if file.startswith(start)]
        return self._by_folder[start]

    def signature(self, root: str, stamps: Stamps) -> bytes:
        """Identity of what the listed files are called and hold."""
        files = (*self.sources, *self.settings)
        lines = (os.fsencode(file) + b"\0" + stamps.of(f"{root}/{file}") for file in files)
        return digest(b"\n".join(lines))


def list_tree(root: str) -> Listing:
    """Find the files of a tree; links are not followed."""
    sources: list[str] = []
    settings: list[str] = []
    pending = [("", root)]
    while pending and len(sources) <= _MOST_FILES:
        base, folder = pending.pop()
        inner = []
        for entry in _entries(folder):
            path = f"{base}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in _NOT_SOURCES:
                    inner.append((f"{path}/", entry.path))
            elif not entry.is_file(follow_symlinks=False):
                continue
            elif entry.name.endswith(_SUFFIXES):
                sources.append(path)
            elif is_listed(path):
                settings.append(path)
        pending.extend(reversed(inner))
    return Listing(sources[:_MOST_FILES], settings)


_SUFFIXES = tuple(INDEXERS)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda one: one.name)
    except OSError:
        return []
