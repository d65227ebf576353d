"""What a Python file defines, read with ``ast``: nothing is imported, nothing runs."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator

from apr_falsify.symbols.index import ClassShape, Definition, SymbolIndex

_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
_SKIPS = {"skip": "ignored", "fixture": "fixture"}


def index_python(source: bytes) -> SymbolIndex:
    """Index a Python file; one that does not parse yields an index with ``error_line``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in somebody's string is not our business
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        return SymbolIndex(language="python", error_line=line, error=str(getattr(error, "msg", error)))
    reader = _Reader()
    reader.block(tree.body, (), owner="")
    return SymbolIndex(
        language="python",
        definitions=tuple(reader.found),
        reexports=tuple(reader.imports),
        classes=reader.classes,
    )


class _Reader:
    """Collects definitions while walking statements; expressions are never entered."""

    def __init__(self) -> None:
        self.found: list[Definition] = []
        self.imports: list[tuple[str, str]] = []
        self.classes: dict[str, ClassShape] = {}

    def block(self, body: list[ast.stmt], parents: tuple[str, ...], *, owner: str) -> None:
        for statement in body:
            self.statement(statement, parents, owner)

    def statement(self, node: ast.stmt, parents: tuple[str, ...], owner: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self.function(node, parents, owner)
        elif isinstance(node, ast.ClassDef):
            self.klass(node, parents)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            self.imports.extend(_imported(node) if not parents else ())
        else:
            self.assignment(node, parents, owner)
            self.nested_blocks(node, parents, owner)

    def function(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef, parents: tuple[str, ...], owner: str
    ) -> None:
        kind = "method" if owner == "class" else "function"
        self.add(node.name, kind, node.lineno, parents, _marks(node.decorator_list))
        self.block(node.body, (*parents, node.name), owner="function")

    def klass(self, node: ast.ClassDef, parents: tuple[str, ...]) -> None:
        self.add(node.name, "class", node.lineno, parents, _marks(node.decorator_list))
        self.classes["::".join((*parents, node.name))] = _shape(node)
        self.block(node.body, (*parents, node.name), owner="class")

    def assignment(self, node: ast.stmt, parents: tuple[str, ...], owner: str) -> None:
        for target in _targets(node):
            if isinstance(target, ast.Name) and owner != "function":
                kind = "attribute" if owner == "class" else "constant"
                self.add(target.id, kind, target.lineno, parents)
            elif _is_self_attribute(target) and len(parents) > 1:
                assert isinstance(target, ast.Attribute)
                self.add(target.attr, "attribute", target.lineno, parents[:-1])

    def nested_blocks(self, node: ast.AST, parents: tuple[str, ...], owner: str) -> None:
        for name in _BLOCKS:
            for child in getattr(node, name, ()):
                if isinstance(child, ast.stmt):
                    self.statement(child, parents, owner)
                else:  # an except handler or a match case: a block with a head
                    self.nested_blocks(child, parents, owner)

    def add(
        self, name: str, kind: str, line: int, parents: tuple[str, ...], marks: tuple[str, ...] = ()
    ) -> None:
        self.found.append(Definition(name=name, kind=kind, line=line, parents=parents, marks=marks))


def _targets(node: ast.stmt) -> Iterator[ast.expr]:
    if isinstance(node, ast.Assign):
        pending = list(node.targets)
    elif isinstance(node, ast.AnnAssign | ast.AugAssign):
        pending = [node.target]
    elif node.__class__.__name__ == "TypeAlias":  # Python 3.12's `type X = ...`
        pending = [node.name]  # type: ignore[attr-defined]  # Python 3.11 does not know it
    else:
        return
    while pending:
        target = pending.pop()
        if isinstance(target, ast.Tuple | ast.List):
            pending.extend(target.elts)
        else:
            yield target


def _is_self_attribute(target: ast.expr) -> bool:
    return (
        isinstance(target, ast.Attribute)
        and isinstance(target.value, ast.Name)
        and target.value.id in ("self", "cls")
    )


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str]]:
    module = "." * node.level + (node.module or "") if isinstance(node, ast.ImportFrom) else ""
    for alias in node.names:
        known_by = alias.asname or (alias.name if module else alias.name.split(".")[0])
        yield known_by, f"{module}.{alias.name}" if module else alias.name


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        return _dotted(node.func)
    if isinstance(node, ast.Subscript):
        return _dotted(node.value)
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _marks(decorators: list[ast.expr]) -> tuple[str, ...]:
    last = (_dotted(one).rpartition(".")[2] for one in decorators)
    return tuple(_SKIPS[name] for name in last if name in _SKIPS)


def _shape(node: ast.ClassDef) -> ClassShape:
    methods = {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
    off = any(
        isinstance(one, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == "__test__" for target in one.targets)
        and isinstance(one.value, ast.Constant)
        and not one.value.value
        for one in node.body
    )
    return ClassShape(
        bases=tuple(_dotted(base) for base in node.bases),
        has_init=bool(methods & {"__init__", "__new__"}),
        is_test_off=off,
    )
