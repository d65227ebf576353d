"""What was read of source files, by their content: stored between runs; many files are read on all cores.

Three things may be known of a content: its index, its outline for a crate, the words that stand in it. Each
is frozen on its own, so that only what is requested is thawed.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from apr_falsify.symbols.listing import Listing, list_tree
from apr_falsify.symbols.parts import in_parts
from apr_falsify.symbols.stamps import Stamps, digest

_WORTH_A_PROCESS = 60
_OURS = {
    ("apr_falsify.contracts.cache", "Record"),
    ("apr_falsify.contracts.facts", "ContractFacts"),
    ("apr_falsify.contracts.facts", "FalsifierFacts"),
    ("apr_falsify.contracts.model", "BoundEquation"),
    ("apr_falsify.contracts.model", "CitedId"),
    ("apr_falsify.contracts.marked", "MarkerCitation"),
    ("apr_falsify.contracts.problem", "Place"),
    ("apr_falsify.contracts.model", "Sibling"),
    ("apr_falsify.contracts.problem", "Problem"),
    ("apr_falsify.contracts.report", "Counts"),
    ("apr_falsify.symbols.index", "Definition"),
    ("apr_falsify.symbols.index", "ClassShape"),
    ("apr_falsify.symbols.index", "SymbolIndex"),
    ("apr_falsify.symbols.markers", "MarkedTest"),
    ("apr_falsify.symbols.pytest_items", "PythonItem"),
    ("apr_falsify.symbols.pytest_items", "PythonItems"),
    ("apr_falsify.symbols.rust_outline", "Outline"),
    ("apr_falsify.symbols.rust_outline", "TestItem"),
    ("apr_falsify.symbols.rust_outline", "ModuleItem"),
    ("apr_falsify.symbols.rust_outline", "MacroCall"),
    ("apr_falsify.symbols.rust_outline", "MacroRules"),
    ("builtins", "frozenset"),
    ("builtins", "str"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _OURS:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in a cache")
        return super().find_class(module, name)


def thaw(data: bytes) -> Any:
    """Read one pickled value; only data classes of this package are built."""
    return _Unpickler(io.BytesIO(data)).load()


def freeze(value: object) -> bytes:
    """Pickle one value."""
    return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)


class SourceStore:
    """What was read of contents.

    Args:
        fetch: reads what was stored of earlier runs; called once, where something is requested.
        stamps: digests of files.

    """

    def __init__(self, fetch: Callable[[], dict[bytes, bytes]] = dict, stamps: Stamps | None = None) -> None:
        self._fetch = fetch
        self._known: dict[bytes, bytes] | None = None
        self.new: dict[bytes, bytes] = {}
        self.stamps = stamps or Stamps()
        self._listings: dict[str, Listing] = {}

    def listing(self, root: Path | str) -> Listing:
        """The files of a tree, found once in a run."""
        key = str(root)
        if key not in self._listings:
            self._listings[key] = list_tree(key)
        return self._listings[key]

    def signature(self, root: str) -> bytes:
        """Identity of a whole tree: what its sources and settings are called and hold."""
        return self.listing(root).signature(root, self.stamps)

    @property
    def known(self) -> dict[bytes, bytes]:
        """What was stored, and what was read since."""
        if self._known is None:
            self._known = self._fetch()
        return self._known

    def add(self, found: dict[bytes, bytes]) -> None:
        """Take what another process read."""
        self.known.update(found)
        self.new.update(found)

    def get(self, kind: str, source: bytes, read: Callable[[bytes], Any]) -> Any:
        """Return what ``read`` makes of a content, from what is stored where it was read before."""
        key = self.key(kind, source)
        held = self.known.get(key)
        if held is not None:
            return thaw(held)
        value = read(source)
        self.add({key: freeze(value)})
        return value

    @staticmethod
    def key(kind: str, source: bytes) -> bytes:
        """Under which a content's reading is stored."""
        return digest(kind.encode() + b"\0" + source)

    def prepare(
        self, kind: str, paths: Sequence[str], read: Callable[[bytes], Any], most: int
    ) -> Iterator[tuple[str, bytes]]:
        """Read many files at once; yield each path with the key of its content, those too large left out."""
        known = self.known

        def work(some: Sequence[str]) -> tuple[list[tuple[str, bytes]], dict[bytes, bytes]]:
            keys, found = [], {}
            for path in some:
                source = _content(path, most)
                if source is None:
                    continue
                key = self.key(kind, source)
                keys.append((path, key))
                if key not in known and key not in found:
                    found[key] = freeze(read(source))
            return keys, found

        for keys, found in in_parts(work, paths, at_least=_WORTH_A_PROCESS):
            self.add(found)
            yield from keys


def _content(path: str, most: int) -> bytes | None:
    try:
        with open(path, "rb", buffering=0) as file:
            return None if os.fstat(file.fileno()).st_size > most else file.read()
    except (OSError, ValueError):
        return None
