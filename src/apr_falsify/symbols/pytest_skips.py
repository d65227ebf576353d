"""What keeps a Python test from running although it is collected: skips, and a name that is defined twice.

Rules: pytest's documentation, "How to use skip and xfail", and unittest's. Only what holds in every run
counts: a condition that a machine decides is none.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping

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
    return pytestmark_skip(body, "module") or setup_skip(body)


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
    """Why a class or function is skipped always, by its decorators, set-up or statements; empty where not."""
    for one in getattr(node, "decorator_list", ()):
        if always_skips(one):
            what = f"its class {node.name}" if isinstance(node, ast.ClassDef) else "it"
            return f"{what} is marked to be skipped (line {one.lineno})"
    if isinstance(node, ast.ClassDef):
        return pytestmark_skip(node.body, f"class {node.name}") or setup_skip(node.body)
    return _statement_skip(node) if isinstance(node, Function) else ""


_SETUPS = ("setUp", "setUpClass", "asyncSetUp", "setup_method", "setup_class", "setup_module", "setUpModule")


def setup_skip(body: list[ast.stmt]) -> str:
    """Why the set-up of a module's or class's tests skips them always; empty where it does not."""
    for node in body:
        if isinstance(node, Function) and (node.name in _SETUPS or _is_of_every_test(node)):
            why = _statement_skip(node)
            if why:
                return f"{node.name} skips it (line {node.lineno})"
    return ""


def _is_of_every_test(node: Function) -> bool:
    """``@pytest.fixture(autouse=True)``."""
    calls = [one for one in node.decorator_list if isinstance(one, ast.Call)]
    given = [one for call in calls if dotted(call).endswith("fixture") for one in call.keywords]
    return any(one.arg == "autouse" and truth_of(one.value) is True for one in given)


_SKIPPING = ("pytest.skip", "self.skipTest", "pytest.xfail", "cls.skipTest")


def _statement_skip(node: Function) -> str:
    """Why a function always comes to a skip, before it has asserted anything."""
    for one in node.body:
        call = one.value if isinstance(one, ast.Expr) and isinstance(one.value, ast.Call) else None
        if call is not None and dotted(call.func) in _SKIPPING:
            return f"it begins with {dotted(call.func)} (line {one.lineno})"
        if isinstance(one, ast.Raise) and one.exc is not None and "SkipTest" in dotted(one.exc):
            return f"it begins with {dotted(one.exc)} (line {one.lineno})"
        if any(isinstance(each, _DECIDING) for each in ast.walk(one)):
            return ""
    return ""


_DECIDING = (ast.Assert, ast.Return, ast.Yield, ast.YieldFrom, ast.Raise, ast.With, ast.AsyncWith)
"""What may end a function, or test something, before it comes to the statements behind."""


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
        return condition is not None and truth_of(condition, is_mark=last == "skipif") is (
            last != "skipUnless"
        )
    return last == "xfail" and _is_constant(keywords.get("run"), False) and not arguments


_NOT_KNOWN = object()
_COMPARE: Mapping[type[ast.cmpop], Callable[[object, object], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Is: operator.is_, ast.IsNot: operator.is_not,
}  # fmt: skip


def truth_of(node: ast.expr, *, is_mark: bool = False) -> bool | None:
    """Whether a condition holds in every run, as its own words say; ``None`` where only a run tells.

    Args:
        node: the condition.
        is_mark: whether a text in it is a condition itself, as pytest's ``skipif`` takes it.

    """
    if is_mark and isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            return truth_of(ast.parse(node.value.strip(), mode="eval").body)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
    value = _value_of(node)
    return None if value is _NOT_KNOWN else bool(value)


def _value_of(node: ast.expr) -> object:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        inner = _value_of(node.operand)
        return inner if inner is _NOT_KNOWN else not inner
    if isinstance(node, ast.BoolOp):
        found = [_value_of(one) for one in node.values]
        known = [bool(one) for one in found if one is not _NOT_KNOWN]
        deciding = isinstance(node.op, ast.Or)
        return deciding if deciding in known else _NOT_KNOWN if len(known) < len(found) else not deciding
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARE:
        left, right = _value_of(node.left), _value_of(node.comparators[0])
        known_sides = left is not _NOT_KNOWN and right is not _NOT_KNOWN
        return _COMPARE[type(node.ops[0])](left, right) if known_sides else _NOT_KNOWN
    return _NOT_KNOWN


def is_typing_only(node: ast.expr) -> bool:
    """``TYPE_CHECKING``: never true in a run."""
    return dotted(node).rpartition(".")[2] == "TYPE_CHECKING"


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
