"""Where things are kept between runs: one folder, named in one place."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "APR_FALSIFY_CACHE"
"""Names the folder itself; without it, it is ``apr-falsify`` under ``$XDG_CACHE_HOME``, else ``~/.cache``."""


def cache_folder() -> Path:
    """Return the folder for what can be made again; it need not exist.

    Raises:
        RuntimeError: neither variable is set and the user has no home directory.

    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "apr-falsify"
