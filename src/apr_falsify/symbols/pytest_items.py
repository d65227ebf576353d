"""The tests of one Python file as pytest lists them, with what decides whether each runs.

Rules: pytest's documentation, "Conventions for Python test discovery", "How to use skip and xfail".
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from apr_falsify.symbols.pytest_ids import parameter_ids, takes_other_fixtures
from apr_falsify.symbols.pytest_skips import Function, body_marks, marks_of, module_skip, own_skip
from apr_falsify.symbols.states import quickly_pickled


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class PythonItem:
    """A function that pytest may collect.

    Attributes:
        parts: the classes it is in, outermost first, and its name.
        line: where it stands.
        skip: why it is skipped in every run; empty where it is not.
        marks: names of the marks that it carries, by itself, its classes and its module.
        cases: the ids of its parameters, which are part of its name; ``None`` where a run alone shows them.
        is_whole: whether they are all of what stands between the brackets, no fixture adding to them.
        hides: lines of earlier definitions of the same name, which this one takes the place of.

    """

    parts: tuple[str, ...]
    line: int
    skip: str = ""
    marks: frozenset[str] = frozenset()
    cases: tuple[str, ...] | None = ()
    is_whole: bool = True
    hides: tuple[int, ...] = ()


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class PythonItems:
    """The tests of a file.

    Attributes:
        items: what is left when the file has been imported: of a name that is defined twice, the last.
        hidden: parts of what a later definition of the same name hides, with the line of that.
        is_open: whether tests may come from elsewhere: a star, a base class, a function that is called.

    """

    items: tuple[PythonItem, ...] = ()
    hidden: tuple[tuple[tuple[str, ...], int], ...] = ()
    is_open: bool = False


def read_items(source: bytes) -> PythonItems:
    """Read a file; one that does not parse holds none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return PythonItems(is_open=True)
    reading = _Reading()
    skip, marks = module_skip(module.body), frozenset(body_marks(module.body))
    reading.block(module.body, (), skip, marks)
    return PythonItems(items=tuple(reading.items), hidden=tuple(reading.hidden), is_open=_is_open(module))


def _is_open(module: ast.Module) -> bool:
    for node in module.body:
        if isinstance(node, ast.ImportFrom) and any(
            one.name == "*" or one.name[:4].lower() == "test" for one in node.names
        ):
            return True
        if isinstance(node, ast.ClassDef) and any(not _is_plain(one) for one in node.bases):
            return True
        if isinstance(node, ast.FunctionDef) and node.name in (
            "pytest_generate_tests",
            "load_tests",
            "__getattr__",
        ):
            return True
        if isinstance(node, ast.Expr | ast.Assign | ast.For | ast.If | ast.With | ast.Try) and _makes_tests(
            node
        ):
            return True
    return False


def _is_plain(base: ast.expr) -> bool:
    return isinstance(base, ast.Name | ast.Attribute) and ast.unparse(base).rpartition(".")[2] in (
        "object",
        "TestCase",
        "IsolatedAsyncioTestCase",
    )


def _makes_tests(node: ast.stmt) -> bool:
    """``globals()[name] = ...``, ``setattr(module, ...)``, ``exec``; ``test_x = make(..)``."""
    for one in ast.walk(node):
        if (
            isinstance(one, ast.Call)
            and isinstance(one.func, ast.Name)
            and one.func.id in ("globals", "vars", "setattr", "exec", "locals")
        ):
            return True
    targets = node.targets if isinstance(node, ast.Assign) else []
    return any(isinstance(one, ast.Name) and one.id[:4].lower() == "test" for one in targets)


class _Reading:
    def __init__(self) -> None:
        self.items: list[PythonItem] = []
        self.hidden: list[tuple[tuple[str, ...], int]] = []

    def block(self, body: list[ast.stmt], parents: tuple[str, ...], skip: str, marks: frozenset[str]) -> None:
        last = {node.name: node for node in body if isinstance(node, Function | ast.ClassDef)}
        for node in body:
            if not isinstance(node, Function | ast.ClassDef):
                self.within(node, parents, skip, marks)
            elif last[node.name] is node:
                earlier = [
                    one
                    for one in body
                    if isinstance(one, type(node)) and one.name == node.name and one is not node
                ]
                self.definition(node, parents, skip, marks, tuple(one.lineno for one in earlier))
            else:
                self.hide(node, parents, last[node.name].lineno)

    def within(self, node: ast.stmt, parents: tuple[str, ...], skip: str, marks: frozenset[str]) -> None:
        """Definitions under ``if``, ``try`` and ``with``: any of them may be the one."""
        for name in ("body", "orelse", "finalbody"):
            for one in getattr(node, name, ()):
                self.one_within(one, parents, skip, marks)
        for handler in getattr(node, "handlers", ()):
            for one in handler.body:
                self.one_within(one, parents, skip, marks)

    def one_within(self, node: ast.stmt, parents: tuple[str, ...], skip: str, marks: frozenset[str]) -> None:
        if isinstance(node, Function | ast.ClassDef):
            self.definition(node, parents, skip, marks, ())
        elif isinstance(node, ast.stmt):
            self.within(node, parents, skip, marks)

    def definition(
        self,
        node: Function | ast.ClassDef,
        parents: tuple[str, ...],
        skip: str,
        marks: frozenset[str],
        hides: tuple[int, ...],
    ) -> None:
        around, own = "parametrize" in marks, set(marks_of(node))
        skip, marks = skip or own_skip(node), marks | own
        parts = (*parents, node.name)
        if isinstance(node, ast.ClassDef):
            self.block(node.body, parts, skip, marks | set(body_marks(node.body)))
            return
        cases = None if around else parameter_ids(node) if "parametrize" in own else ()
        self.items.append(
            PythonItem(
                parts=parts,
                line=node.lineno,
                skip=skip,
                marks=marks,
                cases=cases,
                is_whole=not takes_other_fixtures(node),
                hides=hides,
            )
        )

    def hide(self, node: Function | ast.ClassDef, parents: tuple[str, ...], line: int) -> None:
        parts = (*parents, node.name)
        self.hidden.append((parts, line))
        for one in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(one, Function):
                self.hidden.append(((*parts, one.name), line))


def collected_names(item: PythonItem, relative: str) -> Iterator[tuple[str, ...]]:
    """The names that ``-k`` looks into, for each case of a test."""
    own = (*relative.split("/"), relative, *item.parts, *item.marks)
    for case in item.cases or ("",):
        yield (*own, f"{item.parts[-1]}[{case}]") if case else own
