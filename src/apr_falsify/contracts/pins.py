"""A falsifier's block ``evidence: {bundle, statement_sha256}``: added, renewed, or taken away, by span."""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

from apr_falsify.contracts.claim import Pin
from apr_falsify.contracts.spans import (
    Change,
    Document,
    KeyPath,
    MappingEntry,
    Splice,
    by_hand,
    entry,
    line_end,
    newline_at,
    raw,
    refuse_merged,
)

_SAFE_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./+-]*")


def pin_changes(
    document: Document, node: yaml.MappingNode, status: MappingEntry, where: KeyPath, pin: Pin | None
) -> Iterator[Change]:
    """Yield the splices after which a falsifier names the bundle ``pin``, or none where it is ``None``.

    Raises:
        ContractError: its evidence holds something else, or stands where no splice is certain.

    """
    found = entry(document, node, "evidence")
    path = (*where, "evidence")
    wanted = _pin_values(pin)
    if found is None:
        if wanted is not None:
            yield Change(splice=_new_pin(document, node, status, wanted), path=path, value=wanted)
    elif wanted is None:
        if not found.is_null:
            yield from _taken_away(document, found, path)
    elif isinstance(found.value, yaml.MappingNode) and found.value.value:
        yield from _renewed(document, found, path, wanted)
    elif found.is_null or isinstance(found.value, yaml.MappingNode):
        blank = "" if raw(document, found.value) else " "
        splice = _over(found.value, blank + _flow(wanted, _quote_of(document, status)))
        yield Change(splice=splice, path=path, value=wanted)
    else:
        why = "evidence holds something that is no bundle"
        raise by_hand(document, found.key, why, f"move it to another key, then evidence: {_flow(wanted, '')}")


def _pin_values(pin: Pin | None) -> dict[str, str] | None:
    return None if pin is None else {"bundle": pin.bundle, "statement_sha256": pin.statement_sha256}


def _over(node: yaml.Node, text: str) -> Splice:
    return Splice(start=node.start_mark.index, end=node.end_mark.index, text=text)


def _quote_of(document: Document, status: MappingEntry) -> str:
    """The quote that keys of this mapping are written in: JSON is YAML too, and stays JSON."""
    return '"' if document.text[status.key.start_mark.index] == '"' else ""


def _flow(values: dict[str, str], quote: str) -> str:
    pairs = ", ".join(f"{quote}{key}{quote}: {_scalar(value, quote)}" for key, value in values.items())
    return "{" + pairs + "}"


def _scalar(value: str, quote: str) -> str:
    if quote:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    is_number = re.fullmatch(r"\d+(e\d+)?", value)  # a digest of such letters is a number to some readers
    return value if _SAFE_PLAIN.fullmatch(value) and not is_number else "'" + value.replace("'", "''") + "'"


def _new_pin(
    document: Document, node: yaml.MappingNode, status: MappingEntry, wanted: dict[str, str]
) -> Splice:
    """A line below the status, or a further pair of a flow mapping."""
    quote = _quote_of(document, status)
    pair = f"{quote}evidence{quote}: {_flow(wanted, quote)}"
    end = status.value.end_mark.index
    if node.flow_style:
        return Splice(start=end, end=end, text=f", {pair}")
    if status.is_block_scalar:
        raise by_hand(
            document, status.key, "the status is a block of text", f"write it in a line, and {pair}"
        )
    at = line_end(document.text, end)
    indent = " " * status.key.start_mark.column
    return Splice(start=at, end=at, text=f"{newline_at(document.text, end)}{indent}{pair}")


def _taken_away(document: Document, found: MappingEntry, path: KeyPath) -> Iterator[Change]:
    """``null`` in its place: the key stays, so that a reader sees that there was evidence."""
    if not isinstance(found.value, yaml.MappingNode):
        raise by_hand(
            document, found.key, "evidence holds something that is no bundle", "write evidence: null"
        )
    names = {key.value for key, _ in found.value.value}
    if found.value.flow_style and names <= {"bundle", "statement_sha256"}:
        yield Change(splice=_over(found.value, "null"), path=path, value=None)
        return
    for name in ("bundle", "statement_sha256"):  # a comment, or another key, stands there and stays
        held = entry(document, found.value, name)
        if held is not None and not held.is_null:
            yield Change(splice=_over(held.value, "null"), path=(*path, name), value=None)


def _renewed(
    document: Document, found: MappingEntry, path: KeyPath, wanted: dict[str, str]
) -> Iterator[Change]:
    """New values for the keys that are there, and the missing ones behind them."""
    refuse_merged(document, found.value)
    own = {name: entry(document, found.value, name) for name in wanted}
    there = [one for one in own.values() if one is not None]
    if not there:
        todo = f"move it to another key, then evidence: {_flow(wanted, '')}"
        raise by_hand(document, found.key, "evidence holds something that is no bundle", todo)
    for name, value in wanted.items():
        held = own[name]
        if held is not None and held.scalar != value:
            splice = _rewritten(document, held, value)
            yield Change(splice=splice, path=(*path, name), value=value)
    missing = {name: value for name, value in wanted.items() if own[name] is None}
    if missing:
        yield from _appended(document, found, there[-1], path, missing)


def _rewritten(document: Document, held: MappingEntry, value: str) -> Splice:
    if held.is_null:
        blank = "" if raw(document, held.value) else " "
        return _over(held.value, blank + _scalar(value, ""))
    if not held.scalar or held.is_block_scalar or "\n" in raw(document, held.value):
        raise by_hand(
            document, held.key, f"{held.key.value} is no text in one line", f"write {held.key.value}: {value}"
        )
    quoted = isinstance(held.value, yaml.ScalarNode) and held.value.style == '"'
    return _over(held.value, _scalar(value, '"' if quoted else ""))


def _appended(
    document: Document, found: MappingEntry, behind: MappingEntry, path: KeyPath, missing: dict[str, str]
) -> Iterator[Change]:
    quote = '"' if document.text[behind.key.start_mark.index] == '"' else ""
    pairs = [f"{quote}{name}{quote}: {_scalar(value, quote)}" for name, value in missing.items()]
    end = behind.value.end_mark.index
    if isinstance(found.value, yaml.MappingNode) and found.value.flow_style:
        splice = Splice(start=end, end=end, text="".join(f", {pair}" for pair in pairs))
    else:
        at, indent = line_end(document.text, end), " " * behind.key.start_mark.column
        newline = newline_at(document.text, end)
        splice = Splice(start=at, end=at, text="".join(f"{newline}{indent}{pair}" for pair in pairs))
    for name, value in missing.items():
        yield Change(splice=splice, path=(*path, name), value=value)
        splice = Splice(start=splice.end, end=splice.end, text="")
