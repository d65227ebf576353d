"""Running a validation over files, with what is known from the last run.

1. discover the files, read and digest them;
2. take the records of contracts whose bytes, and whose source files' bytes, are as they were;
3. validate the others, on all cores where there are many;
4. apply the rules across contracts, and keep the new records.
"""

from __future__ import annotations

import dataclasses
import gc
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from apr_falsify.contracts.cache import Cache, Record, digest, freeze, open_cache, save_cache, thaw
from apr_falsify.contracts.discover import discover
from apr_falsify.contracts.facts import Facts, gather
from apr_falsify.contracts.problem import Problem
from apr_falsify.contracts.roots import Roots, Scope
from apr_falsify.contracts.source import read_bytes
from apr_falsify.contracts.validate import Counts, Report, across, read_facts, resolve_names
from apr_falsify.symbols.index import SymbolIndex
from apr_falsify.symbols.tree import build_index

_WORTH_A_PROCESS = 80  # starting one costs as much as validating so many contracts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """One contract file as read: its bytes, or the problem with reading them."""

    path: Path
    shown: str
    raw: bytes | Problem
    digest: bytes


def shown_path(path: Path) -> str:
    """A path relative to the working directory, with forward slashes: what every format prints."""
    try:
        return os.path.relpath(path).replace(os.sep, "/")
    except ValueError:  # another drive
        return path.as_posix()


def run(
    paths: Iterable[Path],
    sources: dict[str, Path],
    *,
    cached: bool = True,
    evidence: Mapping[str, str] | None = None,
) -> Report:
    """Validate every contract under ``paths`` against their own trees and the named sources.

    ``evidence`` maps a falsifier's id to the state of its evidence, where the caller knows it.

    Raises:
        UsageError: there is nothing to validate.

    """
    collecting = gc.isenabled()
    gc.disable()  # a run allocates much, frees nothing in cycles, and ends: collecting doubles its time
    try:
        return _run(paths, sources, cached, evidence)
    finally:
        if collecting:
            gc.enable()


def _run(
    paths: Iterable[Path], sources: dict[str, Path], cached: bool, evidence: Mapping[str, str] | None
) -> Report:
    files = [_read(path) for path in discover(paths)]
    identity = "\0".join(
        [os.getcwd(), *(f"{name}={path.resolve()}" for name, path in sorted(sources.items()))]
    )
    cache = open_cache(identity) if cached else Cache(path=None)
    kept = _still_true(cache, files)
    fresh = _validate([file for file in files if file.shown not in kept], sources, cache)
    records = [kept.get(file.shown) or fresh[file.shown] for file in files]
    save_cache(cache)
    suite = [record.facts for record in records]
    problems = [problem for record in records for problem in (*record.facts.problems, *record.problems)]
    known = _read_siblings(suite, files, Roots(sources))
    owns = {record.facts.path: record.owns for record in records}
    problems.extend(across(suite, known, owns, evidence))
    counts = sum((record.counts for record in records), Counts())
    if evidence is None:
        unchecked = sum(one.rung == "FUNCTIONAL" for facts in suite for one in facts.falsifiers)
        counts = dataclasses.replace(counts, evidence_unchecked=unchecked)
    return Report(problems=tuple(problems), counts=counts, suite=tuple(suite))


def _read(path: Path) -> _Read:
    raw = read_bytes(path)
    return _Read(
        path=path, shown=shown_path(path), raw=raw, digest=digest(raw) if isinstance(raw, bytes) else b""
    )


def _still_true(cache: Cache, files: Sequence[_Read]) -> dict[str, Record]:
    """Records whose contract and whose source files have the bytes they had."""
    changed = {source for source, was in cache.sources.items() if _digest_of(source) != was}
    kept: dict[str, Record] = {}
    for file in files:
        entry = cache.records.get(file.shown)
        if entry and file.digest and entry[0] == file.digest:
            record: Record = thaw(entry[1])
            if changed.isdisjoint(record.rests_on):
                kept[file.shown] = record
    if changed:  # records that are not asked for now rest on them too
        cache.records = {file.shown: cache.records[file.shown] for file in files if file.shown in kept}
        cache.sources = {source: was for source, was in cache.sources.items() if source not in changed}
        cache.changed = True
    return kept


def _digest_of(source: tuple[str, str]) -> bytes:
    root, relative = source
    try:
        with open(f"{root}/{relative}", "rb", buffering=0) as file:
            return digest(file.read())
    except OSError:
        return b""


def _validate(files: Sequence[_Read], sources: dict[str, Path], cache: Cache) -> dict[str, Record]:
    """Validate contracts, in parts on several processes where there are many, and note them in the cache."""
    cores = min(os.cpu_count() or 1, 4, len(files) // _WORTH_A_PROCESS)
    if cores < 2:
        parts = [_validate_part(files, sources, cache.indexes)] if files else []
    else:
        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor(cores) as pool:
            slices = [files[at::cores] for at in range(cores)]
            parts = list(pool.map(_validate_part, slices, [sources] * cores, [cache.indexes] * cores))
    fresh: dict[str, Record] = {}
    for frozen, indexes in parts:
        cache.indexes.update(indexes)
        for shown, (was, data, keep) in frozen.items():
            fresh[shown] = thaw(data)
            if keep:
                cache.records[shown] = (was, data)
            else:
                cache.records.pop(shown, None)
            cache.changed = True
    _note_sources(cache, fresh)
    return fresh


def _note_sources(cache: Cache, fresh: Mapping[str, Record]) -> None:
    for record in fresh.values():
        for source in record.rests_on:
            if source not in cache.sources:
                cache.sources[source] = _digest_of(source)


_Part = tuple[dict[str, tuple[bytes, bytes, bool]], dict[bytes, bytes]]


def _validate_part(files: Sequence[_Read], sources: dict[str, Path], known: dict[bytes, bytes]) -> _Part:
    """Validate some contracts; returns pickled records, whether each may be kept, and new indexes."""
    gc.disable()
    new: dict[bytes, bytes] = {}

    def load(suffix: str, source: bytes) -> SymbolIndex:
        key = digest(suffix.encode() + b"\0" + source)
        held = known.get(key) or new.get(key)
        if held:
            found: SymbolIndex = thaw(held)
            return found
        index = build_index(suffix, source)
        new[key] = freeze(index)
        return index

    roots = Roots(sources, load)
    return {file.shown: _one(file, roots) for file in files}, new


def _one(file: _Read, roots: Roots) -> tuple[bytes, bytes, bool]:
    for tree in roots.all_trees():
        tree.touched.clear()
        tree.walked = False
    if isinstance(file.raw, Problem):
        facts = Facts(path=file.shown, problems=(dataclasses.replace(file.raw, path=file.shown),))
    else:
        facts = gather(file.shown, file.raw)
    path = file.path.absolute()
    scope = Scope(path, roots)
    problems, counts = resolve_names(facts, scope)
    trees = roots.all_trees()
    record = Record(
        facts=dataclasses.replace(facts, citations=()),
        problems=problems,
        counts=counts,
        owns=scope.owns(),
        rests_on=tuple((str(tree.root), relative) for tree in trees for relative in sorted(tree.touched)),
    )
    # what rested on a whole listing, or on something being absent, is true of this moment only
    settled = not counts.missing and not counts.unresolved and not any(tree.walked for tree in trees)
    return file.digest, freeze(record), settled and bool(file.digest)


def _read_siblings(suite: list[Facts], files: Sequence[_Read], roots: Roots) -> list[Facts]:
    """Cited contracts not validated now that lie beside those that are, or in a tree's contracts folder."""
    have = {alias for facts in suite for alias in facts.aliases}
    known: dict[str, Facts] = {}
    for facts, file in zip(suite, files, strict=True):
        for sibling in facts.siblings:
            if sibling.name in have or sibling.name in known:
                continue
            path = file.path.absolute()
            folders = [path.parent, *(tree.root / "contracts" for tree in Scope(path, roots).trees)]
            places = [
                folder / f"{sibling.name}{suffix}" for folder in folders for suffix in (".yaml", ".yml")
            ]
            place = next((place for place in places if place.is_file()), None)
            if place is not None:
                known[sibling.name] = read_facts(place, shown_path(place))
    return list(known.values())
