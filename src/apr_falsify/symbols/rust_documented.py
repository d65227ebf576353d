"""Which items of a Rust file have documentation that holds code, which ``cargo test`` runs too."""

from __future__ import annotations

import re
from collections.abc import Iterator

_DOCUMENTATION = re.compile(r"(?:^[ \t]*//[/!][^\n]*\n)+", re.MULTILINE)
_DOCUMENTED = re.compile(
    r"\b(?:fn|struct|enum|trait|mod|type|const|static|union|macro_rules\s*!)\s+(?:r#)?(\w+)"
)
_DOC_ATTRIBUTE = re.compile(r'doc(?<!\wdoc)\s*=\s*(?:include_str|concat|\$|"[^"]*```)')
_DOC_BLOCK = re.compile(r"/\*[*!](?:(?!\*/).)*```", re.DOTALL)
_PART = re.compile(r"\s*(?:#\s*\[[^\]]*\]\s*)*(?:pub(?:\([^)]*\))?\s+)?(\w+)")
_FENCE = re.compile(r"^[ \t]*//[/!][ \t]*```+[ \t]*([^\n]*)$", re.MULTILINE)
_INDENTED = re.compile(r"^[ \t]*//[/!](?: {5,}|\t)\S", re.MULTILINE)
_OF_CODE = re.compile(
    r"rust|should_panic|no_run|compile_fail|test_harness|standalone\w*|edition\w*|E\d+|ignore-.*"
)
ANY_NAME = "*"
"""Among the documented names: documentation stands there that only the compiler puts together."""


def _is_documented_otherwise(text: str) -> bool:
    """Whether documentation with code stands in an attribute, or in a block comment that begins its line."""
    block = _DOC_BLOCK.search(text)
    while block and text[text.rfind("\n", 0, block.start()) + 1 : block.start()].strip(" \t"):
        block = _DOC_BLOCK.search(text, block.start() + 1)
    return bool(block or _DOC_ATTRIBUTE.search(text))


def _documentation(text: str) -> Iterator[re.Match[str]]:
    """Runs of lines of documentation; looked for from each ``//``, which is quicker than from each line."""
    at = text.find("//")
    while at >= 0:
        block = _DOCUMENTATION.match(text, text.rfind("\n", 0, at) + 1)
        if block:
            yield block
        line = text.find("\n", at)
        at = text.find("//", block.end() if block else line if line >= 0 else len(text))


def _holds_code(documentation: str) -> bool:
    """Whether it holds code that is run: in a fence of no other language, or indented."""
    fences = _FENCE.findall(documentation)[::2]
    words = ([word for word in re.split(r"[\s,{}]+", fence) if word] for fence in fences)
    return any(all(map(_OF_CODE.fullmatch, one)) for one in words) or bool(_INDENTED.search(documentation))


def documented(text: str, code: str) -> frozenset[str]:
    """Items with code in the documentation before them; an empty name for the file's own.

    Args:
        text: of the file.
        code: the same with comments and literals blanked.

    """
    found = {ANY_NAME} if _is_documented_otherwise(text) else set()
    for block in _documentation(text):
        if not _holds_code(block.group()):
            continue
        item = _DOCUMENTED.search(code, block.end())
        found.add("" if block.group().lstrip().startswith("//!") or item is None else item[1])
        part = _PART.match(code, block.end())  # of an enum or a struct
        found.update([part[1]] if part else [])
    return frozenset(found)
