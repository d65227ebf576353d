"""What may be changed at one node of the code: each change is one mutant.

Not changed, because no test should pin them: docstrings and annotations; the text of messages (f-strings,
what ``raise`` is given, arguments of ``join`` and ``format``); decorators; ``strict=`` of ``zip``, a check
that right code never meets; ``encoding=``; ``copy=False``, which only saves memory. Where the change could
only end in a TypeError (``"a" + b`` to ``"a" - b``) it is left out too: such a mutant always dies and would
flatter the tests.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

Change = tuple[str, ast.AST]
"""The kind of a change, and the node that stands in place of the old one."""

_BINARY: Mapping[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}

_COMPARED: Mapping[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
"""Operator -> its neighbour at the boundary, and its opposite."""

_UNNAMED = ("strict", "encoding", "errors", "copy")
"""Arguments that are never left out nor changed."""


def changes(node: ast.AST) -> Iterator[Change]:
    """Return every change of ``node`` itself; those of what lies within it have their own."""
    find = _FINDERS.get(type(node))
    if find is not None:
        yield from find(node)


def is_text(node: ast.AST) -> bool:
    """Whether the node makes a message, or is no behaviour: nothing within it is changed."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr in ("join", "format") and isinstance(node.func.value, ast.Constant)
    if isinstance(node, ast.keyword):
        return node.arg in _UNNAMED
    return isinstance(node, ast.JoinedStr)


def _like(node: Any, **fields: Any) -> Any:
    """Return a copy of a node with some fields changed."""
    others = {name: value for name, value in ast.iter_fields(node) if name not in fields}
    return ast.copy_location(type(node)(**others, **fields), node)


def _is_string(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr | ast.List | ast.Tuple) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _binary(node: ast.BinOp) -> Iterator[Change]:
    new = _BINARY.get(type(node.op))
    if new is not None and not _is_string(node.left) and not _is_string(node.right):
        yield "arithmetic", _like(node, op=new())


def _augmented(node: ast.AugAssign) -> Iterator[Change]:
    new = _BINARY.get(type(node.op))
    if new is not None and not _is_string(node.value):
        yield "arithmetic", _like(node, op=new())
    yield "statement", ast.copy_location(ast.Pass(), node)


def _compared(node: ast.Compare) -> Iterator[Change]:
    for place, operator in enumerate(node.ops):
        for new in _COMPARED[type(operator)]:
            yield "comparison", _like(node, ops=[*node.ops[:place], new(), *node.ops[place + 1 :]])


def _boolean(node: ast.BoolOp) -> Iterator[Change]:
    yield "boolean", _like(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())


def _unary(node: ast.UnaryOp) -> Iterator[Change]:
    # The numbers beside a negative one are changes of their own; axis 1 is often the same as axis -1.
    if not isinstance(node.op, ast.UAdd) and not isinstance(node.operand, ast.Constant):
        yield "boolean" if isinstance(node.op, ast.Not) else "arithmetic", node.operand


def _constant(node: ast.Constant) -> Iterator[Change]:
    value = node.value
    if isinstance(value, bool):
        yield "constant", _like(node, value=not value)
    elif isinstance(value, int):
        for new in (value + 1, value - 1) if value else (1,):
            yield "constant", _like(node, value=new)
    elif isinstance(value, float):
        yield "constant", _like(node, value=2 * value if value else 1.0)


def _not(node: ast.expr) -> ast.AST:
    return ast.copy_location(ast.UnaryOp(op=ast.Not(), operand=node), node)


def _condition(node: ast.If | ast.While | ast.IfExp) -> Iterator[Change]:
    # A comparison or a `not` has changes of its own that turn it round.
    if not isinstance(node.test, ast.Compare | ast.UnaryOp | ast.Constant):
        yield "condition", _like(node, test=_not(node.test))


def _comprehension(node: ast.comprehension) -> Iterator[Change]:
    for place, test in enumerate(node.ifs):
        if not isinstance(test, ast.Compare | ast.UnaryOp):
            yield "condition", _like(node, ifs=[*node.ifs[:place], _not(test), *node.ifs[place + 1 :]])


def _returned(node: ast.Return) -> Iterator[Change]:
    # What is constant has a change of its own, and None is as false as False.
    if node.value is not None and not isinstance(node.value, ast.Constant):
        yield "return", _like(node, value=ast.copy_location(ast.Constant(value=None), node))


def _statement(node: ast.Expr) -> Iterator[Change]:
    # What is no call is a docstring, an attribute's description or a generator's `yield`.
    if isinstance(node.value, ast.Call):
        yield "statement", ast.copy_location(ast.Pass(), node)


def _assigned(node: ast.Assign) -> Iterator[Change]:
    # A name that was never bound ends in a NameError; an item or attribute keeps what it had.
    if all(isinstance(target, ast.Subscript | ast.Attribute) for target in node.targets):
        yield "statement", ast.copy_location(ast.Pass(), node)


def _left_out(node: ast.Raise | ast.Break | ast.Continue) -> Iterator[Change]:
    yield "statement", ast.copy_location(ast.Pass(), node)


def _call(node: ast.Call) -> Iterator[Change]:
    """Leave out an argument that has a name; a class's fields are all needed, which would flatter."""
    name = getattr(node.func, "attr", getattr(node.func, "id", "_"))
    for place, keyword in enumerate(node.keywords):
        if not name[0].isupper() and keyword.arg is not None and keyword.arg not in _UNNAMED:
            yield "argument", _like(node, keywords=[*node.keywords[:place], *node.keywords[place + 1 :]])


def _slice(node: ast.Slice) -> Iterator[Change]:
    for bound in ("lower", "upper", "step"):
        if getattr(node, bound) is not None:
            yield "slice", _like(node, **{bound: None})


_FINDERS: Mapping[type[ast.AST], Any] = {
    ast.BinOp: _binary,
    ast.AugAssign: _augmented,
    ast.Compare: _compared,
    ast.BoolOp: _boolean,
    ast.UnaryOp: _unary,
    ast.Constant: _constant,
    ast.If: _condition,
    ast.While: _condition,
    ast.IfExp: _condition,
    ast.comprehension: _comprehension,
    ast.Return: _returned,
    ast.Expr: _statement,
    ast.Assign: _assigned,
    ast.Raise: _left_out,
    ast.Break: _left_out,
    ast.Continue: _left_out,
    ast.Call: _call,
    ast.Slice: _slice,
}
