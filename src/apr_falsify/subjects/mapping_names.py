"""Names of arrays as a mapping file writes them, with fields for the layer and the pass."""

from __future__ import annotations

import re

RANK = "{rank}"
"""Stands for the number of a tensor-parallel rank."""

_FIELD = re.compile(r"\{(layer|pass)([+-]\d{1,4})?(?::0?(\d))?\}")


def name_of(pattern: str, layer: int | None, which: int | None = None) -> str:
    """Return the array's name: ``{layer}``, ``{layer+1}`` and ``{layer:02}`` in ``pattern`` filled in.

    ``{pass}`` is filled in likewise, with the pass ``which``.
    """

    def number(match: re.Match[str]) -> str:
        value = layer if match[1] == "layer" else which
        assert value is not None
        return f"{value + int(match[2] or 0):0{match[3] or 1}d}"

    return _FIELD.sub(number, pattern)


def is_layered(pattern: str) -> bool:
    """Whether ``pattern`` names one array per layer."""
    return has_field(pattern, "layer")


def has_field(pattern: str, word: str) -> bool:
    """Whether ``pattern`` names one array for each ``word``: ``layer`` or ``pass``."""
    return any(match[1] == word for match in _FIELD.finditer(pattern))


def without_fields(pattern: str) -> str:
    """Return what is left of ``pattern`` where its fields are empty."""
    return _FIELD.sub("", pattern).replace(RANK, "")
