"""What one check of ``apr-falsify doctor`` says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class CheckState(StrEnum):
    """What was found of one part."""

    FOUND = "found"
    OPTIONAL = "absent"
    MISSING = "missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The result of one check.

    Attributes:
        part: what was looked for.
        state: whether it is there; ``absent`` is something that only some commands need.
        detail: version, path, or what it is needed for.
        remedy: the command that fixes it.

    """

    part: str
    state: CheckState
    detail: str
    remedy: str = ""
