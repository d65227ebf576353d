"""What every test needs to know about the machine: where real data lies, and why a test cannot run."""

from __future__ import annotations

import os
from pathlib import Path

DATA = Path(__file__).parent / "data"
"""Real data vendored from others' runs; tests/data/README.md says where each came from."""

REAL_VARIABLE = "APR_FALSIFY_REAL"
"""Names a folder with others' contracts and recordings that are not vendored."""


def real_folder() -> Path | None:
    """Return the folder with others' data, ``None`` where the variable names none."""
    named = os.environ.get(REAL_VARIABLE)
    return Path(named) if named and Path(named).is_dir() else None
