"""One line more in the changelog that a contract keeps in ``metadata.description``, in the style found there.

A description is a literal or folded block, a quoted or a plain scalar. In a block a new entry takes a line of
its own: before the newest entry, or behind the last where the newest stand last, or at the end where there
is none. In any other scalar it stands in the same line, so that no line of the file is folded anew.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from apr_falsify.contracts.spans import Document, MappingEntry, Splice, by_hand, newline_at, raw

# the rule changelog-version counts the same lines as entries; here their parts are told apart
_ENTRY = re.compile(
    r"(?P<start>^|(?<=\\n))(?P<lead>[ \t]*(?:[-*][ \t]+)?\**)(?P<v>v?)"
    r"(?P<version>[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9})(?P<bold>\**)"
    r"[ \t]*(?P<date>\([^)\n]*\))?[ \t]*(?P<colon>[:\u2014\u2013])",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangelogLine:
    """What the new entry says."""

    version: str
    date: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Content:
    """The inside of a scalar: where it begins in the file, and its characters as written."""

    start: int
    text: str


def changelog_splice(
    document: Document, description: MappingEntry, line: ChangelogLine
) -> tuple[Splice, str]:
    """Return the insertion of a changelog line, and the words it adds to the description.

    Raises:
        ContractError: the description is empty or no text.

    """
    if not description.scalar.strip():
        todo = f"write the line 'v{line.version} ({line.date}): {line.text}'"
        raise by_hand(document, description.key, "the description holds no text for a changelog", todo)
    if description.is_block_scalar:
        return _in_block(document, description, line)
    return _in_line(document, description, line)


def _worded(found: re.Match[str] | None, line: ChangelogLine) -> str:
    """The entry in the style of another, ``v1.2.3 (date): text`` where there is none."""
    if found is None:
        return f"v{line.version} ({line.date}): {line.text}"
    date = f" ({line.date})" if found["date"] else ""
    lead, colon = found["lead"].lstrip(), found["colon"] if found["colon"] == ":" else f" {found['colon']}"
    return f"{lead}{found['v']}{line.version}{found['bold']}{date}{colon} {line.text}"


def _is_oldest_first(entries: list[re.Match[str]]) -> bool:
    versions = [tuple(map(int, one["version"].split("."))) for one in entries]
    return len(versions) > 1 and versions[0] < versions[-1]


def _in_block(document: Document, description: MappingEntry, line: ChangelogLine) -> tuple[Splice, str]:
    written = raw(document, description.value)
    newline = newline_at(document.text, description.value.start_mark.index)
    header = len(written.splitlines(keepends=True)[0])
    if not written[:header].endswith(newline):  # YAML 1.1 ends a line at U+0085 and U+2028 too
        todo = f"write the line 'v{line.version} ({line.date}): {line.text}'"
        raise by_hand(document, description.key, "the description's lines do not end as others do", todo)
    start = description.value.start_mark.index + header
    content = _Content(start=start, text=written[header:].rstrip())
    entries = [one for one in _ENTRY.finditer(content.text) if content.text[: one.start()][-1:] in ("", "\n")]
    blank = newline if _is_apart(content.text, entries, folded=description.style == ">") else ""
    words = _worded(entries[0] if entries else None, line)
    if entries and not _is_oldest_first(entries):
        at = entries[0].start()
        indent = _indent_of(entries[0]["lead"])
        return _at(content, at, f"{indent}{words}{newline}{blank}"), words
    at = _end_of_last(content.text, entries)
    indent = _indent_of(entries[-1]["lead"]) if entries else _base_indent(content.text)
    return _at(content, at, f"{newline}{blank}{indent}{words}"), words


def _at(content: _Content, at: int, text: str) -> Splice:
    return Splice(start=content.start + at, end=content.start + at, text=text)


def _indent_of(lead: str) -> str:
    return lead[: len(lead) - len(lead.lstrip(" \t"))]


def _base_indent(text: str) -> str:
    lines = [one for one in text.splitlines() if one.strip()]
    return " " * min(len(one) - len(one.lstrip(" ")) for one in lines)


def _is_apart(text: str, entries: list[re.Match[str]], *, folded: bool) -> bool:
    """Whether a blank line keeps entries apart; with fewer than two, whether a fold would join them."""
    if len(entries) < 2:
        return folded or not entries
    return not text[: entries[1].start()].splitlines()[-1].strip()


def _end_of_last(text: str, entries: list[re.Match[str]]) -> int:
    """Where the last entry's paragraph ends; the end of the text where there is no entry."""
    if not entries:
        return len(text)
    gap = re.search(r"\s*(?:\r\n|\r|\n)[ \t]*(?=\r|\n)", text[entries[-1].start() :])
    return entries[-1].start() + gap.start() if gap else len(text)


def _in_line(document: Document, description: MappingEntry, line: ChangelogLine) -> tuple[Splice, str]:
    """In a quoted or plain scalar, which may run over several lines of the file."""
    written, quote = raw(document, description.value), description.style
    content = _Content(
        start=description.value.start_mark.index + len(quote),
        text=written[len(quote) : len(written) - len(quote)],
    )
    entries = list(_ENTRY.finditer(content.text)) if quote else []
    if entries and not _is_oldest_first(entries):
        return _before_entry(document, content, entries[0], line)
    words = _worded(entries[-1] if entries else None, line) if quote else _plain(line)
    apart = "\\n\\n" if quote == '"' and not entries else "\\n" if quote == '"' else " "
    end = len(content.text.rstrip()) if not quote else len(content.text)
    return _at(content, end, f"{apart}{words}"), words


def _before_entry(
    document: Document, content: _Content, first: re.Match[str], line: ChangelogLine
) -> tuple[Splice, str]:
    words = _worded(first, line)
    indent = _indent_of(first["lead"])
    begins_a_line = content.text[: first.start()].rstrip(" \t").endswith(("\n", "\r"))
    if begins_a_line:  # blank lines keep the lines of a quoted scalar from being folded into one
        newline = newline_at(document.text, content.start)
        return _at(content, first.start(), f"{indent}{words}{newline}{newline}"), words
    after = "\\n" if "\\n" in content.text else " "
    return _at(content, first.start() + len(indent), f"{words}{after}"), words


def _plain(line: ChangelogLine) -> str:
    """A plain scalar ends at a colon with a blank behind it, so it gets none."""
    return f"v{line.version} ({line.date}) - {line.text}"
