"""Reading a YAML file into plain data in which every value knows its line and column.

A bad file is a value, not an exception: it comes back with problems and no data, and never stops the rest.
Scalars stay text exactly as written, so a version ``1.10`` does not become 1.1, nor a date a date.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import Any

import yaml

from apr_falsify.contracts.problem import Problem

_MOST_DEPTH = 200
_MOST_VALUES = 100_000  # some 50 MB of nodes; the largest contract that was seen has a thousand
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")
_CONTROLS = bytes({*range(0x20), 0x7F} - {*b"\t\n\r"})
_BLANKED, _WIDE = bytes.maketrans(b"-?:", b"   "), b" " * _MOST_DEPTH
_INDENTED = re.compile(rf"^[ \-?:]{{{_MOST_DEPTH}}}", re.MULTILINE)
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_NULL, _MERGE, _STR = (f"tag:yaml.org,2002:{name}" for name in ("null", "merge", "str"))
# libyaml's parser where PyYAML was built with it: the pure one is some forty times slower
_PARSER: Any = yaml.CSafeLoader.__mro__[1] if yaml.__with_libyaml__ else yaml.SafeLoader


class _Loader(_PARSER):  # type: ignore[misc]  # which parser is known at run time only
    """A parser that tells only null and merge keys from text: everything else stays as it is written."""

    def resolve(self, kind: type, value: Any, implicit: Any) -> str:
        """Tag of a node without one; called by the composer."""
        if kind is yaml.ScalarNode and implicit[0]:
            return _NULL if value in _NULLS else _MERGE if value == "<<" else _STR
        return _STR

    # No path decides on a tag here. Called for every node, so these are built-ins that do nothing.
    descend_resolver = staticmethod(operator.is_)
    ascend_resolver = staticmethod(object)

    def dispose(self) -> None:
        """Nothing is held; ``yaml.parse`` calls this."""


class Text(str):
    """A scalar as written, with its position (from 1).

    ``is_block`` tells a literal block (``|``): its lines are the file's, one below the other.
    """

    __slots__ = ("column", "is_block", "line")
    line: int
    column: int
    is_block: bool

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """Pickled it is the bare text: what is kept between runs carries its place apart."""
        return str, (str(self),)


class Mapping(dict[str, "Value"]):
    """A mapping with its position. Its keys are ``Text`` too, so that a key's place is known."""

    __slots__ = ("column", "line")
    line: int
    column: int


class Sequence(list["Value"]):
    """A list with its position."""

    __slots__ = ("column", "line")
    line: int
    column: int


Value = Text | Mapping | Sequence | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file: its data (None where empty or broken) and the problems met while reading it."""

    path: str
    data: Value = None
    problems: tuple[Problem, ...] = ()


class _Refused(Exception):
    """Reading stops here; carries the one problem that says why."""

    def __init__(self, code: str, message: str, line: int = 1, column: int = 1, hint: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.line, self.column, self.hint = code, message, line, column, hint


def parse(path: str, raw: bytes) -> Source:
    """Turn bytes into positioned data. All that can go wrong comes back in ``problems``."""
    problems: list[Problem] = []
    try:
        text = _decode(raw)
        if text.startswith("\ufeff"):
            problems.append(
                _problem(path, "byte-order-mark", "starts with a byte order mark", hint="save without")
            )
            text = text[1:]  # the C loader would count it as a character
        _check_characters(raw, text)
        _check_extent(raw, text)
        data = _Converter(path, problems).convert(compose(text))
    except _Refused as refused:
        problems.append(
            _problem(path, refused.code, refused.message, refused.line, refused.column, refused.hint)
        )
        data = None
    return Source(path=path, data=data, problems=tuple(problems))


def _problem(
    path: str, code: str, message: str, line: int = 1, column: int = 1, hint: str = "", key: str = ""
) -> Problem:
    return Problem(code=code, path=path, line=line, column=column, message=message, hint=hint, key=key)


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - (raw.rfind(b"\n", 0, error.start) + 1) + 1
        message = f"byte 0x{raw[error.start]:02x} is not UTF-8"
        raise _Refused("not-utf8", message, line, column, "save the file as UTF-8") from None


def _check_characters(raw: bytes, text: str) -> None:
    clean = len(raw.translate(None, _CONTROLS)) == len(raw)  # tells as much as the search, far sooner
    match = None if clean and "\ufffe" not in text and "\uffff" not in text else _FORBIDDEN.search(text)
    if match:
        line, column = _position(text, match.start())
        message = f"character U+{ord(match.group()):04X} is not allowed in YAML"
        raise _Refused("control-character", message, line, column, "remove it")


def _position(text: str, at: int) -> tuple[int, int]:
    return text.count("\n", 0, at) + 1, at - (text.rfind("\n", 0, at) + 1) + 1


def _check_extent(raw: bytes, text: str) -> None:
    """Refuse deep nesting before a recursive parser meets it, and more values than memory is meant for.

    Nesting costs either a bracket or a column of indentation, a value one of the signs below, so most files
    pass on cheap counts; only a suspicious one has its events counted, which needs no recursion.
    """
    brackets = text.count("[") + text.count("{")
    wide = _WIDE in raw.translate(_BLANKED)  # cheap, and true wherever the search could succeed
    many = brackets + sum(map(text.count, "\n\r,:-?")) >= _MOST_VALUES
    if brackets < _MOST_DEPTH and not many and not (wide and _INDENTED.search(text)):
        return
    depth, values = 0, 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            values += isinstance(event, yaml.NodeEvent)
            if depth > _MOST_DEPTH:
                raise _Refused("yaml-too-deep", f"nests deeper than {_MOST_DEPTH} levels", *_mark(event))
            if values > _MOST_VALUES:
                message = f"holds more than {_MOST_VALUES} values"
                raise _Refused("file-too-large", message, *_mark(event), "split it")
    except yaml.MarkedYAMLError as error:
        raise _syntax(error, text) from None


def _mark(event: yaml.Event) -> tuple[int, int]:
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


def compose(text: str) -> yaml.Node | None:
    """Return the node tree of a text without byte order mark; its marks count the characters of ``text``."""
    try:
        node: yaml.Node | None = _Loader(text).get_single_node()
        return node
    except yaml.MarkedYAMLError as error:
        raise _syntax(error, text) from None
    except yaml.YAMLError as error:
        raise _Refused("yaml-syntax", str(error)) from None


def _syntax(error: yaml.MarkedYAMLError, text: str) -> _Refused:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    lines = text.splitlines()
    shown = lines[line - 1] if line <= len(lines) else ""
    if "\t" in shown[: max(column, len(shown) - len(shown.lstrip()))]:
        return _Refused("yaml-tab", "a tab is used as indentation", line, shown.index("\t") + 1, "use spaces")
    message = ": ".join(part for part in (error.context, error.problem) if part)
    if "single document" in message:
        return _Refused(
            "several-documents", "holds more than one document", line, column, "one contract a file"
        )
    return _Refused("yaml-syntax", message or "is not YAML", line, column)


class _Converter:
    """YAML nodes to positioned data, with a budget so that nested aliases cannot explode."""

    def __init__(self, path: str, problems: list[Problem]) -> None:
        self._path = path
        self._problems = problems
        self._budget = _MOST_VALUES

    def convert(self, node: yaml.Node | None, depth: int = 0) -> Value:
        if node is None:
            return None
        self._budget -= 1
        mark = node.start_mark
        if self._budget < 0 or depth > _MOST_DEPTH:
            message = "aliases multiply it beyond what a contract can hold"
            raise _Refused("yaml-alias-explosion", message, mark.line + 1, mark.column + 1, "write it out")
        if isinstance(node, yaml.ScalarNode):
            return None if node.tag == _NULL else _text(node.value, mark, node.style == "|")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, depth)
        result = Sequence([self.convert(child, depth + 1) for child in node.value])
        result.line, result.column = mark.line + 1, mark.column + 1
        return result

    def _mapping(self, node: yaml.MappingNode, depth: int) -> Mapping:
        result = Mapping()
        result.line, result.column = node.start_mark.line + 1, node.start_mark.column + 1
        merged: list[Value] = []
        for key_node, value_node in node.value:
            value = self.convert(value_node, depth + 1)
            if key_node.tag == _MERGE:
                merged.extend(value if isinstance(value, Sequence) else [value])
                continue
            key = self._key(key_node)
            if key in result:
                self._duplicate(key)
            result[key] = value
        for other in merged:
            for name, item in other.items() if isinstance(other, Mapping) else ():
                result.setdefault(name, item)
        return result

    def _key(self, node: yaml.Node) -> Text:
        mark = node.start_mark
        if type(node) is not yaml.ScalarNode:
            raise _Refused("yaml-syntax", "a key is not a scalar", mark.line + 1, mark.column + 1)
        return _text(node.value, mark, False)

    def _duplicate(self, key: Text) -> None:
        message = f"key {str(key)!r} is given twice"
        self._problems.append(
            Problem(
                code="duplicate-key",
                path=self._path,
                line=key.line,
                column=key.column,
                message=message,
                subject=str(key),
                hint="YAML keeps only the last",
            )
        )


def _text(value: str, mark: yaml.Mark, is_block: bool) -> Text:
    text = Text(value)
    text.line, text.column, text.is_block = mark.line + 1, mark.column + 1, is_block
    return text
