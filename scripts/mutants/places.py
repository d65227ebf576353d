"""Every mutant of a source file, each with a name that survives moved lines."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mutants.changes import changes, is_text

_CONTEXT = 50
"""Characters of a long expression that are shown on either side of the change."""

_PLACED = (ast.expr, ast.stmt, ast.excepthandler, ast.keyword, ast.arg, ast.alias, ast.pattern)
"""The nodes that know their lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Where a node hangs: a field of its parent, and the position where that is a list."""

    parent: ast.AST
    name: str
    index: int | None = None

    def put(self, node: ast.AST) -> None:
        """Hang another node there."""
        if self.index is None:
            setattr(self.parent, self.name, node)
        else:
            getattr(self.parent, self.name)[self.index] = node


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One change of the code.

    Attributes:
        file: the file, relative to the repository.
        function: the qualified name of the function or class around it, else of the constant or table.
        change: the expression before and after; ``(#2)`` marks the second of the same in the function.
        kind: which sort of change.
        lines: the lines of the file whose execution reaches it; empty for what an import of the module runs.
        statement: the statement at the top level of the module that holds it.
        rest: the statements of the module behind that one.
        slot: where the change is made.
        new: the node that is put there.

    """

    file: str
    function: str
    change: str
    kind: str
    lines: range
    statement: ast.stmt = field(repr=False)
    rest: tuple[ast.stmt, ...] = field(repr=False)
    slot: Slot = field(repr=False)
    new: ast.AST = field(repr=False)

    @property
    def defines(self) -> set[str]:
        """The names that its statement at the top level of the module defines."""
        return _defined(self.statement)

    @property
    def key(self) -> str:
        """What the mutant is known by."""
        return f"{self.file} | {self.function} | {self.change}"

    @property
    def of_constant(self) -> str:
        """What every change of the same constant, table or function is known by."""
        return f"{self.file} | {self.function} | *"


def mutants_of(path: Path, root: Path) -> list[Mutant]:
    """Return every mutant of a file, in the order of its text."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    file = path.relative_to(root).as_posix()
    found = [
        mutant
        for index, statement in enumerate(module.body)
        for mutant in _Walk(file=file, statement=statement, rest=tuple(module.body[index + 1 :])).mutants()
    ]
    seen: Counter[str] = Counter()
    numbered = []
    for mutant in found:
        seen[mutant.key] += 1
        count = seen[mutant.key]
        numbered.append(mutant if count == 1 else replace(mutant, change=f"{mutant.change} (#{count})"))
    return numbered


Lines = dict[str, set[int]]
"""File -> lines of it."""


class Uses:
    """Where names are used: what a change of a constant, a table or a default can be noticed by.

    Args:
        files: the files that are searched.
        root: the repository.

    """

    def __init__(self, files: Sequence[Path], root: Path) -> None:
        self._running: dict[str, Lines] = {}
        self._defining: dict[str, set[str]] = {}
        self._built: dict[str, set[str]] = {}
        for path in files:
            name = path.relative_to(root).as_posix()
            for statement in ast.parse(path.read_text(encoding="utf-8")).body:
                self._add(name, statement)

    def _add(self, file: str, statement: ast.stmt) -> None:
        """Note the names within a statement: by the lines that run, or by what the statement defines."""
        defined = values_of(statement)
        for node in ast.walk(statement):
            used = getattr(node, "id", getattr(node, "attr", None))
            if isinstance(node, ast.Name | ast.Attribute) and isinstance(used, str):
                if isinstance(statement, ast.FunctionDef | ast.ClassDef):
                    self._running.setdefault(used, {}).setdefault(file, set()).add(node.lineno)
                self._defining.setdefault(used, set()).update(defined)
        for called in calls_of(statement):
            self._built.setdefault(called, set()).update(defined)

    def of(self, names: Iterable[str]) -> Lines:
        """Return the lines that use any of ``names``, or what is defined by means of them."""
        found: Lines = {}
        for name in self.closed(names):
            for file, lines in self._running.get(name, {}).items():
                found.setdefault(file, set()).update(lines)
        return found

    def closed(self, names: Iterable[str]) -> set[str]:
        """Return ``names`` and those of the constants and tables that are defined by means of them."""
        waiting, seen = list(names), set[str]()
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += self._defining.get(name, ())
        return seen

    def built(self, function: str) -> set[str]:
        """Return the constants and tables that a call of ``function`` makes when the module is imported."""
        return self._built.get(function, set())


def values_of(statement: ast.stmt) -> set[str]:
    """Return the names of the constants and tables that a statement of a module defines."""
    return _defined(statement) if isinstance(statement, ast.Assign | ast.AnnAssign) else set()


def calls_of(statement: ast.stmt) -> set[str]:
    """Return the functions that a statement which defines constants calls."""
    if not isinstance(statement, ast.Assign | ast.AnnAssign):
        return set()
    calls = (node.func for node in ast.walk(statement) if isinstance(node, ast.Call))
    return {func.id for func in calls if isinstance(func, ast.Name)}


def _defined(statement: ast.stmt) -> set[str]:
    name = getattr(statement, "name", None)
    stored = (node for node in ast.walk(statement) if isinstance(node, ast.Name))
    return {name} if name else {node.id for node in stored if isinstance(node.ctx, ast.Store)}


@dataclass(slots=True, kw_only=True)
class _Walk:
    file: str
    statement: ast.stmt
    rest: tuple[ast.stmt, ...]

    def mutants(self) -> Iterator[Mutant]:
        if not isinstance(self.statement, ast.Import | ast.ImportFrom):
            holder = ast.Module(body=[self.statement], type_ignores=[])
            yield from self._visit(self.statement, Slot(parent=holder, name="body", index=0), (), (), False)

    def _visit(
        self, node: ast.AST, slot: Slot, names: tuple[str, ...], above: tuple[ast.AST, ...], running: bool
    ) -> Iterator[Mutant]:
        """Walk down; ``running`` tells what a call executes from what the import of the module does."""
        if is_text(node) or _is_no_behaviour(slot):
            return
        for kind, new in changes(node):
            if _is_same(above, new):
                continue
            yield self._mutant(node, slot, names, above, running, kind, new)
        for name, value in ast.iter_fields(node):
            inner = names
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and name in ("body", "args"):
                inner = (*names, node.name)
            within = running or (isinstance(node, ast.FunctionDef | ast.Lambda) and name == "body")
            for child, place in _children(node, name, value):
                yield from self._visit(child, place, inner, (*above, node), within)

    def _mutant(
        self,
        node: ast.AST,
        slot: Slot,
        names: tuple[str, ...],
        above: tuple[ast.AST, ...],
        running: bool,
        kind: str,
        new: ast.AST,
    ) -> Mutant:
        return Mutant(
            file=self.file,
            function=".".join(names) or ", ".join(sorted(_defined(self.statement))) or "<module>",
            change=_shown(node, slot, above, new),
            kind=kind,
            lines=_lines(node, above) if running else range(0),
            statement=self.statement,
            rest=self.rest,
            slot=slot,
            new=new,
        )


def _is_no_behaviour(slot: Slot) -> bool:
    if slot.name in ("annotation", "returns", "decorator_list", "type_params", "msg", "exc", "cause", "type"):
        return True
    parent = slot.parent
    # `isinstance(x, A | B)` and `Alias = A | B` name types.
    return (
        isinstance(parent, ast.Call) and isinstance(parent.func, ast.Name) and parent.func.id == "isinstance"
    )


def _is_same(above: tuple[ast.AST, ...], new: ast.AST) -> bool:
    """Whether the change is none: NumPy's ``reshape`` works out a size of -2 as it does one of -1."""
    if len(above) < 2 or not isinstance(above[-1], ast.UnaryOp) or not isinstance(above[-2], ast.Call):
        return False
    return getattr(above[-2].func, "attr", "") == "reshape" and getattr(new, "value", 0) > 0


def _children(node: ast.AST, name: str, value: Any) -> Iterator[tuple[ast.AST, Slot]]:
    if isinstance(value, ast.AST):
        yield value, Slot(parent=node, name=name)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            if isinstance(each, ast.AST):
                yield each, Slot(parent=node, name=name, index=index)


def _lines(node: ast.AST, above: tuple[ast.AST, ...]) -> range:
    """Return the lines of the statement, or, in a compound one, of the expression that is changed."""
    holder = next(each for each in (node, *reversed(above)) if isinstance(each, ast.stmt))
    body: list[ast.stmt] | None = getattr(holder, "body", None)
    spot = next(each for each in (node, *reversed(above)) if isinstance(each, _PLACED))
    if body is not None and spot is holder:
        return range(holder.lineno, body[0].lineno)
    compound = body is not None
    around = spot if compound else holder
    return range(around.lineno, (around.end_lineno or around.lineno) + 1)


def _shown(node: ast.AST, slot: Slot, above: tuple[ast.AST, ...], new: ast.AST) -> str:
    """Return the change in words: the smallest expression that says something, before and after."""
    path = [*above, node]
    while _says_little(path[-1]):
        path.pop()
    shown = path[-1]
    before = _head(shown)
    if shown is node:
        return _trimmed(before, _head(new))
    slot.put(new)
    after = _head(shown)
    slot.put(node)
    return _trimmed(before, after)


def _says_little(node: ast.AST) -> bool:
    """Whether a node is shown with what is around it: a number, a bound, what is no expression."""
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.operand, ast.Constant)
    return isinstance(node, ast.Constant | ast.Slice) or not isinstance(node, ast.expr | ast.stmt)


def _head(node: ast.AST) -> str:
    """Return the text of a node; of a compound statement only its first line."""
    text = ast.unparse(node)
    return text.split("\n", 1)[0] if hasattr(node, "body") and isinstance(node, ast.stmt) else text


def _trimmed(before: str, after: str) -> str:
    """Cut what both have in common and lies far from the change."""
    start = max(0, _common(before, after) - _CONTEXT)
    end = max(0, _common(before[:start:-1], after[:start:-1]) - _CONTEXT)
    texts = (text[start : len(text) - end] for text in (before, after))
    left, right = ("... " if start else ""), (" ..." if end else "")
    return " -> ".join(left + " ".join(text.split()) + right for text in texts)


def _common(a: str, b: str) -> int:
    """Return how many characters two texts begin with alike."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((place for place, (x, y) in pairs if x != y), min(len(a), len(b)))
