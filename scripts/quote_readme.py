"""Put what the program prints today into README.md: every block that starts with ``$ apr-falsify``.

Also the list of families, from their table.

tests/acceptance/test_documents.py fails where README quotes something else than is printed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

from apr_falsify.commands.doctor import titles
from apr_falsify.model.families import FAMILIES

ROOT = Path(__file__).parents[1]
PROGRAM = Path(sys.executable).parent / "apr-falsify"
QUOTED = re.compile(r"```\n\$ (apr-falsify .*?(?:\\\n.*?)*)\n.*?\n```", flags=re.DOTALL)
ROWS = 12
"""How many lines of a table are shown."""


def quoted(match: re.Match[str]) -> str:
    """Return the block with what its command prints now."""
    command = match[1]
    arguments = command.replace("\\\n", " ").split()[1:]
    done = subprocess.run([PROGRAM, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line.rstrip() for line in done.stdout.rstrip().splitlines()]
    if "layer 0" in lines:
        lines = [*lines[: lines.index("layer 0") + ROWS], "..."]
    return "\n".join(("```", f"$ {command}", *lines, "```"))


FAMILIES_TOLD = re.compile(r"Known families: .*?\n\n", flags=re.DOTALL)


def families_told() -> str:
    """Return README's paragraph on the families that are known."""
    from_gguf = [each for each in FAMILIES if each.gguf_weights]
    said = f"Known families: {titles(FAMILIES)}. From GGUF files: {titles(from_gguf)}."
    return textwrap.fill(said, 120, break_on_hyphens=False) + "\n\n"


def main() -> None:
    """Rewrite README.md."""
    readme = ROOT / "README.md"
    text = FAMILIES_TOLD.sub(lambda _: families_told(), readme.read_text(encoding="utf-8"))
    readme.write_text(QUOTED.sub(quoted, text), encoding="utf-8")


if __name__ == "__main__":
    main()
