"""Where the values of a contract stand, by character, and text put in their place.

Nothing is ever written out anew from data: what is not replaced keeps its bytes. A place that cannot be
told for sure (an anchor, an alias, a merge key, an escape) is refused with what to edit by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from apr_falsify.contracts.model import FALSIFIER_BLOCKS
from apr_falsify.contracts.source import compose
from apr_falsify.errors import ContractError, nearest

_MERGE = "tag:yaml.org,2002:merge"
_NULL = "tag:yaml.org,2002:null"
_DECORATED = ("&", "*", "!")

KeyPath = tuple[str | int, ...]
"""Keys and indexes that lead to a value, as the data is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Splice:
    """Characters ``start`` up to ``end`` become ``text``."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One splice, and the value that the data then has at ``path``; a description is judged by its words."""

    splice: Splice
    path: KeyPath
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A contract's text without byte order mark, and its nodes, whose marks index that text."""

    path: Path
    text: str
    root: yaml.MappingNode


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingEntry:
    """A key of a mapping with its value; both stand where their marks say."""

    key: yaml.ScalarNode
    value: yaml.Node

    @property
    def is_null(self) -> bool:
        """Whether the key is there and says nothing."""
        return self.value.tag == _NULL

    @property
    def scalar(self) -> str:
        """Return the scalar's value; empty for null and for what is no scalar."""
        return self.value.value if isinstance(self.value, yaml.ScalarNode) and not self.is_null else ""

    @property
    def style(self) -> str:
        """How a scalar is written: ``|``, ``>``, a quote, or empty for a plain one."""
        return (self.value.style or "") if isinstance(self.value, yaml.ScalarNode) else ""

    @property
    def is_block_scalar(self) -> bool:
        """Whether the value is a literal or folded block."""
        return self.style in ("|", ">")


def read_document(path: Path, text: str) -> Document:
    """Return the nodes of a text that parses, without byte order mark.

    Raises:
        ContractError: it is no mapping.

    """
    root = compose(text)
    if not isinstance(root, yaml.MappingNode):
        raise ContractError("is no contract", where=path, expected="a mapping with falsification_tests")
    return Document(path=path, text=text, root=root)


def by_hand(document: Document, node: yaml.Node, why: str, todo: str) -> ContractError:
    """Say why a place is not edited, and what a person writes there."""
    line = node.start_mark.line + 1
    return ContractError(why, where=f"{document.path}:{line}", remedy=f"edit it by hand: {todo}")


def entry(document: Document, mapping: yaml.Node, name: str) -> MappingEntry | None:
    """Return a mapping's own key ``name``, ``None`` where it has none.

    Raises:
        ContractError: its place is not certain: an anchor, an alias or a tag stands there.

    """
    for key, value in mapping.value if isinstance(mapping, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode) and key.value == name:
            found = MappingEntry(key=key, value=value)
            _refuse_decorated(document, found)
            return found
    return None


def _refuse_decorated(document: Document, found: MappingEntry) -> None:
    """An alias is the node of its anchor, so its mark stands before its key."""
    key, value = found.key, found.value
    is_alias = value.start_mark.index < key.end_mark.index
    if is_alias or document.text[value.start_mark.index : value.start_mark.index + 1] in _DECORATED:
        why = f"{key.value} carries an anchor, an alias or a tag, so that other places may hang on it"
        raise by_hand(document, key, why, f"write {key.value} out")


def refuse_merged(document: Document, mapping: yaml.Node) -> None:
    """Refuse a mapping whose keys are merged from elsewhere.

    Raises:
        ContractError: it has a merge key.

    """
    for key, _ in mapping.value if isinstance(mapping, yaml.MappingNode) else ():
        if key.tag == _MERGE:
            raise by_hand(document, key, "keys are merged into it from elsewhere", "write the keys out")


def falsifier_node(document: Document, name: str) -> tuple[yaml.MappingNode, KeyPath]:
    """Return the mapping of the falsifier ``name``, and the key path to it.

    Raises:
        ContractError: there is none, there are several, or its place is not certain.

    """
    found = [(node, path) for known, node, path in _falsifiers(document) if known == name]
    if not found:
        known_ids = [known for known, _, _ in _falsifiers(document)]
        raise ContractError(
            f"has no falsifier {name!r}",
            where=document.path,
            expected=", ".join(known_ids),
            remedy=nearest(name, known_ids),
        )
    node, path = found[0]
    if len(found) > 1:
        why = f"the id {name!r} stands {len(found)} times"
        raise by_hand(document, found[1][0], why, "give each falsifier an id of its own")
    if document.text[node.start_mark.index] in _DECORATED:
        why = f"{name} carries an anchor, an alias or a tag, so that other places may hang on it"
        raise by_hand(document, node, why, "write it out")
    refuse_merged(document, node)
    return node, path


def _falsifiers(document: Document) -> Iterator[tuple[str, yaml.MappingNode, KeyPath]]:
    for block in FALSIFIER_BLOCKS:
        found = entry(document, document.root, block)
        if found is None:
            continue
        for at, (name, item) in enumerate(_items(found.value)):
            if isinstance(item, yaml.MappingNode):
                own = entry(document, item, "id")
                yield own.scalar if own and own.scalar else name, item, (block, name or at)


def _items(block: yaml.Node) -> Iterator[tuple[str, yaml.Node]]:
    if isinstance(block, yaml.SequenceNode):
        yield from (("", item) for item in block.value)
    elif isinstance(block, yaml.MappingNode):
        yield from ((key.value, item) for key, item in block.value if isinstance(key, yaml.ScalarNode))


def raw(document: Document, node: yaml.Node) -> str:
    """Return the text of a node as it is written."""
    return document.text[node.start_mark.index : node.end_mark.index]


def reword(document: Document, found: MappingEntry, old: str, new: str) -> Splice:
    """Replace ``old`` by ``new`` within a scalar; its quotes and all around it stay.

    Raises:
        ContractError: ``old`` does not stand there exactly once, as it is.

    """
    written = raw(document, found.value)
    if not old or written.count(old) != 1:
        why = f"{found.key.value} is written so that {old!r} does not stand there once"
        raise by_hand(document, found.key, why, f"write {found.key.value}: {new}")
    start = found.value.start_mark.index + written.index(old)
    return Splice(start=start, end=start + len(old), text=new)


def line_end(text: str, at: int) -> int:
    """Return the index behind the last character of the line that ``at`` is in, before its line break."""
    ends = [found for mark in ("\r", "\n") if (found := text.find(mark, at)) >= 0]
    return min(ends, default=len(text))


def newline_at(text: str, at: int) -> str:
    """Return the line break that ends the line of ``at``; the text's first where it ends without one."""
    end = line_end(text, at)
    if end == len(text):
        end = line_end(text, 0)
    return "\r\n" if text.startswith("\r\n", end) else text[end : end + 1] or "\n"


def spliced(text: str, splices: Iterable[Splice]) -> str:
    """Return the text with every splice made, from its end backwards; what stands between is untouched."""
    ordered = sorted(splices, key=lambda one: (one.start, one.end))
    assert all(one.end <= other.start for one, other in pairwise(ordered))
    for one in reversed(ordered):
        text = text[: one.start] + one.text + text[one.end :]
    return text
