"""Promotion on the contracts that others wrote: PyYAML's own nodes say which lines may change, and how."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from apr_falsify.contracts.claim import Pin
from apr_falsify.contracts.promote import Edit, Move, PromotionPlan, plan_edit
from apr_falsify.errors import ContractError
from tests.support import REAL_VARIABLE, real_folder

pytestmark = pytest.mark.skipif(real_folder() is None, reason=f"{REAL_VARIABLE} names no folder")

LADDER = ("BLOCKER_FIXTURE_ABSENT", "PARTIAL_ALGORITHM_LEVEL", "FUNCTIONAL")
PIN = Pin(bundle="evidence/X", statement_sha256="0f" * 32)
BLOCKS = ("falsification_tests", "falsification", "falsifiers", "gates", "falsification_gates")

Found = tuple[str, yaml.MappingNode]


def contracts() -> list[Path]:
    folder = real_folder()
    return sorted((folder / "contracts").glob("*.yaml")) if folder else []


def value(node: yaml.Node | None, *names: str) -> yaml.Node | None:
    for name in names:
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        node = next((item for key, item in pairs if key.value == name), None)
    return node


def falsifiers(text: str) -> Iterator[Found]:
    root = yaml.compose(text, yaml.CSafeLoader)
    for block in BLOCKS:
        items = value(root, block)
        for item in items.value if isinstance(items, yaml.SequenceNode) else ():
            name = value(item, "id")
            if isinstance(item, yaml.MappingNode) and name is not None:
                yield name.value, item


def with_status(text: str) -> str:
    """Give every falsifier that has no status one, in the line below its id."""
    lines = text.splitlines(keepends=True)
    for _, item in reversed(list(falsifiers(text))):
        name = value(item, "id")
        if all(value(item, key) is None for key in ("status", "discharge_status", "verdict")) and name:
            indent = " " * next(key for key, _ in item.value if key.value == "id").start_mark.column
            lines.insert(name.end_mark.line + 1, f"{indent}status: {LADDER[0]}\n")
    return "".join(lines)


@cache
def moved() -> dict[tuple[str, str], tuple[Edit | ContractError, str]]:
    """Each falsifier of each contract, promoted by one rung, or why not."""
    answers: dict[tuple[str, str], tuple[Edit | ContractError, str]] = {}
    for path in contracts():
        text = with_status(path.read_text(encoding="utf-8"))
        for name, item in falsifiers(text):
            held = next(
                (one for key in ("status", "discharge_status") if (one := value(item, key)) is not None), None
            )
            word = held.value if held is not None else ""
            above = LADDER[LADDER.index(word) + 1] if word in LADDER[:2] else LADDER[1]
            plan = PromotionPlan(falsifier=name, move=Move.PROMOTE, rung=above, pin=PIN, date="2026-12-01")
            try:
                answers[path.name, name] = (plan_edit(path, text.encode(), plan), text)
            except ContractError as error:
                answers[path.name, name] = (error, text)
    return answers


def test_most_are_edited_and_the_others_refused_for_reasons_that_hold() -> None:
    refused = {key: str(answer[0]) for key, answer in moved().items() if isinstance(answer[0], ContractError)}
    assert len(moved()) >= 70
    assert len(moved()) - len(refused) >= 50
    for (name, falsifier), words in refused.items():
        known = ("not MAJOR.MINOR.PATCH", "no word of the ladder", "no description", "no status")
        known += ("stands inside", "stands 2 times", "has no version", "holds something")
        assert any(one in words for one in known), (name, falsifier, words)


def allowed_lines(text: str, falsifier: str) -> set[int]:
    """Lines that hold the values which a promotion may change, from 0."""
    root = yaml.compose(text, yaml.CSafeLoader)
    item = next(item for name, item in falsifiers(text) if name == falsifier)
    one_line = [
        *(value(root, *where) for where in (("metadata", "version"), ("version",), ("metadata", "status"))),
        value(root, "status"),
        *(value(item, key) for key in ("status", "discharge_status")),
    ]
    lines = {node.start_mark.line for node in one_line if node is not None}
    description = value(root, "metadata", "description") or value(root, "description")
    assert description is not None
    return lines | set(range(description.start_mark.line, description.end_mark.line + 1))


def test_only_the_lines_of_the_changed_values_change() -> None:
    seen = 0
    for (name, falsifier), (answer, text) in moved().items():
        if isinstance(answer, ContractError):
            continue
        before, after = text.splitlines(keepends=True), answer.after.decode().splitlines(keepends=True)
        allowed = allowed_lines(text, falsifier)
        matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
        changes = [one for one in matcher.get_opcodes() if one[0] != "equal"]
        for kind, start, end, _, _ in changes:
            touched = set(range(start, end)) if kind != "insert" else {start - 1, start}
            assert touched & allowed, (name, falsifier, kind, before[start:end])
            assert kind == "insert" or touched <= allowed, (name, falsifier, before[start:end])
        assert sum(end - start for _, start, end, _, _ in changes) <= 5
        seen += 1
    assert seen >= 50


def test_within_a_changed_line_only_the_value_changes() -> None:
    for (name, falsifier), (answer, text) in moved().items():
        if isinstance(answer, ContractError):
            continue
        line = next(
            at
            for at, one in enumerate(text.splitlines())
            if at in allowed_lines(text, falsifier)
            and one.lstrip(" -").startswith(("status:", "discharge_s"))
        )
        old = text.splitlines()[line]
        new = [one for one in answer.after.decode().splitlines() if one.startswith(old.split(":")[0] + ":")]
        rungs = (old.replace(LADDER[at], LADDER[at + 1]) for at in (0, 1))
        assert old in new or any(one in new for one in rungs), (name, falsifier, old)


def test_all_but_the_changed_values_is_equal_for_another_reader() -> None:
    for (name, falsifier), (answer, text) in moved().items():
        if isinstance(answer, ContractError):
            continue
        before, after = (yaml.load(one, yaml.CSafeLoader) for one in (text, answer.after))
        for data in (before, after):
            for holder in (data, data.get("metadata") or {}):
                for key in ("version", "description", "status"):
                    holder.pop(key, None)
            items = next(data[block] for block in BLOCKS if _has(data.get(block), falsifier))
            mine = next(one for one in items if one.get("id") == falsifier)
            for key in ("status", "discharge_status", "evidence"):
                mine.pop(key, None)
        assert before == after, (name, falsifier)


def _has(items: object, falsifier: str) -> bool:
    return isinstance(items, list) and any(
        isinstance(one, dict) and one.get("id") == falsifier for one in items
    )
