"""Rust text with comments and literals blanked out, and where its braces close: what a quick look needs."""

from __future__ import annotations

import re

# each alternative begins with one sign, so that the engine skips to the next of them
_NOISE = re.compile(
    r"""//[^\n]*|/\*|"[^"\\]*(?:\\.[^"\\]*)*"|r(?P<hashes>\#*)".*?"(?P=hashes)"""
    r"""|'(?:\\(?:u\{[0-9a-fA-F_]*\}|x[0-9a-fA-F]{2}|.)|[^\\'\n])'""",
    re.DOTALL | re.VERBOSE,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_PAIRS = {"(": ")", "[": "]", "{": "}"}


def blanked(text: str) -> str:
    """Return ``text`` with every comment and literal replaced by as many spaces, line ends among them."""
    pieces: list[str] = []
    at = 0
    search = _NOISE.search
    while match := search(text, at):
        start, end = match.span()
        if text.startswith("/*", start):
            end = _comment_end(text, start)
        pieces.append(text[at:start])
        pieces.append(" " * (end - start))
        at = end
    pieces.append(text[at:])
    return "".join(pieces)


def _comment_end(text: str, start: int) -> int:
    """Comments nest."""
    depth = 0
    for edge in _COMMENT_EDGE.finditer(text, start):
        depth += 1 if edge.group() == "/*" else -1
        if depth == 0:
            return edge.end()
    return len(text)


def braces_of(code: str) -> dict[int, int]:
    """Return where each opening brace of blanked text closes; one that never does, at its end."""
    closes: dict[int, int] = {}
    opened: list[int] = []
    at = code.find("{")
    while at >= 0:
        opened.append(at)
        at += 1
        following = code.find("{", at)
        shut = code.find("}", at, None if following < 0 else following)
        while shut >= 0 and opened:
            closes[opened.pop()] = shut
            shut = code.find("}", shut + 1, None if following < 0 else following)
        at = following
    return closes | dict.fromkeys(opened, len(code))


def closing(code: str, at: int) -> int:
    """Where the bracket at ``at`` of blanked text closes; its end where it never does."""
    opening = code[at]
    depth = 0
    for match in re.compile(f"[{re.escape(opening + _PAIRS[opening])}]").finditer(code, at):
        depth += 1 if match.group() == opening else -1
        if depth == 0:
            return match.start()
    return len(code)
