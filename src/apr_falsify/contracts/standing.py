"""In what state a falsifier's evidence is. It is found out elsewhere, and handed to the rules as a value."""

from __future__ import annotations

from dataclasses import dataclass

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

    """

    state: str
    why: tuple[str, ...] = ()
    bundle: str = ""
