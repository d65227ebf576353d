"""A baseline: the problems a project had when it adopted the validator. Known ones count, new ones fail.

Paths are seen from the repository of the baseline's own file, so that two checkouts in one run stay apart. A
known problem is recognised by its fingerprint and its words; then, where entries were put before it in a
list, by all that it says but where it stands; then by its fingerprint alone, unless only its words say which
file it is about. One that a run could not have seen, because its contract, its source or its commit was not
asked for, is neither known nor fixed in that run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_falsify.contracts.problem import Problem
from apr_falsify.contracts.roots import repository_around
from apr_falsify.contracts.rules import ACROSS_CONTRACTS, HIDING, NAMED_IN_WORDS, NOT_READ, OF_HISTORY
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
    path: str  # from the root of the baseline's repository
    key: str = ""
    about: str = ""

    @property
    def kind(self) -> tuple[str, ...]:
        """All that it says, its words among it, but where in a list and in which line it stands."""
        about = "" if self.about == self.key else self.about
        return self.code, self.path, _without_places(self.key), about, _without_places(self.shown)

    @property
    def is_bare(self) -> bool:
        """Whether it is of a first release: its fingerprint is as seen from the folder of that run."""
        return not self.about


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """What a run looked at: files and folders as seen from ``root``, and a commit or none.

    ``root`` is the repository that the baseline's file is in, else that file's folder.
    """

    paths: tuple[str, ...]
    is_historic: bool = False
    root: Path = Path()

    @classmethod
    def of(cls, asked: Iterable[Path], against: str | None, baseline: Path) -> Extent:
        """Return the extent of a run over what was asked for, as a baseline sees it."""
        root = repository_around(baseline.parent)
        paths = tuple(dict.fromkeys(_from_root(path, root) for path in asked))
        return cls(paths=paths, is_historic=against is not None, root=root)

    def has(self, path: str) -> bool:
        """Whether a file or folder was looked at."""
        there = Path(os.path.abspath(self.root / path))
        return any(there.is_relative_to(os.path.abspath(self.root / one)) for one in self.paths)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineMatch:
    """What a baseline says of a run: its problems that are known, and words of those that are fixed."""

    known: frozenset[Problem]
    mended: tuple[str, ...]
    unseen: tuple[KnownProblem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The known problems, and the paths that were looked at when they were noted."""

    problems: tuple[KnownProblem, ...] = ()
    paths: tuple[str, ...] = ()

    def match(self, problems: Sequence[Problem], extent: Extent) -> BaselineMatch:
        """Tell problems that are known from new ones, and find those that are no more."""
        now = {problem: _known(problem, extent.root) for problem in problems}
        same = self._paired(now)
        found = set(same.values())
        gone = [one for at, one in enumerate(self.problems) if at not in found]
        unseen = [one for one in gone if not self._was_seen(one, extent, now.values())]
        mended = tuple(one.shown for one in gone if one not in unseen)
        return BaselineMatch(known=frozenset(same), mended=mended, unseen=tuple(unseen))

    def _paired(self, now: Mapping[Problem, KnownProblem]) -> dict[Problem, int]:
        """Problems of the run that are known, each with the place of the listed one that it is."""
        same: dict[Problem, int] = {}
        whole = [(at, one) for at, one in enumerate(self.problems) if not one.is_bare]
        for trait, is_apt in _TRAITS:
            found = set(same.values())
            left = defaultdict(list)
            for at, one in whole:
                if at not in found and is_apt(one):
                    left[trait(one)].append(at)
            for problem, one in now.items():
                if problem not in same and left[trait(one)]:
                    same[problem] = left[trait(one)].pop(0)
        bare = {one.fingerprint: at for at, one in enumerate(self.problems) if one.is_bare}
        for problem, one in now.items():
            names = [one.fingerprint, *([] if one.path.startswith("../") else [problem.fingerprint])]
            listed = [bare[name] for name in names if name in bare]
            if problem not in same and listed:
                same[problem] = listed[0]
        return same

    def _was_seen(self, one: KnownProblem, extent: Extent, now: Iterable[KnownProblem]) -> bool:
        """Whether the run would have met the problem, had it still been there."""
        if not extent.has(one.path) or (one.code in OF_HISTORY and not extent.is_historic):
            return False
        if one.code in ACROSS_CONTRACTS and not all(extent.has(path) for path in self.paths or (one.path,)):
            return False
        here = [other for other in now if other.path == one.path]
        hidden = any(other.code in HIDING and _is_of_one_name(one, other) for other in here)
        return not hidden and all(other.code not in NOT_READ for other in here)


_TRAITS: tuple[tuple[Callable[[KnownProblem], Hashable], Callable[[KnownProblem], bool]], ...] = (
    (lambda one: (one.fingerprint, one.kind), lambda _: True),
    (lambda one: one.kind, lambda _: True),
    (lambda one: one.fingerprint, lambda one: one.code not in NAMED_IN_WORDS),
)
"""By what a problem is recognised, the surest first, and of which listed ones that holds."""


def _is_of_one_name(one: KnownProblem, other: KnownProblem) -> bool:
    """Whether two problems are of one cited name: at one place, or about it in an entry that has moved.

    A crate that is not there is said once, for all functions of its bindings.
    """
    here, there = _without_places(one.key), _without_places(other.key)
    moved = here == there and one.about == other.about
    return moved or one.key == other.key or here == f"{there}.function"


def _without_places(text: str) -> str:
    """Without places in lists (``[3]``) and numbers of lines (``x.py:7``, ``line 7``)."""
    return re.sub(r"\[\d+\]|(?<=\w):\d+\b|\b(?<=line )\d+\b", "", text)


def _from_root(path: Path, root: Path) -> str:
    """A path as seen from a folder, links to folders followed; "." for the folder itself."""
    folder = path if path.is_dir() else path.parent
    there = os.path.join(os.path.realpath(folder), "" if folder is path else path.name)
    return os.path.relpath(there, root).replace(os.sep, "/")


def _known(problem: Problem, root: Path) -> KnownProblem:
    there = dataclasses.replace(problem, path=_from_root(Path(problem.path), root))
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


def write_baseline(
    path: Path, problems: Sequence[Problem], extent: Extent, counts: Callable[[Problem], bool]
) -> None:
    """Write the problems that count as the new baseline, whole or not at all.

    What the run could not see is kept: all its problems say what that is, notices too.

    Raises:
        UsageError: there is a file of that name that is no baseline.
        OutputError: it cannot be written.

    """
    is_there = os.path.isfile(path) and os.path.getsize(path) > 0
    before = read_baseline(path) if is_there else Baseline()
    rows = [_known(one, extent.root) for one in dict.fromkeys(problems) if counts(one)]
    rows += before.match(problems, extent).unseen
    paths = {*extent.paths, *(one for one in before.paths if not extent.has(one))}
    listed = sorted((dataclasses.asdict(one) for one in rows), key=lambda row: (row["shown"], row["key"]))
    data = {"schema": _SCHEMA, "paths": sorted(paths), "problems": listed}
    try:
        write_whole(path, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=path) from None
