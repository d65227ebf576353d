"""How much of the suite a session looked at: all of it, and all of each falsifier, or a part."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from apr_falsify.contracts.claim import Claim

_CHOOSING = ("keyword", "markexpr", "deselect", "ignore", "ignore_glob", "lf", "stepwise")
"""Options of pytest that leave tests out."""


def is_whole_suite(config: pytest.Config) -> bool:
    """Whether nothing was left out: no ``-k``, ``-m`` and the like, and no path but the suite's own."""
    if any(config.getoption(name, None) for name in _CHOOSING):
        return False
    given = [config.invocation_params.dir / one for one in config.args if "::" not in one]
    roots = [config.rootpath / path for path in config.getini("testpaths")] or [config.rootpath]
    return all(any(_is_under(root, path) for path in given) for root in roots)


def _is_under(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def untested(claims: Mapping[str, Claim], tested: Iterable[str]) -> list[str]:
    """Return a line for every falsifier that pytest should decide and no test does."""
    known = set(tested)
    return [
        f"  {claim.falsifier} ({marker}, {claim.path})"
        for marker, claim in claims.items()
        if claim.falsifier not in known and not _is_for_another_program(claim)
    ]


def _is_for_another_program(claim: Claim) -> bool:
    """Whether its contract says that ``cargo`` runs its test."""
    test = str(claim.fields.get("test", ""))
    return "cargo" in test and "pytest" not in test


def names_marker(expression: str, marker: str) -> bool:
    """Whether a ``-m`` expression asks for ``marker``: names it, and not to leave it out."""
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except SyntaxError:
        return False  # pytest says what is wrong with it
    return _asks_for(tree.body, marker, wanted=True)


def _asks_for(node: ast.expr, marker: str, *, wanted: bool) -> bool:
    """Follow ``and``, ``or`` and ``not``: pytest's expressions are a part of Python's."""
    if isinstance(node, ast.UnaryOp):
        return _asks_for(node.operand, marker, wanted=not wanted)
    if isinstance(node, ast.BoolOp):
        return any(_asks_for(one, marker, wanted=wanted) for one in node.values)
    name = node.func if isinstance(node, ast.Call) else node
    return wanted and isinstance(name, ast.Name) and name.id == marker
