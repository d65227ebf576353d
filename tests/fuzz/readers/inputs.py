"""One input for a reader, and what makes one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One input, lying ready.

    Attributes:
        read: reads it.
        size: its bytes, all files together.
        said: what was changed in the sound file, in words.

    """

    read: Callable[[], object]
    size: int
    said: tuple[str, ...]


Maker = Callable[[Random], Input]
"""Makes an input; what it changes follows from the chance it is given alone."""
