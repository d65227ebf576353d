"""One text for a piece of Python code, whatever its layout and whichever Python 3.11 to 3.14 parsed it.

Comments, blank lines, quotes, line breaks and redundant parentheses leave no trace in the syntax tree, so
they leave none here. Also left out:

* positions, ``ctx``, ``kind`` (the ``u`` of a string) and type comments, which change nothing that runs;
* fields that are ``None`` or empty, since newer versions add such fields (``type_params`` in 3.12,
  ``default_value`` in 3.13) to trees of code that does not use them;
* how an f-string is cut into constants, which differs between versions: neighbours are merged, empty ones
  dropped;
* a string that stands alone as a statement: a docstring is prose about the code, as a comment is. Where a
  module reads ``__doc__``, its strings are data and stay.

Everything else stays: any other changed token changes the text. Node and field names are those of
``ast``, unchanged from 3.11 to 3.14 (What's New 3.12, 3.13 and 3.14: names were added, none renamed; the
classes removed in 3.14 had not been made by the parser since 3.8).
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator

SCHEMA = "apr-falsify/syntax/v1"

_SKIPPED = frozenset(("ctx", "kind", "type_comment", "type_ignores"))


def digest_of(nodes: Iterable[ast.AST], imports: Iterable[str] = (), *, strings: bool = False) -> str:
    """Return the sha256 of some code's canonical text.

    Args:
        nodes: the statements.
        imports: what the names that come from other packages stand for, one ``name=origin`` each.
        strings: whether strings that stand alone stay in the text.

    Raises:
        RecursionError: it is nested beyond what Python itself can walk.

    """
    lines = [SCHEMA, *sorted(imports), *(canonical(node, strings=strings) for node in nodes)]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def canonical(node: ast.AST, *, strings: bool = False) -> str:
    """Return the canonical text of a syntax tree."""
    return "".join(_node(node, strings))


def _node(node: ast.AST, strings: bool) -> Iterator[str]:
    if isinstance(node, ast.Constant):
        yield _constant(node.value)
        return
    yield f"{type(node).__name__}("
    for name in sorted(node._fields):
        value = getattr(node, name, None)
        if name in _SKIPPED or value is None or value == []:
            continue
        if name == "format_spec" and not _parts(value):
            continue
        yield f"{name}="
        if name == "values" and _is_joined(node):
            value = _parts(node)
        yield from _value(value, strings)
        yield ";"
    yield ")"


def _value(value: object, strings: bool) -> Iterator[str]:
    if isinstance(value, ast.AST):
        yield from _node(value, strings)
    elif isinstance(value, list):
        yield "["
        for item in value:
            if strings or not _is_prose(item):
                yield from _value(item, strings) if item is not None else "~"  # {**a} has a key of no kind
                yield ","
        yield "]"
    else:  # a name, a number of dots of a relative import, a conversion
        yield _constant(value)


def _is_prose(item: object) -> bool:
    return (
        isinstance(item, ast.Expr)
        and isinstance(item.value, ast.Constant)
        and isinstance(item.value.value, str)
    )


def _constant(value: object) -> str:
    if isinstance(value, bool) or value is None or value is ...:
        return repr(value)
    if isinstance(value, int):
        return f"int:{value:x}"  # hexadecimal has no limit of digits
    return f"{type(value).__name__}:{value!a}"


def _is_joined(node: object) -> bool:
    return type(node).__name__ in ("JoinedStr", "TemplateStr")


def _parts(node: ast.AST) -> list[ast.AST]:
    """Return the values of an f-string, constants merged and empty ones dropped."""
    parts: list[ast.AST] = []
    for one in node.values:  # type: ignore[attr-defined]  # of the two kinds that have values
        inner = _parts(one) if type(one) is type(node) else [one]
        for part in inner:
            last = parts[-1] if parts else None
            if isinstance(part, ast.Constant) and isinstance(last, ast.Constant):
                parts[-1] = ast.Constant(value=str(last.value) + str(part.value))
            elif not (isinstance(part, ast.Constant) and part.value == ""):
                parts.append(part)
    return parts
