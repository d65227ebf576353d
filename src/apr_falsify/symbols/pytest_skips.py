"""What keeps a Python test from running although it is collected: skips, and a name that is defined twice.

Rules: pytest's documentation, "How to use skip and xfail", and unittest's. Only what holds in every run
counts: a condition that a machine decides is none.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

Function = ast.FunctionDef | ast.AsyncFunctionDef


def module_skip(body: list[ast.stmt]) -> str:
    """Why no test of a module runs, by its own statements; empty where they may."""
    for node in body:
        call = node.value if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else None
        if call is not None and dotted(call.func) in ("pytest.skip", "skip"):
            allowed = [one.value for one in call.keywords if one.arg == "allow_module_level"]
            if allowed and _is_constant(allowed[0], True):
                return f"its module skips itself (line {node.lineno})"
        if isinstance(node, ast.Raise) and node.exc is not None and "SkipTest" in dotted(node.exc):
            return f"its module skips itself (line {node.lineno})"
    return pytestmark_skip(body, "module")


def pytestmark_skip(body: list[ast.stmt], what: str) -> str:
    """Why ``pytestmark`` of a module or class skips it always; empty where it does not."""
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            named = any(isinstance(one, ast.Name) and one.id == "pytestmark" for one in targets)
            values = node.value.elts if isinstance(node.value, ast.List | ast.Tuple) else [node.value]
            if named and any(always_skips(one) for one in values):
                return f"pytestmark skips its {what} (line {node.lineno})"
    return ""


def own_skip(node: ast.stmt) -> str:
    """Why a class or function is skipped always, by its decorators or first statement; empty where not."""
    for one in getattr(node, "decorator_list", ()):
        if always_skips(one):
            what = f"its class {node.name}" if isinstance(node, ast.ClassDef) else "it"
            return f"{what} is marked to be skipped (line {one.lineno})"
    if isinstance(node, ast.ClassDef):
        return pytestmark_skip(node.body, f"class {node.name}")
    return _first_statement_skip(node) if isinstance(node, Function) else ""


def _first_statement_skip(node: Function) -> str:
    body = [one for one in node.body if not _is_text(one)]
    first = body[0] if body else None
    call = first.value if isinstance(first, ast.Expr) and isinstance(first.value, ast.Call) else None
    if call is not None and dotted(call.func) in ("pytest.skip", "self.skipTest"):
        return f"it begins with {dotted(call.func)} (line {node.lineno})"
    return ""


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def always_skips(node: ast.expr) -> bool:
    """Whether a mark or decorator skips in every run."""
    name = dotted(node)
    last = name.rpartition(".")[2]
    arguments = node.args if isinstance(node, ast.Call) else []
    keywords = {one.arg: one.value for one in node.keywords} if isinstance(node, ast.Call) else {}
    if last == "skip":
        return name in ("skip", "mark.skip", "pytest.mark.skip", "unittest.skip")
    if last in ("skipif", "skipIf", "skipUnless"):
        condition = arguments[0] if arguments else keywords.get("condition")
        return condition is not None and _is_constant(condition, last != "skipUnless")
    return last == "xfail" and _is_constant(keywords.get("run"), False) and not arguments


def _is_constant(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, bool | int) and bool(node.value) == value


def dotted(node: ast.expr) -> str:
    """``pytest.mark.skip`` of a name, an attribute or a call of it; empty of anything else."""
    if isinstance(node, ast.Call):
        return dotted(node.func)
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return node.id if isinstance(node, ast.Name) else ""


def marks_of(node: ast.stmt) -> Iterator[str]:
    """Names of pytest marks that stand on a class or function."""
    for one in getattr(node, "decorator_list", ()):
        head, _, last = dotted(one).rpartition(".")
        if head.rpartition(".")[2] == "mark":
            yield last


def body_marks(body: list[ast.stmt]) -> Iterator[str]:
    """Names of pytest marks in ``pytestmark`` of a module or class."""
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(one, ast.Name) and one.id == "pytestmark" for one in targets):
                values = node.value.elts if isinstance(node.value, ast.List | ast.Tuple) else [node.value]
                found = (dotted(one).rpartition(".") for one in values)
                yield from (last for head, _, last in found if head.rpartition(".")[2] == "mark")
