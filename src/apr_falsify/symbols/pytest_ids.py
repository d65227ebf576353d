"""The ids that ``parametrize`` gives a test, as far as its decorators state plain values.

Source: pytest's documentation, "Parametrizing tests", and ``pytest.mark.parametrize`` of its reference.
"""

from __future__ import annotations

import ast
import itertools

from apr_falsify.symbols.pytest_skips import Function, dotted

_MOST = 2000


def parameter_ids(node: Function) -> tuple[str, ...] | None:
    """The texts between brackets of a test's node ids; ``None`` where a run alone shows them."""
    sets: list[list[str]] = []
    for call in reversed(node.decorator_list):  # the nearest to the function stands first
        if not dotted(call).endswith("parametrize"):
            continue
        found = _of_one(call) if isinstance(call, ast.Call) else None
        if found is None or len(set(found)) < len(found):
            return None
        sets.append(found)
    count = 1
    for one in sets:
        count *= len(one)
    if not sets or count > _MOST:
        return None
    return tuple("-".join(parts) for parts in itertools.product(*sets))


def takes_other_fixtures(node: Function) -> bool:
    """Whether a test has arguments that no decorator of its own gives; their ids would stand in its own."""
    given = {name for call in node.decorator_list if isinstance(call, ast.Call) for name in _names(call)}
    return any(one.arg not in {*given, "self", "cls"} for one in node.args.args + node.args.kwonlyargs)


def _names(call: ast.Call) -> list[str]:
    """``"a, b"`` or ``["a", "b"]``."""
    first = call.args[0] if call.args else None
    if isinstance(first, ast.Constant) and isinstance(first.value, str):
        return [one.strip() for one in first.value.split(",") if one.strip()]
    inner = first.elts if isinstance(first, ast.List | ast.Tuple) else []
    return [str(one.value) for one in inner if isinstance(one, ast.Constant)]


def _of_one(call: ast.Call) -> list[str] | None:
    names, given = _names(call), {one.arg: one.value for one in call.keywords}
    values = call.args[1] if len(call.args) > 1 else given.get("argvalues")
    if not names or not isinstance(values, ast.List | ast.Tuple):
        return None
    stated = _stated(given.get("ids"), len(values.elts))
    if stated is None:
        return None
    found = []
    for at, (value, own) in enumerate(zip(values.elts, stated, strict=True)):
        one = _own_id(value) or own or _of_values(value, names, at)
        if not one:
            return None
        found.append(one)
    return found


def _stated(ids: ast.expr | None, count: int) -> list[str] | None:
    """The ids that a list gives, empty where it leaves one to pytest."""
    if ids is None or (isinstance(ids, ast.Constant) and ids.value is None):
        return [""] * count
    if not isinstance(ids, ast.List | ast.Tuple) or len(ids.elts) != count:
        return None
    found = [_text(one) for one in ids.elts]
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
    if found is not None and not isinstance(found, str | int | float | bool):
        return None
    text = str(found)
    return text if text and text.isascii() and text.isprintable() else None
