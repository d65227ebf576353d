"""A baseline: the problems a project had when it adopted the validator. Known ones count, new ones fail."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_falsify.contracts.problem import Problem
from apr_falsify.errors import OutputError, UsageError
from apr_falsify.folders import write_whole
from apr_falsify.reading import items, mapping, read_json, text

_SCHEMA = "apr-falsify/baseline/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Fingerprint of each known problem, with the words to show it by."""

    known: dict[str, str]

    def mended(self, problems: Iterable[Problem]) -> list[str]:
        """Known problems that are no more: to be struck off, so that they cannot come back unseen."""
        present = {problem.fingerprint for problem in problems}
        return [shown for fingerprint, shown in self.known.items() if fingerprint not in present]


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
        return Baseline(known={_text(row, "fingerprint"): _text(row, "shown") for row in rows})
    except OSError as error:
        remedy = f"validate-contracts --baseline {path} --write-baseline"
        raise UsageError(f"cannot be read: {error.strerror}", where=path, remedy=remedy) from None
    except ValueError as error:
        raise UsageError(
            f"is no baseline: {error}", where=path, expected=f"JSON of schema {_SCHEMA}"
        ) from None


def _text(row: Mapping[str, Any], key: str) -> str:
    return text(row.get(key), f"the {key} of a problem")


def write_baseline(path: Path, problems: Iterable[Problem]) -> None:
    """Write the problems as the new baseline, whole or not at all."""
    rows = {
        problem.fingerprint: {
            "fingerprint": problem.fingerprint,
            "shown": f"{problem.path}: {problem.code} {problem.message}",
        }
        for problem in problems
    }
    data = {"schema": _SCHEMA, "problems": sorted(rows.values(), key=lambda row: row["shown"])}
    try:
        write_whole(path, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=path) from None
