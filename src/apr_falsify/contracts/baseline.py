"""A baseline: the problems a project had when it adopted the validator. Known ones count, new ones fail.

A known problem is recognised by its fingerprint, with the path from the root of its repository; then, where
entries were put before it in a list, by all else that it says. One that a run could not have seen, because
its contract, its source or its commit was not asked for, is neither known nor fixed in that run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_falsify.contracts.problem import Problem
from apr_falsify.contracts.roots import from_repository
from apr_falsify.contracts.rules import ACROSS_CONTRACTS, HIDING, NOT_READ, OF_HISTORY
from apr_falsify.errors import OutputError, UsageError
from apr_falsify.folders import write_whole
from apr_falsify.reading import items, mapping, read_json, text

_SCHEMA = "apr-falsify/baseline/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownProblem:
    """A problem as a baseline lists it: ``shown`` are its words, ``about`` the name that it is about."""

    fingerprint: str
    shown: str
    code: str
    path: str  # from the root of the repository
    key: str = ""
    about: str = ""

    @property
    def kind(self) -> tuple[str, ...]:
        """All that it says but where in a list it stands."""
        return self.code, self.path, _without_places(self.key), self.about


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """What a run looked at: files and folders from the root of their repository, and a commit or none."""

    paths: tuple[str, ...]
    is_historic: bool = False

    @classmethod
    def of(cls, asked: Iterable[Path], against: str | None) -> Extent:
        """Return the extent of a run over what was asked for."""
        paths = tuple(dict.fromkeys(from_repository(path) for path in asked))
        return cls(paths=paths, is_historic=against is not None)

    def has(self, path: str) -> bool:
        """Whether a file or folder was looked at."""
        return any(one in (".", path) or path.startswith(f"{one}/") for one in self.paths)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineMatch:
    """What a baseline says of a run: fingerprints of problems that are known, and words of those fixed."""

    known: frozenset[str]
    mended: tuple[str, ...]
    unseen: tuple[KnownProblem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The known problems, and the paths that were looked at when they were noted."""

    problems: tuple[KnownProblem, ...] = ()
    paths: tuple[str, ...] = ()

    def match(self, problems: Sequence[Problem], extent: Extent) -> BaselineMatch:
        """Tell problems that are known from new ones, and find those that are no more."""
        listed = {one.fingerprint for one in self.problems}
        now = {problem.fingerprint: _known(problem) for problem in problems}
        # a baseline written in another folder of the repository has fingerprints as seen from there
        same = {shown: one.fingerprint for shown, one in now.items() if one.fingerprint in listed}
        same |= {shown: shown for shown in now if shown in listed and shown not in same}
        left = defaultdict(list)
        for one in self.problems:
            if one.key and one.fingerprint not in same.values():
                left[one.kind].append(one.fingerprint)
        for shown, known in now.items():
            if shown not in same and left[known.kind]:
                same[shown] = left[known.kind].pop(0)
        gone = [one for one in self.problems if one.fingerprint not in same.values()]
        unseen = [one for one in gone if not self._was_seen(one, extent, now.values())]
        mended = tuple(one.shown for one in gone if one not in unseen)
        return BaselineMatch(known=frozenset(same), mended=mended, unseen=tuple(unseen))

    def _was_seen(self, one: KnownProblem, extent: Extent, now: Iterable[KnownProblem]) -> bool:
        """Whether the run would have met the problem, had it still been there."""
        if not extent.has(one.path) or (one.code in OF_HISTORY and not extent.is_historic):
            return False
        if one.code in ACROSS_CONTRACTS and not all(extent.has(path) for path in self.paths or (one.path,)):
            return False
        here = [other for other in now if other.path == one.path]
        place = _without_places(one.key)
        hidden = any(other.code in HIDING and _without_places(other.key) == place for other in here)
        return not hidden and all(other.code not in NOT_READ for other in here)


def _without_places(key: str) -> str:
    return re.sub(r"\[\d+\]", "", key)


def _known(problem: Problem) -> KnownProblem:
    there = dataclasses.replace(problem, path=from_repository(Path(problem.path)))
    return KnownProblem(
        fingerprint=there.fingerprint,
        shown=f"{there.path}: {there.code} {there.message}",
        code=there.code,
        path=there.path,
        key=there.key,
        about=there.subject or there.message,
    )


def read_baseline(path: Path) -> Baseline:
    """Read a baseline.

    Raises:
        UsageError: it is missing, or not one of ours.

    """
    try:
        data = mapping(read_json(path), "it")
        if data.get("schema") != _SCHEMA:
            raise UsageError(f"schema {data.get('schema')!r} is unknown", where=path, expected=_SCHEMA)
        rows = [mapping(row, "a problem") for row in items(data.get("problems"), "problems")]
        paths = tuple(text(one, "one of paths") for one in items(data.get("paths", []), "paths"))
        return Baseline(problems=tuple(_row(row) for row in rows), paths=paths)
    except OSError as error:
        remedy = f"validate-contracts --baseline {path} --write-baseline"
        raise UsageError(f"cannot be read: {error.strerror}", where=path, remedy=remedy) from None
    except ValueError as error:
        raise UsageError(
            f"is no baseline: {error}", where=path, expected=f"JSON of schema {_SCHEMA}"
        ) from None


def _row(row: Mapping[str, Any]) -> KnownProblem:
    """One row; those of the first releases say code and path in ``shown`` alone."""
    shown = _text(row, "shown")
    path, _, rest = shown.partition(": ")
    said = {name: _text(row, name) for name in ("code", "path", "key", "about") if name in row}
    first = {"code": rest.partition(" ")[0], "path": path}
    return KnownProblem(fingerprint=_text(row, "fingerprint"), shown=shown, **first | said)


def _text(row: Mapping[str, Any], key: str) -> str:
    return text(row.get(key), f"the {key} of a problem")


def write_baseline(path: Path, problems: Sequence[Problem], extent: Extent) -> None:
    """Write the problems as the new baseline, whole or not at all; what the run could not see is kept.

    Raises:
        UsageError: there is a file of that name that is no baseline.
        OutputError: it cannot be written.

    """
    is_there = os.path.isfile(path) and os.path.getsize(path) > 0
    before = read_baseline(path) if is_there else Baseline()
    rows = {one.fingerprint: one for one in map(_known, problems)}
    rows |= {one.fingerprint: one for one in before.match(problems, extent).unseen}
    paths = {*extent.paths, *(one for one in before.paths if not extent.has(one))}
    listed = sorted((dataclasses.asdict(one) for one in rows.values()), key=lambda row: row["shown"])
    data = {"schema": _SCHEMA, "paths": sorted(paths), "problems": listed}
    try:
        write_whole(path, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=path) from None
