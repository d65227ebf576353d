"""README's walk-through, command by command: from a promise to evidence."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HEADING = "## From a promise to evidence"
QUOTER: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "quote_page.py"))

VARIES = (
    (r"\b[0-9a-f]{64}\b", "DIGEST"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", "TIME"),
    (r"\(\d{4}-\d\d-\d\d\)", "(DATE)"),
    (r"in \d+\.\d+s", "in SECONDS"),
)
"""What is another at every run, and what stands for it."""


def stable(text: str) -> list[str]:
    for pattern, word in VARIES:
        text = re.sub(pattern, word, text)
    return text.split()  # where a line is broken depends on the length of a path


def test_the_walk_through_of_readme_prints_what_readme_says_and_ends_where_it_says(tmp_path: Path) -> None:
    part = QUOTER["section"]((ROOT / "README.md").read_text(encoding="utf-8"), HEADING)
    blocks = list(QUOTER["printed"](part, QUOTER["prepared"](tmp_path)))
    assert len(blocks) == part.count("\n$ ") == 8
    for command, quoted, printed in blocks:
        assert stable(quoted) == stable(printed), command
    promoted = (tmp_path / "my-port/contracts/my-port-v1.yaml").read_text(encoding="utf-8")
    assert promoted.count("status: PARTIAL_ALGORITHM_LEVEL") == 2
    assert (tmp_path / "my-port/evidence/FALSIFY-PORT-001/report.html").stat().st_size > 10_000
