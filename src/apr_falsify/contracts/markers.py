"""A falsifier's id as the name of a pytest marker."""

from __future__ import annotations

import re

PREFIX = "falsify_"
"""How the marker of every falsifier begins."""


def marker_of(falsifier: str) -> str:
    """Return the marker that decides ``falsifier``: ``FALSIFY-ATTN-SUB-004`` -> ``falsify_attn_sub_004``.

    Whatever is no letter or digit becomes an underscore; an id of another beginning gets the prefix.
    """
    name = re.sub(r"[^0-9a-z]+", "_", falsifier.lower()).strip("_")
    return name if name.startswith(PREFIX) else PREFIX + name
