"""What every test needs to know about the machine: where real data lies, and why a test cannot run."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

DATA = Path(__file__).parent / "data"
"""Real data vendored from others' runs; tests/data/README.md says where each came from."""

REAL_VARIABLE = "APR_FALSIFY_REAL"
"""Names a folder with others' contracts and recordings that are not vendored."""


def real_folder() -> Path | None:
    """Return the folder with others' data, ``None`` where the variable names none."""
    named = os.environ.get(REAL_VARIABLE)
    return Path(named) if named and Path(named).is_dir() else None


MACHINE_PATH = re.compile(
    r"(?<![\w.~/:-])/(?:Users|data|home|media|mnt|opt|private|root|runner|srv|tmp|usr|var|work|workspace)/\w"
)
"""What a path of some machine begins with, whichever it was."""


def machine_paths_in(folder: Path, *places: Path) -> dict[str, str]:
    """Return the files below ``folder`` that name a folder of this machine -> the first one that they name.

    Looked for are ``places``, the home directory, the temporary one, this Python's environment and the
    checkout.
    """
    here = Path(__file__).parents[1]
    known = (*places, Path.home(), Path(tempfile.gettempdir()), Path(sys.prefix), Path(sys.base_prefix), here)
    found: dict[str, str] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        named = [place for place in known if re.search(re.escape(os.fsencode(place)) + rb"(?![\w-])", data)]
        if named:
            found[path.relative_to(folder).as_posix()] = str(named[0])
    return found
