"""The ids that ``parametrize`` gives a test, as far as its decorators state plain values.

Source: pytest's documentation, "Parametrizing tests", and ``pytest.mark.parametrize`` of its reference.
"""

from __future__ import annotations

import ast
import builtins
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from apr_falsify.symbols.pytest_skips import Function, always_skips, dotted

_MOST = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterSet:
    """One set of parameters: its id, and whether its own marks skip it always."""

    id: str
    is_skipped: bool = False


def parameter_cases(node: Function, around: Sequence[ast.Call] = ()) -> tuple[ParameterSet, ...] | None:
    """The cases of a test, in pytest's order; ``None`` where a run alone shows them.

    Args:
        node: the test.
        around: the ``parametrize`` of the classes around it, the innermost first.

    """
    own = [one for one in reversed(node.decorator_list) if dotted(one).endswith("parametrize")]
    sets: list[list[ParameterSet]] = []
    for call in (*own, *around):  # the nearest to the function stands first
        found = _of_one(call) if isinstance(call, ast.Call) else None
        if found is None or len({one.id for one in found}) < len(found):
            return None
        sets.append(found)
    count = 1
    for one in sets:
        count *= len(one)
    if not sets or count > _MOST:
        return None
    return tuple(
        ParameterSet(id="-".join(one.id for one in parts), is_skipped=any(one.is_skipped for one in parts))
        for parts in itertools.product(*sets)
    )


def words_of_cases(node: Function, around: Sequence[ast.Call] = ()) -> str | None:
    """The text from which pytest makes the ids of a test's cases; ``None`` where a run alone shows it.

    An id of a value that is no plain one is its own name, or that of its argument with a number.
    """
    own = [one for one in node.decorator_list if dotted(one).endswith("parametrize")]
    texts: list[str] = []
    for call in (*own, *around):
        if not isinstance(call, ast.Call) or not all(
            _is_spelt_out(one) for one in ast.walk(call) if one is not call
        ):
            return None
        texts.append(ast.unparse(call))
    return "\n".join(texts).lower()


def _is_spelt_out(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return dotted(node).rpartition(".")[2] in (
            "param",
            "range",
            "skip",
            "skipif",
            "xfail",
            "float",
            "int",
            "complex",
        )
    if isinstance(node, ast.Name):  # a class, a function of the language, or what an attribute is of
        return not node.id.isupper() and (node.id[0].isupper() or node.id in _PLAIN_NAMES)
    return not isinstance(node, ast.Lambda | ast.comprehension | ast.JoinedStr | ast.BinOp | ast.Subscript)


_PLAIN_NAMES = frozenset((*dir(builtins), "pytest", "mark", "param"))


def why_no_case(node: Function | ast.ClassDef) -> str:
    """Why the parameters of a test or class give it no case that runs; empty where they may give one."""
    for call in node.decorator_list:
        values = (
            _values(call) if isinstance(call, ast.Call) and dotted(call).endswith("parametrize") else None
        )
        if values is None:
            continue
        if not values:
            return f"its parameters are empty (line {call.lineno})"
        if all(_is_skipped(one) for one in values):
            return f"each of its cases is marked to be skipped (line {call.lineno})"
    return ""


def takes_other_fixtures(node: Function, around: Sequence[ast.Call] = ()) -> bool:
    """Whether a test has arguments that no decorator gives; their ids would stand in its own."""
    calls = [*(one for one in node.decorator_list if isinstance(one, ast.Call)), *around]
    given = {name for call in calls for name in _names(call)}
    return any(one.arg not in {*given, "self", "cls"} for one in node.args.args + node.args.kwonlyargs)


def _names(call: ast.Call) -> list[str]:
    """``"a, b"`` or ``["a", "b"]``."""
    first = call.args[0] if call.args else None
    if isinstance(first, ast.Constant) and isinstance(first.value, str):
        return [one.strip() for one in first.value.split(",") if one.strip()]
    inner = first.elts if isinstance(first, ast.List | ast.Tuple) else []
    return [str(one.value) for one in inner if isinstance(one, ast.Constant)]


def _values(call: ast.Call) -> list[ast.expr] | None:
    """The sets of values; of ``range(3)`` its numbers."""
    given = {one.arg: one.value for one in call.keywords}
    values = call.args[1] if len(call.args) > 1 else given.get("argvalues")
    if isinstance(values, ast.Call) and dotted(values.func) == "range" and not values.keywords:
        numbers = [one.value for one in values.args if isinstance(one, ast.Constant)]
        plain = [one for one in numbers if type(one) is int]
        if not 0 < len(plain) == len(values.args) <= 3 or 0 in plain[2:] or max(map(abs, plain)) > _MOST:
            return None
        return [ast.Constant(value=one) for one in range(*plain)]
    if not isinstance(values, ast.List | ast.Tuple) or any(
        isinstance(one, ast.Starred) for one in values.elts
    ):
        return None
    return values.elts


def _is_skipped(value: ast.expr) -> bool:
    """``pytest.param(.., marks=pytest.mark.skip)``."""
    for one in value.keywords if isinstance(value, ast.Call) and dotted(value).endswith("param") else ():
        if one.arg == "marks":
            marks = one.value.elts if isinstance(one.value, ast.List | ast.Tuple) else [one.value]
            return any(map(always_skips, marks))
    return False


def _of_one(call: ast.Call) -> list[ParameterSet] | None:
    names, given = _names(call), {one.arg: one.value for one in call.keywords}
    values = _values(call)
    if not names or values is None:
        return None
    stated = _stated(given.get("ids"), len(values))
    if stated is None:
        return None
    found = []
    for at, (value, own) in enumerate(zip(values, stated, strict=True)):
        one = _own_id(value) or own or _of_values(value, names, at)
        if not one:
            return None
        found.append(ParameterSet(id=one, is_skipped=_is_skipped(value)))
    return found


def _stated(ids: ast.expr | None, count: int) -> list[str] | None:
    """The ids that a list gives, empty where it leaves one to pytest."""
    if ids is None or (isinstance(ids, ast.Constant) and ids.value is None):
        return [""] * count
    if not isinstance(ids, ast.List | ast.Tuple) or len(ids.elts) != count:
        return None
    found = ["" if isinstance(one, ast.Constant) and one.value is None else _text(one) for one in ids.elts]
    return None if None in found else [one or "" for one in found]


def _own_id(value: ast.expr) -> str:
    """``pytest.param(.., id="small")``."""
    for keyword in value.keywords if isinstance(value, ast.Call) and dotted(value).endswith("param") else ():
        if keyword.arg == "id" and isinstance(keyword.value, ast.Constant):
            return str(keyword.value.value)
    return ""


def _of_values(value: ast.expr, names: list[str], at: int) -> str:
    """The id that pytest makes of one set of values; empty where that is not known."""
    if isinstance(value, ast.Call):
        parts = list(value.args) if dotted(value).endswith("param") else []
    elif len(names) == 1:
        parts = [value]
    else:
        parts = value.elts if isinstance(value, ast.List | ast.Tuple) else []
    if len(parts) != len(names):
        return ""
    found = [
        f"{name}{at}" if isinstance(part, ast.List | ast.Tuple | ast.Dict | ast.Set) else _text(part)
        for name, part in zip(names, parts, strict=True)
    ]
    return "" if None in found else "-".join(one or "" for one in found)


def _text(value: ast.expr) -> str | None:
    """The id of a plain value; ``None`` where it is none, or one that pytest escapes."""
    try:
        found = ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    if found is not None and not isinstance(found, str | int | float | bool | bytes):
        return None
    text = found.decode("latin-1") if isinstance(found, bytes) else str(found)
    return text if text and text.isascii() and text.isprintable() else None
