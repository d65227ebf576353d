"""Results kept between runs, by content: what a file of these bytes says never changes.

Two files a project under ``folders.cache_folder()``: what every run needs, and what was read of sources,
which only a run reads that meets something new. They are read by an unpickler that builds only this
package's own data classes, so a file from elsewhere cannot run anything; one that is broken, or of another
version, is none. A cache that cannot be written is no error.
"""

from __future__ import annotations

import contextlib
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
from apr_falsify.symbols.stamps import Stamp, Stamps, digest
from apr_falsify.symbols.states import quickly_pickled
from apr_falsify.symbols.store import SourceStore, freeze, thaw

if TYPE_CHECKING:
    from apr_falsify.symbols.markers import Kept

_FORMAT = 6
_MOST_PROJECTS = 64


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What validating one contract gave.

    ``facts`` is frozen: it is needed only where the rules across contracts run anew. ``rests_on`` are the
    source files the answer rests on, as (root, path in it), ``walked`` the trees that it rests on as a whole,
    ``around`` the projects that the contract is part of. ``markers`` are resolved in every run.
    """

    facts: bytes
    problems: tuple[Problem, ...]
    counts: Counts
    owns: bool
    rests_on: tuple[tuple[str, str], ...]
    walked: tuple[str, ...]
    around: str
    markers: tuple[MarkerCitation, ...] = ()


@dataclass(slots=True, kw_only=True)
class Cache:
    """What is kept of a project between runs. Values are frozen, so that only what is needed is thawed."""

    path: Path | None
    records: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)  # shown path -> digest, record
    sources: dict[tuple[str, str], bytes] = field(default_factory=dict)  # source file -> digest
    trees: dict[str, bytes] = field(default_factory=dict)  # root -> identity of all its sources
    suite: tuple[bytes, bytes] = (b"", b"")  # identity of all contracts, problems across them
    marked: Kept = field(default_factory=dict)  # what test files carry of the markers that are cited
    stamps: dict[str, tuple[Stamp, bytes]] = field(default_factory=dict)  # path -> stamp, digest
    store: SourceStore = field(default_factory=SourceStore)  # what was read of sources, by content
    changed: bool = False

    @property
    def kept(self) -> tuple[object, ...]:
        """What is written for every run."""
        return self.records, self.sources, self.trees, self.suite, self.marked, self.stamps


def open_cache(identity: str) -> Cache:
    """Open the cache of a project; an empty one where there is none that can be used."""
    known_by = f"{_FORMAT} {__version__} {sys.version_info[:2]} {_code_age()} {identity}"
    key = digest(known_by.encode("utf-8", "surrogatepass"))  # a path may not be UTF-8
    try:
        path = cache_folder() / "validate-contracts" / f"{key.hex()}.pickle"
    except RuntimeError:  # no home directory
        return Cache(path=None)
    records, sources, trees, suite, marked, stamps = _thawed(path) or ({}, {}, {}, (b"", b""), {}, {})
    return Cache(
        path=path,
        records=records,
        sources=sources,
        trees=trees,
        suite=suite,
        marked=marked,
        stamps=stamps,
        store=SourceStore(lambda: _thawed(_beside(path)) or {}, Stamps(stamps)),
    )


def _thawed(path: Path) -> Any:
    """What a file holds; ``None`` where it is not there, or broken."""
    try:
        return thaw(path.read_bytes())
    except (OSError, pickle.UnpicklingError, ValueError, EOFError, AttributeError, TypeError):
        return None
    except (ImportError, IndexError, MemoryError):
        return None


def _beside(path: Path) -> Path:
    return path.with_suffix(".sources")


def _code_age() -> int:
    """Newest change of the code that fills the cache: an edited rule must not find its old answers."""
    folder = Path(__file__).parent
    rooms = (folder, folder / "rules", folder.parent / "symbols")
    return max(entry.stat().st_mtime_ns for room in rooms for entry in os.scandir(room) if entry.is_file())


def save_cache(cache: Cache) -> None:
    """Write the cache, whole or not at all; on failure there is simply none."""
    if cache.path is None:
        return
    with contextlib.suppress(OSError):
        cache.path.parent.mkdir(parents=True, exist_ok=True)
        if cache.changed or cache.store.stamps.changed:
            write_whole(cache.path, freeze(cache.kept))
        if cache.store.new:
            write_whole(_beside(cache.path), freeze(_bounded(cache.store)))
        _prune(cache.path.parent)


_MOST_STORED = 256 << 20


def _bounded(store: SourceStore) -> dict[bytes, bytes]:
    """All that is known of sources; where that is too much, only what was read now."""
    return store.known if sum(map(len, store.known.values())) <= _MOST_STORED else store.new


def _prune(folder: Path) -> None:
    files = sorted(folder.glob("*.pickle"), key=lambda one: one.stat().st_mtime)
    for old in files[:-_MOST_PROJECTS]:
        old.unlink(missing_ok=True)
        _beside(old).unlink(missing_ok=True)
