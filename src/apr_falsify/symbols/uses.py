"""What a piece of Python code uses: names, dotted names, its own imports, and what only a run would show."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from apr_falsify.symbols.modules import Function, Import, imports_of

Chain = tuple[str, ...]
"""A name and the attributes that are taken of it: ``ops.softmax`` is ``("ops", "softmax")``."""

_IMPORTERS = ("import_module", "__import__")
_FILE_IMPORTERS = ("spec_from_file_location", "SourceFileLoader")
_DYNAMIC = {"eval": "evaluates text", "exec": "executes text", "globals": "reads globals() by name"}


@dataclass(slots=True, kw_only=True)
class Uses:
    """What a piece of code uses.

    Attributes:
        chains: dotted names that it reads.
        imports: names that it imports itself, within a function.
        modules: modules that it imports by a text that stands in it.
        parameters: parameters of its functions: of a test, the fixtures it asks for.
        dynamic: what it does that only a run would show.

    """

    chains: set[Chain] = field(default_factory=set)
    imports: dict[str, list[Import]] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)
    parameters: set[str] = field(default_factory=set)
    dynamic: set[str] = field(default_factory=set)


def uses_of(nodes: Iterable[ast.AST], folder: str) -> Uses:
    """Return what ``nodes``, of a module in ``folder``, use."""
    uses = Uses()
    visitor = _Visitor(uses, folder)
    for node in nodes:
        visitor.visit(node)
    return uses


class _Visitor(ast.NodeVisitor):
    def __init__(self, uses: Uses, folder: str) -> None:
        self.uses = uses
        self.folder = folder

    def visit_Name(self, node: ast.Name) -> None:
        self.uses.chains.add((node.id,))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        chain = chain_of(node)
        if chain is None:
            self.generic_visit(node)
        else:
            self.uses.chains.add(chain)

    def visit_Import(self, node: ast.Import) -> None:
        self._imported(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self._imported(node)

    def _imported(self, node: ast.Import | ast.ImportFrom) -> None:
        for name, found in imports_of(node, self.folder):
            self.uses.imports.setdefault(name, []).append(found)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._function(node)

    def _function(self, node: Function) -> None:
        arguments = node.args
        for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            self.uses.parameters.add(one.arg)
        self._quoted(node.returns)
        self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> None:
        self._quoted(node.annotation)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._quoted(node.annotation)
        self.generic_visit(node)

    def _quoted(self, annotation: ast.expr | None) -> None:
        """Visit the names within a quoted annotation."""
        for one in () if annotation is None else ast.walk(annotation):
            if isinstance(one, ast.Constant) and isinstance(one.value, str):
                try:
                    self.visit(ast.parse(one.value, mode="eval"))
                except (SyntaxError, ValueError, RecursionError):
                    continue  # a text of Literal["..."], and no type

    def visit_Call(self, node: ast.Call) -> None:
        name = (chain_of(node.func) or ("",))[-1]
        if name in _IMPORTERS:
            self._imports_by_text(node)
        elif name in ("usefixtures", "getfixturevalue"):
            self.uses.parameters.update(_texts(node.args))
            if not all(isinstance(one, ast.Constant) for one in node.args):
                self.uses.dynamic.add("asks for a fixture by a name that only a run shows")
        elif name in _FILE_IMPORTERS:
            self.uses.dynamic.add("imports a file by its path")
        elif isinstance(node.func, ast.Name) and name in _DYNAMIC:
            self.uses.dynamic.add(_DYNAMIC[name])
        self.generic_visit(node)

    def _imports_by_text(self, node: ast.Call) -> None:
        named = list(_texts(node.args[:1]))
        if named and not named[0].startswith("."):
            self.uses.modules.add(named[0])
        else:
            self.uses.dynamic.add("imports a module by a name that only a run shows")


def _texts(nodes: Iterable[ast.expr]) -> Iterator[str]:
    return (one.value for one in nodes if isinstance(one, ast.Constant) and isinstance(one.value, str))


def chain_of(node: ast.expr) -> Chain | None:
    """Return a dotted name, ``None`` where it starts with anything but a name."""
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute):
        head = chain_of(node.value)
        return None if head is None else (*head, node.attr)
    return None
