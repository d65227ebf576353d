"""A named explanation of a stage that introduces an error."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """A named explanation.

    Attributes:
        name: stable identifier: ``rope-base``, ``missing-bias``, ``factor`` ...
        sentence: for people, with the residual.
        residual: relative L2 that is left when the cause is assumed.
        fits: whether that is within the floor everywhere.
        says: the cause alone, the subject of a sentence that goes on with "fits".
        row: its variation's place in the table; ``None`` where it is none of them.

    """

    name: str
    sentence: str
    residual: float
    fits: bool
    says: str = ""
    row: int | None = None
