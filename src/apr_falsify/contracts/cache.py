"""Results kept between runs, by content: what a file of these bytes says never changes.

One file a project under ``folders.cache_folder()``. It is read by an unpickler
that builds only this package's own data classes, so a file from elsewhere cannot run anything; one that
is broken, or of another version, is none. A cache that cannot be written is no error.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr_falsify import __version__
from apr_falsify.contracts.marked import MarkerCitation
from apr_falsify.contracts.problem import Problem
from apr_falsify.contracts.report import Counts
from apr_falsify.folders import cache_folder, write_whole
from apr_falsify.symbols.states import quickly_pickled

if TYPE_CHECKING:
    from apr_falsify.symbols.markers import Kept

_FORMAT = 5
_MOST_PROJECTS = 64


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What validating one contract gave.

    ``facts`` is frozen: it is needed only where the rules across contracts run anew. ``rests_on`` are the
    source files the answer rests on, as (root, path in it). ``markers`` are resolved in every run.
    """

    facts: bytes
    problems: tuple[Problem, ...]
    counts: Counts
    owns: bool
    rests_on: tuple[tuple[str, str], ...]
    markers: tuple[MarkerCitation, ...] = ()


@dataclass(slots=True, kw_only=True)
class Cache:
    """What is kept of a project between runs. Values are frozen, so that only what is needed is thawed."""

    path: Path | None
    records: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)  # shown path -> digest, record
    indexes: dict[bytes, bytes] = field(default_factory=dict)  # digest of a source file -> its index
    sources: dict[tuple[str, str], bytes] = field(default_factory=dict)  # source file -> digest
    suite: tuple[bytes, bytes] = (b"", b"")  # identity of all contracts, problems across them
    marked: Kept = field(default_factory=dict)  # what test files carry of the markers that are cited
    changed: bool = False

    @property
    def kept(self) -> tuple[object, ...]:
        """What is written."""
        return self.records, self.indexes, self.sources, self.suite, self.marked


def digest(data: bytes) -> bytes:
    """Identity of a content."""
    return hashlib.blake2b(data, digest_size=16).digest()


_OURS = {
    ("apr_falsify.contracts.cache", "Record"),
    ("apr_falsify.contracts.facts", "Facts"),
    ("apr_falsify.contracts.facts", "FalsifierFacts"),
    ("apr_falsify.contracts.marked", "MarkerCitation"),
    ("apr_falsify.contracts.problem", "Place"),
    ("apr_falsify.contracts.model", "Sibling"),
    ("apr_falsify.contracts.problem", "Problem"),
    ("apr_falsify.contracts.report", "Counts"),
    ("apr_falsify.symbols.index", "Definition"),
    ("apr_falsify.symbols.index", "ClassShape"),
    ("apr_falsify.symbols.index", "SymbolIndex"),
    ("apr_falsify.symbols.markers", "MarkedTest"),
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


def open_cache(identity: str) -> Cache:
    """Open the cache of a project; an empty one where there is none that can be used."""
    known_by = f"{_FORMAT} {__version__} {sys.version_info[:2]} {_code_age()} {identity}"
    key = digest(known_by.encode("utf-8", "surrogatepass"))  # a path may not be UTF-8
    try:
        path = cache_folder() / "validate-contracts" / f"{key.hex()}.pickle"
        records, indexes, sources, suite, marked = thaw(path.read_bytes())
    except (OSError, RuntimeError):  # not there, or no home directory
        return Cache(path=None if "path" not in locals() else path)
    except (pickle.UnpicklingError, ValueError, EOFError, AttributeError, TypeError, ImportError, IndexError):
        return Cache(path=path)
    return Cache(path=path, records=records, indexes=indexes, sources=sources, suite=suite, marked=marked)


def _code_age() -> int:
    """Newest change of the code that fills the cache: an edited rule must not find its old answers."""
    folder = Path(__file__).parent
    rooms = (folder, folder / "rules", folder.parent / "symbols")
    return max(entry.stat().st_mtime_ns for room in rooms for entry in os.scandir(room) if entry.is_file())


def save_cache(cache: Cache) -> None:
    """Write the cache, whole or not at all; on failure there is simply none."""
    if cache.path is None or not cache.changed:
        return
    with contextlib.suppress(OSError):
        cache.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(cache.path, freeze(cache.kept))
        _prune(cache.path.parent)


def _prune(folder: Path) -> None:
    files = sorted(folder.glob("*.pickle"), key=lambda one: one.stat().st_mtime)
    for old in files[:-_MOST_PROJECTS]:
        old.unlink(missing_ok=True)
