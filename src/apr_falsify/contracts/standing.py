"""In what state a falsifier's evidence is. It is found out elsewhere, and handed to the rules as a value."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FRESH, STALE, BROKEN, ABSENT = "fresh", "stale", "broken", "absent"
STATES = (FRESH, STALE, BROKEN, ABSENT)
"""Of today's claim and code; of another claim or code; carrying nothing; not named by the contract."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The state of one falsifier's evidence.

    Attributes:
        state: one of :data:`STATES`.
        why: what is not as it should be, a line each; empty where it is fresh.
        bundle: the bundle's path as the contract names it; empty where it names none.
        lane: the lane that a new bundle must come from; empty where any will do.

    """

    state: str
    why: tuple[str, ...] = ()
    bundle: str = ""
    lane: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The evidence of a project that keeps some.

    Attributes:
        root: the project's folder; contracts elsewhere are not judged by it.
        standings: a falsifier's id -> the state of its evidence; one that is not there names no bundle.
        not_named: bundles that no contract names, as paths that problems show.

    """

    root: Path
    standings: Mapping[str, Standing]
    not_named: tuple[str, ...] = ()

    def covers(self, contract: str) -> bool:
        """Whether a contract is one of the project's."""
        return os.path.realpath(contract).startswith(os.path.realpath(self.root) + os.sep)
