"""Put what the commands of a page print today into the page: every block that starts with ``$ ``.

The commands run in order, in a shell, in a fresh folder in which ``docs`` and ``src`` are this checkout's,
with the programs of this environment first on PATH. tests/acceptance/test_porting.py fails where the page
quotes something else.

    python scripts/quote_page.py docs/porting.md
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUOTED = re.compile(r"```\n\$ (.*?(?:\\\n.*?)*)\n(.*?)```", flags=re.DOTALL)


def prepared(folder: Path) -> Path:
    """Make ``folder`` look like the checkout's root."""
    for name in ("docs", "src"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def printed(page: str, folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield each command of ``page``, what it quotes below it, and what it prints in ``folder``."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    for match in QUOTED.finditer(page):
        done = subprocess.run(
            ["bash", "-c", f"{{ {match[1]}\n}} 2>&1"],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [line.rstrip() for line in done.stdout.rstrip().splitlines()]
        yield match[1], match[2], "".join(f"{line}\n" for line in lines)


def main(page: str) -> None:
    """Rewrite the page."""
    path = Path(page)
    with tempfile.TemporaryDirectory() as folder:
        outputs = [
            output for _, _, output in printed(path.read_text(encoding="utf-8"), prepared(Path(folder)))
        ]
    said = iter(outputs)
    text = QUOTED.sub(lambda match: f"```\n$ {match[1]}\n{next(said)}```", path.read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
