"""Files that are cited as evidence and hold comments only, in the languages that proofs are written in."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from apr_falsify.contracts.model import Citation
from apr_falsify.contracts.problem import Problem, problem_at
from apr_falsify.contracts.roots import FoundPath, SearchScope

_C = r"/\*.*?(?:\*/|\Z)|//[^\n]*"
_COMMENTS: Mapping[str, re.Pattern[str]] = {
    suffix: re.compile(pattern, re.DOTALL)
    for suffix, pattern in {
        ".lean": r"/-.*?(?:-/|\Z)|--[^\n]*",
        ".v": r"\(\*.*?(?:\*\)|\Z)",
        ".thy": r"\(\*.*?(?:\*\)|\Z)",
        ".tla": r"\(\*.*?(?:\*\)|\Z)|\\\*[^\n]*",
        ".smt2": r";[^\n]*",
        ".dfy": _C,
        ".rs": _C,
        ".als": rf"{_C}|--[^\n]*",
        ".py": r"#[^\n]*",
        ".sh": r"#[^\n]*",
    }.items()
}
"""Suffix -> what a comment is there."""
PROOFS = (".lean", ".v", ".thy", ".tla", ".smt2", ".dfy", ".als")
"""Suffixes of proofs: a name in a comment of theirs proves nothing."""
_NAMES_ONLY = ("__init__.py", "mod.rs", "lib.rs")
"""Files that may be empty: that they exist is what they are for."""
_MOST_BYTES = 256 * 1024


def without_comments(name: str, text: str) -> str:
    """Return the text of a file without its comments; as it is, where its language is not known."""
    comments = _COMMENTS.get(os.path.splitext(name)[1])
    return comments.sub("", text) if comments else text


def hollow_problems(path: str, citation: Citation, scope: SearchScope) -> Iterator[Problem]:
    """A file that is cited as evidence says something."""
    if citation.kind not in ("file", "theorem") or citation.expected_absent:
        return
    for found in (found for path in citation.paths for found in scope.find(path)):
        if not found.is_directory and _is_hollow(found):
            message = f"{found.shown} is cited as evidence and holds comments only"
            hint = "write the proof or the test, or lower the status"
            yield problem_at(
                path, "file-of-comments-only", citation.place, message, subject=found.shown, hint=hint
            )


def _is_hollow(found: FoundPath) -> bool:
    name = os.path.basename(found.relative)
    if os.path.splitext(name)[1] not in _COMMENTS or name in _NAMES_ONLY:
        return False
    index = found.tree.index(found.relative)
    if index is not None and (index.definitions or index.error_line is not None):
        return False
    source = found.tree.read_bytes(found.relative)
    if source is None or len(source) > _MOST_BYTES:
        return False
    return not without_comments(name, source.decode("utf-8", "replace")).strip()
