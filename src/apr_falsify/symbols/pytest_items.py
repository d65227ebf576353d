"""The tests of one Python file as pytest lists them, with what decides whether each runs.

Rules: pytest's documentation, "Conventions for Python test discovery", "How to use skip and xfail".
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

from apr_falsify.symbols.pytest_ids import parameter_cases, takes_other_fixtures, why_no_case, words_of_cases
from apr_falsify.symbols.pytest_module import put_in_bases, put_in_constants, taken_away
from apr_falsify.symbols.pytest_skips import (
    Function,
    body_marks,
    dotted,
    is_typing_only,
    marks_of,
    module_skip,
    own_skip,
    truth_of,
)
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
        case_words: a text that holds every word of their ids, where those are not known; ``None`` where a run
            alone shows it.
        skipped_cases: those of them that are skipped in every run.
        is_whole: whether they are all of what stands between the brackets, no fixture adding to them.
        hides: lines of earlier definitions of the same name, which this one takes the place of.

    """

    parts: tuple[str, ...]
    line: int
    skip: str = ""
    marks: frozenset[str] = frozenset()
    cases: tuple[str, ...] | None = ()
    case_words: str | None = ""
    skipped_cases: frozenset[str] = frozenset()
    is_whole: bool = True
    hides: tuple[int, ...] = ()


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class PythonItems:
    """The tests of a file.

    Attributes:
        items: what is left when the file has been imported: of a name that is defined twice, the last.
        hidden: parts of what a later definition of the same name hides, with the line of that.
        never: parts of what is defined and never collected, with the reason.
        origins: modules and classes of other files whose tests are its own too.
        is_open: whether a function that is called may make tests of any name.

    """

    items: tuple[PythonItem, ...] = ()
    hidden: tuple[tuple[tuple[str, ...], int], ...] = ()
    never: tuple[tuple[tuple[str, ...], str], ...] = ()
    origins: tuple[str, ...] = ()
    is_open: bool = False


def read_items(source: bytes) -> PythonItems:
    """Read a file; one that does not parse holds none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return PythonItems(is_open=True)
    put_in_constants(module)
    put_in_bases(module)
    reading = _Reading()
    skip, marks = module_skip(module.body), frozenset(body_marks(module.body))
    reading.block(module.body, _Around(skip=skip, marks=marks))
    never = list(reading.never)
    for name, line, why in taken_away(module.body):
        found = (one.parts for one in reading.items if not name or (one.parts[0] == name and one.line < line))
        never += [(parts, why) for parts in found]
    gone = {parts for parts, _ in never}
    return PythonItems(
        items=tuple(one for one in reading.items if one.parts not in gone),
        hidden=tuple(reading.hidden),
        never=tuple(never),
        origins=tuple(dict.fromkeys(_origins(module))),
        is_open=_is_open(module),
    )


def _is_open(module: ast.Module) -> bool:
    """Whether tests are made that stand nowhere as they are named."""
    for node in module.body:
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


def _origins(module: ast.Module) -> Iterator[str]:
    """Modules and classes elsewhere whose tests are tests of this module too."""
    for node in module.body:
        if isinstance(node, ast.ImportFrom):
            named = any(one.name == "*" or one.name[:4].lower() == "test" for one in node.names)
            if named:
                yield (node.module or "").rpartition(".")[2] or "__init__"
        if isinstance(node, ast.ClassDef):
            bases = [dotted(one).rpartition(".")[2] for one in node.bases if not _is_plain(one)]
            yield from (one for one in bases if node.name.startswith("Test") or _OF_TESTS.search(one))


_OF_TESTS = re.compile(r"test|case|mixin|suite|base", re.IGNORECASE)
"""What a class of tests is called; one of another name is collected where its own name begins with Test."""


def _is_plain(base: ast.expr) -> bool:
    return isinstance(base, ast.Name | ast.Attribute) and ast.unparse(base).rpartition(".")[2] in (
        "object",
        "TestCase",
        "IsolatedAsyncioTestCase",
    )


_RENAMED = (ast.Name, ast.Lambda)
"""What a name is given to, so that no more than that one test is made."""


def _makes_tests(node: ast.stmt) -> bool:
    """``globals()[name] = ...``, ``setattr(module, ...)``, ``exec``; ``test_x = make(..)``."""
    for one in ast.walk(node):
        if (
            isinstance(one, ast.Call)
            and isinstance(one.func, ast.Name)
            and one.func.id in ("globals", "vars", "setattr", "exec", "locals")
        ):
            return True
    if not isinstance(node, ast.Assign) or truth_of(node.value) is False or isinstance(node.value, _RENAMED):
        return False
    return any(isinstance(one, ast.Name) and one.id[:4].lower() == "test" for one in node.targets)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Around:
    """What stands around a definition: its classes, why they are skipped, their marks and parameters."""

    parents: tuple[str, ...] = ()
    skip: str = ""
    marks: frozenset[str] = frozenset()
    calls: tuple[ast.Call, ...] = ()
    never: str = ""


class _Reading:
    def __init__(self) -> None:
        self.items: list[PythonItem] = []
        self.hidden: list[tuple[tuple[str, ...], int]] = []
        self.never: list[tuple[tuple[str, ...], str]] = []

    def block(self, body: list[ast.stmt], around: _Around) -> None:
        last = {node.name: node for node in body if isinstance(node, Function | ast.ClassDef)}
        for node in body:
            if not isinstance(node, Function | ast.ClassDef):
                self.renamed(node, around)
                self.within(node, around)
            elif last[node.name] is node:
                earlier = [
                    one
                    for one in body
                    if isinstance(one, type(node)) and one.name == node.name and one is not node
                ]
                self.definition(node, around, tuple(one.lineno for one in earlier))
            else:
                self.hide(node, around.parents, last[node.name].lineno)

    def renamed(self, node: ast.stmt, around: _Around) -> None:
        """``test_other = helper``."""
        for one in node.targets if isinstance(node, ast.Assign) and isinstance(node.value, _RENAMED) else ():
            if isinstance(one, ast.Name) and one.id[:4].lower() == "test":
                parts, skip, marks = (*around.parents, one.id), around.skip, around.marks
                self.items.append(PythonItem(parts=parts, line=node.lineno, skip=skip, marks=marks))

    def within(self, node: ast.stmt, around: _Around) -> None:
        """Definitions under ``if``, ``try`` and ``with``: any of them may be the one."""
        off = {"body": "", "orelse": ""}
        if isinstance(node, ast.If):
            holds = False if is_typing_only(node.test) else truth_of(node.test)
            why = f"it stands where no run comes (line {node.lineno})"
            off = {"body": why if holds is False else "", "orelse": why if holds is True else ""}
        for name in ("body", "orelse", "finalbody"):
            inner = replace(around, never=around.never or off.get(name, ""))
            for one in getattr(node, name, ()):
                self.one_within(one, inner)
        for handler in getattr(node, "handlers", ()):
            for one in handler.body:
                self.one_within(one, around)

    def one_within(self, node: ast.stmt, around: _Around) -> None:
        if isinstance(node, Function | ast.ClassDef):
            self.definition(node, around, ())
        elif isinstance(node, ast.stmt):
            self.within(node, around)

    def definition(self, node: Function | ast.ClassDef, around: _Around, hides: tuple[int, ...]) -> None:
        own = set(marks_of(node))
        skip, marks = around.skip or own_skip(node) or why_no_case(node), around.marks | own
        parts = (*around.parents, node.name)
        never = around.never or ("it is a property" if around.parents and _is_property(node) else "")
        if isinstance(node, ast.ClassDef):
            calls = [one for one in reversed(node.decorator_list) if dotted(one).endswith("parametrize")]
            known = tuple(one for one in calls if isinstance(one, ast.Call))
            marks = (marks - {"parametrize"}) | set(body_marks(node.body))
            inner = _Around(parents=parts, skip=skip, marks=marks, calls=(*known, *around.calls), never=never)
            self.block(node.body, inner)
            return
        if never:
            self.never.append((parts, never))
            return
        is_many = "parametrize" in own or bool(around.calls)
        cases = (
            None if "parametrize" in around.marks else parameter_cases(node, around.calls) if is_many else ()
        )
        self.items.append(
            PythonItem(
                parts=parts,
                line=node.lineno,
                skip=skip,
                marks=marks | ({"parametrize"} if is_many else set()),
                cases=None if cases is None else tuple(one.id for one in cases),
                case_words=None
                if "parametrize" in around.marks
                else words_of_cases(node, around.calls)
                if cases is None
                else "",
                skipped_cases=frozenset(one.id for one in cases or () if one.is_skipped),
                is_whole=not takes_other_fixtures(node, around.calls),
                hides=hides,
            )
        )

    def hide(self, node: Function | ast.ClassDef, parents: tuple[str, ...], line: int) -> None:
        parts = (*parents, node.name)
        self.hidden.append((parts, line))
        for one in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(one, Function):
                self.hidden.append(((*parts, one.name), line))


def _is_property(node: Function | ast.ClassDef) -> bool:
    return any(
        dotted(one).rpartition(".")[2] in ("property", "cached_property") for one in node.decorator_list
    )


def collected_names(item: PythonItem, relative: str) -> Iterator[tuple[str, ...]]:
    """The names that ``-k`` looks into, for each case of a test."""
    own = (*relative.split("/"), relative, *item.parts, *item.marks)
    for case in item.cases or ("",):
        yield (*own, f"{item.parts[-1]}[{case}]") if case else own
