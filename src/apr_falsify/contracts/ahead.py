"""Reading, on all cores and before the work is parted, what many contracts will ask for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from apr_falsify.contracts.names import parse_test
from apr_falsify.contracts.resolve_cargo import prepare
from apr_falsify.contracts.roots import Roots, SearchScope

_CARGO = re.compile(r"\bcargo\s+(?:\+\S+\s+)?(?:test|t|nextest)\b[^\n`]*")
_PACKAGE = re.compile(r"(?:-p|--package|--manifest-path)[ =]\S+|--workspace|--all\b")


def read_ahead(contracts: Sequence[tuple[Path, bytes]], roots: Roots) -> None:
    """Read the crates that commands of contracts test.

    Args:
        contracts: path and content of each.
        roots: the trees.

    """
    seen: set[tuple[str, tuple[str, ...]]] = set()
    for path, raw in contracts:
        text = raw.decode("utf-8", "replace") if b"cargo" in raw else ""
        for line in _CARGO.findall(text):
            key = (str(path.parent), tuple(_PACKAGE.findall(line)))
            if key in seen:
                continue
            seen.add(key)
            for command in parse_test(line).cargo:
                prepare(command, SearchScope(path, roots))
