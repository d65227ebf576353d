"""What a module makes of its names: marks and parameters under a name, tests that are taken away again."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from apr_falsify.symbols.pytest_skips import Function, dotted, truth_of


def put_in_constants(module: ast.Module) -> None:
    """Put in what a name stands for: ``slow = pytest.mark.slow`` where ``@slow`` stands, ``CASES = [..]``.

    Only names that the module gives once count.
    """
    values = dict(_given_once(module.body))
    if not values:
        return
    for node in ast.walk(module):
        if isinstance(node, Function | ast.ClassDef):
            node.decorator_list = [_put_in(one, values, _is_mark) for one in node.decorator_list]
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and dotted(call).endswith("parametrize"):
                    call.args = [_put_in(one, values, _is_list) for one in call.args]
                    for keyword in call.keywords:
                        keyword.value = _put_in(keyword.value, values, _is_list)
                    _put_in_marks(call, values)
        elif isinstance(node, ast.Assign) and any(_name(one) == "pytestmark" for one in node.targets):
            if isinstance(node.value, ast.List | ast.Tuple):
                node.value.elts = [_put_in(one, values, _is_mark) for one in node.value.elts]
            else:
                node.value = _put_in(node.value, values, _is_mark)


def _put_in_marks(call: ast.Call, values: dict[str, ast.expr]) -> None:
    """``pytest.param(1, marks=slow)``."""
    for one in ast.walk(call):
        if isinstance(one, ast.keyword) and one.arg == "marks":
            inner = one.value
            if isinstance(inner, ast.List | ast.Tuple):
                inner.elts = [_put_in(each, values, _is_mark) for each in inner.elts]
            else:
                one.value = _put_in(inner, values, _is_mark)


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _given_once(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    given: dict[str, list[ast.expr | None]] = {}
    for node in body:
        if isinstance(node, ast.Assign):
            for one in node.targets:
                given.setdefault(_name(one), []).append(node.value)
        elif isinstance(node, ast.AnnAssign | ast.AugAssign):
            is_plain = isinstance(node, ast.AnnAssign)
            given.setdefault(_name(node.target), []).append(node.value if is_plain else None)
        elif isinstance(node, Function | ast.ClassDef):
            given.setdefault(node.name, []).append(None)
    for name, values in given.items():
        value = values[0]
        if name and len(values) == 1 and value is not None and (_is_mark(value) or _is_list(value)):
            yield name, value


def _is_mark(node: ast.expr) -> bool:
    name = dotted(node)
    return "mark." in name or name.rpartition(".")[2] in ("skip", "skipIf", "skipUnless")


def _is_list(node: ast.expr) -> bool:
    return isinstance(node, ast.List | ast.Tuple)


def _put_in(node: ast.expr, values: dict[str, ast.expr], is_fit: object) -> ast.expr:
    found = values.get(_name(node))
    return found if found is not None and callable(is_fit) and is_fit(found) else node


def taken_away(body: list[ast.stmt]) -> Iterator[tuple[str, int, str]]:
    """Names that a module takes away again, the line, and the reason; the empty name for all of them."""
    for node in body:
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Delete):
            yield from ((_name(one), line, f"line {line} deletes it") for one in node.targets if _name(one))
        for target in node.targets if isinstance(node, ast.Assign) else ():
            assert isinstance(node, ast.Assign)
            if truth_of(node.value) is not False:
                continue
            if _name(target) == "__test__":
                yield "", line, f"line {line} sets __test__ of its module to false"
            elif isinstance(target, ast.Attribute) and target.attr == "__test__" and _name(target.value):
                yield _name(target.value), line, f"line {line} sets its __test__ to false"
            elif _name(target)[:4].lower() == "test":
                yield _name(target), line, f"line {line} gives its name to something else"


def put_in_bases(module: ast.Module) -> None:
    """Give each class what its bases of the same module define: their tests, marks and set-up."""
    classes: dict[str, ast.ClassDef] = {}
    for node in module.body:
        if not isinstance(node, ast.ClassDef):
            continue
        bases = [classes[_name(one)] for one in node.bases if _name(one) in classes]
        own = {one.name for one in node.body if isinstance(one, Function | ast.ClassDef)}
        for base in bases:
            inherited = [one for one in base.body if isinstance(one, Function) and one.name not in own]
            own.update(one.name for one in inherited)
            node.body = [*inherited, *node.body]
            node.decorator_list = [*node.decorator_list, *base.decorator_list]
        if bases:
            others = [one for one in node.bases if _name(one) not in classes]
            node.bases = [*others, *(one for base in bases for one in base.bases)]
        classes[node.name] = node
