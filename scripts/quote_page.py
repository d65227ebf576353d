"""Put what the commands of a page print today into the page: every block that starts with ``$ ``.

The commands run in order, each in a shell, in a fresh folder in which ``docs`` and ``src`` are this
checkout's and the files lie that the page shows (```FILE.py`:`` and a block of Python), with the programs of
this environment first on PATH; ``cd`` holds for the commands behind it. tests/acceptance/test_porting.py,
test_walk_through.py and test_adding_a_family.py fail where a page quotes something else.

    python scripts/quote_page.py docs/porting.md
    python scripts/quote_page.py docs/adding-a-family.md
    python scripts/quote_page.py README.md "## From a promise to evidence"
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from warm import warm

ROOT = Path(__file__).parents[1]
QUOTED = re.compile(r"```(?:console)?\n\$ (.*?(?:\\\n.*?)*)\n(.*?)```", flags=re.DOTALL)

SHOWN = re.compile(r"`(\w+\.py)`:\n\n```python\n(.*?)```", flags=re.DOTALL)

AUTHOR = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "a reader"), ("EMAIL", "reader@example.org"))
}
"""Who commits where a page commits: a fresh machine has nobody."""


def prepared(folder: Path, page: str = "") -> Path:
    """Make ``folder`` look like the checkout's root, with the files that ``page`` shows."""
    for name in ("docs", "src"):
        (folder / name).symlink_to(ROOT / name)
    for name, text in SHOWN.findall(page):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def section(page: str, heading: str) -> str:
    """Return the part of ``page`` from ``heading`` to the next of its rank; without a heading all of it."""
    if not heading:
        return page
    start = page.index(f"\n{heading}\n") + 1
    end = page.find("\n## ", start + 1)
    return page[start:] if end < 0 else page[start : end + 1]


def printed(page: str, folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield each command of ``page``, what it quotes below it, and what it prints in ``folder``."""
    with tempfile.TemporaryDirectory(prefix="w") as programs, warm(Path(programs)):
        path = os.pathsep.join((programs, str(Path(sys.executable).parent), os.environ["PATH"]))
        env = {**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1", **AUTHOR}
        yield from _printed(page, folder, env)


def _printed(page: str, where: Path, env: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for match in QUOTED.finditer(page):
        with tempfile.NamedTemporaryFile("r", encoding="utf-8") as left:
            done = subprocess.run(
                ["bash", "-c", f"{{ {match[1]}\n}} 2>&1; pwd > {left.name}"],
                cwd=where,
                env=env,
                capture_output=True,
                text=True,
                check=False,
            )
            where = Path(left.read().strip() or where)
        lines = [line.rstrip() for line in done.stdout.rstrip().splitlines()]
        yield match[1], match[2], "".join(f"{line}\n" for line in lines)


def main(page: str, heading: str = "") -> None:
    """Rewrite the page, or its part below ``heading``."""
    path = Path(page)
    whole = path.read_text(encoding="utf-8")
    part = section(whole, heading)
    with tempfile.TemporaryDirectory() as folder:
        outputs = [output for _, _, output in printed(part, prepared(Path(folder), part))]
    said = iter(outputs)
    text = QUOTED.sub(lambda match: match[0].replace(f"\n{match[2]}```", f"\n{next(said)}```"), part)
    path.write_text(whole.replace(part, text), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
