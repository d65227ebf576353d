"""Running a validation over files, with what is known from the last run.

1. discover the files, read and digest them;
2. take the records of contracts whose bytes, and whose source files' bytes, are as they were;
3. validate the others, on all cores where there are many;
4. apply the rules across contracts, where any of what they look at changed, and keep what was found.

Only what a step needs is imported: a run in which nothing changed reads no YAML and parses no code.
"""

from __future__ import annotations

import dataclasses
import gc
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from apr_falsify.contracts.cache import Cache, Record, open_cache, save_cache
from apr_falsify.contracts.discover import discover
from apr_falsify.contracts.files import read_bytes, shown_path
from apr_falsify.contracts.marked import MarkerCitation
from apr_falsify.contracts.problem import Problem
from apr_falsify.contracts.report import Counts, Report
from apr_falsify.contracts.standing import ABSENT, FRESH
from apr_falsify.contracts.statuses import FUNCTIONAL
from apr_falsify.symbols.listing import is_listed
from apr_falsify.symbols.stamps import digest
from apr_falsify.symbols.store import SourceStore, freeze, thaw

if TYPE_CHECKING:
    from apr_falsify.contracts.facts import ContractFacts
    from apr_falsify.contracts.model import Citation
    from apr_falsify.contracts.roots import Roots
    from apr_falsify.contracts.standing import Evidence
    from apr_falsify.symbols.tree import SourceTree

_MOST_MARKED = 2000
_WORTH_A_PROCESS = 80  # starting one costs as much as validating so many contracts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """One contract file as read: its bytes, or the problem with reading them."""

    path: Path
    shown: str
    raw: bytes | Problem
    digest: bytes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What one process found: frozen records, whether each may be kept, and what it read of sources."""

    records: dict[str, tuple[bytes, bytes, bool]]
    read: dict[bytes, bytes]


def run(
    paths: Iterable[Path],
    sources: dict[str, Path],
    *,
    cached: bool = True,
    evidence: Evidence | None = None,
    tested: Sequence[Path] = (),
) -> Report:
    """Validate every contract under ``paths`` against their own trees and the named sources.

    ``evidence`` is the state of the project's evidence, where the caller knows it. ``tested`` are
    the folders of contracts whose falsifiers pytest runs: a test must carry the marker of each.

    Raises:
        UsageError: there is nothing to validate.

    """
    collecting = gc.isenabled()
    gc.disable()  # a run allocates much, frees nothing in cycles, and ends: collecting doubles its time
    try:
        return _run(paths, sources, cached, evidence, tested)
    finally:
        if collecting:
            gc.enable()


def _run(
    paths: Iterable[Path],
    sources: dict[str, Path],
    cached: bool,
    evidence: Evidence | None,
    tested: Sequence[Path],
) -> Report:
    asked = list(paths)
    files = [_read(path) for path in discover(asked)]
    identity = "\0".join(
        [os.getcwd(), *(f"{name}={path.resolve()}" for name, path in sorted(sources.items()))]
    )
    cache = open_cache(identity) if cached else Cache(path=None)
    kept = _still_true(cache, files, sources)
    fresh = _validate([file for file in files if file.shown not in kept], sources, cache)
    records = [kept.get(file.shown) or fresh[file.shown] for file in files]
    problems = [problem for record in records for problem in record.problems]
    problems.extend(_across(files, records, sources, cache))
    by_marker, more = _marked(files, records, sources, tested, cache)
    problems.extend(by_marker)
    save_cache(cache)
    counts = sum((record.counts for record in records), more)
    if counts.functional:
        problems.extend(_unkept(records, evidence))
    bare = _without_contract(asked, files, records)
    if evidence is None:
        counts = dataclasses.replace(counts, evidence_unchecked=counts.functional)
        return Report(problems=tuple(problems), counts=counts, without_contract=bare)
    found, looked_at = _of_evidence(records, evidence)
    return Report(problems=(*problems, *found), counts=counts + looked_at, without_contract=bare)


def _without_contract(
    asked: Sequence[Path], files: Sequence[_Read], records: Sequence[Record]
) -> tuple[str, ...]:
    """Paths that were asked for in which there is no contract, among others in which there is one."""
    if len(asked) < 2:
        return ()
    having = {
        os.path.join(os.path.realpath(file.path.parent), file.path.name)
        for file, record in zip(files, records, strict=True)
        if record.counts.contracts or record.counts.bindings
    }
    real = {os.path.realpath(path): shown_path(path) for path in asked}
    return tuple(
        shown
        for path, shown in real.items()
        if path not in having and not any(file.startswith(os.path.join(path, "")) for file in having)
    )


def _read(path: Path) -> _Read:
    raw = read_bytes(path)
    return _Read(
        path=path, shown=shown_path(path), raw=raw, digest=digest(raw) if isinstance(raw, bytes) else b""
    )


def _still_true(cache: Cache, files: Sequence[_Read], sources: dict[str, Path]) -> dict[str, Record]:
    """Records whose contract has the bytes it had, and so have the files and trees that they rest on."""
    stamps = cache.store.stamps
    changed = {one for one, was in cache.sources.items() if stamps.of("/".join(one)) != was}
    trees = {root for root, was in cache.trees.items() if cache.store.signature(root) != was}
    from apr_falsify.contracts.roots import Roots

    roots = Roots(sources, cache.store)
    kept: dict[str, Record] = {}
    for file in files if cache.records else ():
        entry = cache.records.get(file.shown)
        if entry and file.digest and entry[0] == file.digest:
            record: Record = thaw(entry[1])
            same = changed.isdisjoint(record.rests_on) and trees.isdisjoint(record.walked)
            if same and record.around == roots.around(os.path.dirname(file.path)):
                kept[file.shown] = record
    if changed or trees:  # records that are not asked for now rest on them too
        cache.records = {file.shown: cache.records[file.shown] for file in files if file.shown in kept}
        cache.sources = {source: was for source, was in cache.sources.items() if source not in changed}
        cache.trees = {root: was for root, was in cache.trees.items() if root not in trees}
        cache.changed = True
    return kept


def _validate(files: Sequence[_Read], sources: dict[str, Path], cache: Cache) -> dict[str, Record]:
    """Validate contracts, in parts on several processes where there are many, and note them in the cache."""
    if not files:
        return {}
    from apr_falsify.contracts import validate  # noqa: F401 - imported once, before any fork
    from apr_falsify.contracts.ahead import read_ahead
    from apr_falsify.contracts.roots import Roots
    from apr_falsify.symbols.parts import in_parts

    roots = Roots(sources, cache.store)
    read_ahead([(file.path.absolute(), file.raw) for file in files if isinstance(file.raw, bytes)], roots)

    def work(some: Sequence[_Read]) -> _Part:
        return _validate_part(some, roots, cache.store)

    fresh: dict[str, Record] = {}
    for part in in_parts(work, files, at_least=_WORTH_A_PROCESS):
        fresh.update(_note(part, cache))
    for source in {source for record in fresh.values() for source in record.rests_on}:
        if source not in cache.sources:
            cache.sources[source] = cache.store.stamps.of("/".join(source))
    for root in {root for record in fresh.values() for root in record.walked}:
        if root not in cache.trees:
            cache.trees[root] = cache.store.signature(root)
    return fresh


def _note(part: _Part, cache: Cache) -> dict[str, Record]:
    cache.changed = True
    cache.store.add({key: read for key, read in part.read.items() if key not in cache.store.new})
    for shown, (was, data, keep) in part.records.items():
        if keep:
            cache.records[shown] = (was, data)
        else:
            cache.records.pop(shown, None)
    return {shown: thaw(data) for shown, (_, data, _) in part.records.items()}


def _validate_part(files: Sequence[_Read], roots: Roots, store: SourceStore) -> _Part:
    """Validate some contracts, in this process."""
    before = set(store.new)
    records = {file.shown: _one(file, roots) for file in files}
    return _Part(records=records, read={key: read for key, read in store.new.items() if key not in before})


def _one(file: _Read, roots: Roots) -> tuple[bytes, bytes, bool]:
    from apr_falsify.contracts.facts import ContractFacts, gather
    from apr_falsify.contracts.roots import SearchScope
    from apr_falsify.contracts.validate import resolve_names

    for tree in roots.all_trees():
        tree.touched.clear()
        tree.walked = tree.is_matched = False
    if isinstance(file.raw, Problem):
        facts = ContractFacts(path=file.shown, problems=(dataclasses.replace(file.raw, path=file.shown),))
    else:
        facts = gather(file.shown, file.raw)
    scope = SearchScope(file.path.absolute(), roots)
    problems, counts = resolve_names(facts, scope)
    trees = roots.all_trees()
    record = Record(
        facts=freeze(dataclasses.replace(facts, citations=(), problems=())),
        problems=(*facts.problems, *problems),
        counts=counts,
        owns=scope.owns(),
        rests_on=tuple((str(tree.root), one) for tree in trees for one in sorted(_rests_on(tree))),
        walked=tuple(str(tree.root) for tree in trees if tree.walked),
        around=roots.around(os.path.dirname(file.path)),
        markers=tuple(_marker_citation(one) for one in facts.citations if one.kind == "marker"),
    )
    settled = not any(tree.is_matched for tree in trees)  # what a pattern may match, no record tells
    return file.digest, freeze(record), settled and bool(file.digest)


def _rests_on(tree: SourceTree) -> set[str]:
    """Files that an answer rests on; of a tree that it rests on as a whole, those that no listing notes."""
    if not tree.walked:
        return tree.touched
    return {one for one in tree.touched if not is_listed(one)}


def _marker_citation(one: Citation) -> MarkerCitation:
    place = one.place
    return MarkerCitation(
        marker=one.name,
        line=place.line,
        column=place.column,
        key=place.key,
        expected_absent=one.expected_absent,
    )


def _across(
    files: Sequence[_Read],
    records: Sequence[Record],
    sources: dict[str, Path],
    cache: Cache,
) -> list[Problem]:
    """Problems that no contract has alone; as the last time where all that they rest on is."""
    identity = digest(b"".join(record.facts + bytes([record.owns]) for record in records))
    if cache.suite[0] == identity:
        last: list[Problem] = thaw(cache.suite[1])
        return last
    from apr_falsify.contracts.roots import Roots
    from apr_falsify.contracts.validate import across

    suite: list[ContractFacts] = [thaw(record.facts) for record in records]
    known, complete = _read_siblings(suite, files, Roots(sources))
    owns = {facts.path: record.owns for facts, record in zip(suite, records, strict=True)}
    problems = list(across(suite, known, owns, sources))
    if complete:
        cache.suite, cache.changed = (identity, freeze(problems)), True
    return problems


def _marked(
    files: Sequence[_Read],
    records: Sequence[Record],
    sources: dict[str, Path],
    tested: Sequence[Path],
    cache: Cache,
) -> tuple[list[Problem], Counts]:
    """Problems with tests that are cited by marker, or missing; where none is asked for nothing is read."""
    from apr_falsify.contracts.marked import Marked, marked_problems

    folders = [os.path.realpath(one) for one in tested]
    asked = []
    for file, record in zip(files, records, strict=True):
        real = os.path.realpath(file.path) if folders else ""
        covered = any(real == one or real.startswith(one + os.sep) for one in folders)
        every = thaw(record.facts).falsifiers if covered else ()
        falsifiers = tuple(one for one in every if not one.is_rust)  # pytest marks none of cargo's tests
        if record.markers or falsifiers:
            asked.append(
                Marked(path=file.path, shown=file.shown, citations=record.markers, falsifiers=falsifiers)
            )
    if not asked:
        return [], Counts()
    from apr_falsify.contracts.roots import Roots

    if len(cache.marked) > _MOST_MARKED:  # of files as they once were
        cache.marked.clear()
    known = len(cache.marked)
    found = marked_problems(asked, Roots(sources), cache.marked)
    cache.changed |= len(cache.marked) != known
    return found


def _unkept(records: Sequence[Record], evidence: Evidence | None) -> list[Problem]:
    """Problems with FUNCTIONAL falsifiers of projects that keep no evidence."""
    from apr_falsify.contracts.rules.evidence import unkept_evidence

    return list(unkept_evidence([thaw(record.facts) for record in records], evidence))


def _of_evidence(records: Sequence[Record], evidence: Evidence) -> tuple[list[Problem], Counts]:
    """Problems with bundles, and how many there are; of contracts elsewhere none is looked at."""
    from apr_falsify.contracts.rules.evidence import evidence_problems

    suite: list[ContractFacts] = [thaw(record.facts) for record in records]
    states = [one.state for one in evidence.standings.values()]
    elsewhere = [one for facts in suite if not evidence.covers(facts.path) for one in facts.falsifiers]
    return list(evidence_problems(suite, evidence)), Counts(
        bundles=len(states) - states.count(ABSENT),
        fresh=states.count(FRESH),
        evidence_unchecked=sum(one.rung == FUNCTIONAL for one in elsewhere),
    )


def _read_siblings(
    suite: list[ContractFacts], files: Sequence[_Read], roots: Roots
) -> tuple[list[ContractFacts], bool]:
    """Cited contracts not validated now that lie beside those that are, or in a tree's contracts folder.

    Also whether none was looked for outside the suite: then the suite alone decides.
    """
    from apr_falsify.contracts.roots import SearchScope
    from apr_falsify.contracts.validate import read_facts

    have = {alias for facts in suite for alias in facts.aliases}
    known: dict[str, ContractFacts] = {}
    complete = True
    for facts, file in zip(suite, files, strict=True):
        for sibling in facts.siblings:
            if sibling.name in have or sibling.name in known:
                continue
            complete = False
            path = file.path.absolute()
            folders = [path.parent, *(tree.root / "contracts" for tree in SearchScope(path, roots).trees)]
            places = [
                folder / f"{sibling.name}{suffix}" for folder in folders for suffix in (".yaml", ".yml")
            ]
            place = next((place for place in places if place.is_file()), None)
            if place is not None:
                known[sibling.name] = read_facts(place, shown_path(place))
    return list(known.values()), complete
