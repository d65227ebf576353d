"""Where no project asks for it the pytest plugin costs nothing measurable: three modules, <= 5 ms.

Measured on one test in a folder without ``[tool.apr-falsify]``: which modules of ours a session has loaded,
what importing them takes (``python -X importtime``), and the wall time of pytest with and without the plugin.
Beside it what a project with one contract pays.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 15
LIMIT_MS = 5
OURS = {"apr_falsify", "apr_falsify.pytest_plugin", "apr_falsify.pytest_plugin.entry"}
CONFIGURED = '[tool.apr-falsify]\ncontracts = ["contracts"]\n'
TEST = """\
def test_x():
    import sys
    print("", *(f"loaded {name}" for name in sys.modules if name.startswith("apr_falsify")), sep="\\n")
"""
CONTRACT = """\
metadata: {id: C-TOY, version: 1.0.0}
falsification_tests:
- {id: FALSIFY-TOY-001, rule: r, prediction: p, test: pytest -m falsify_toy_001, status: BLOCKER}
"""


def pytest_in(folder: Path, *options: str) -> list[str]:
    return [*("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={folder}", str(folder)), *options]


def wall_ms(folder: Path, *options: str) -> float:
    command = [sys.executable, *pytest_in(folder, *options)]
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, capture_output=True, check=True)
    return 1000 * (time.perf_counter() - start)


def loaded(folder: Path) -> set[str]:
    """Return the modules of ours that a session has loaded, as its own test tells them."""
    command = [sys.executable, *pytest_in(folder, "-s")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return set(re.findall(r"^loaded (\S+)$", done.stdout, re.MULTILINE))


def import_ms() -> float:
    """Return the milliseconds that importing the entry takes by itself."""
    command = [sys.executable, "-X", "importtime", "-c", "import apr_falsify.pytest_plugin.entry"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", done.stderr)
    return sum(int(took) for took, name in rows if name.startswith("apr_falsify")) / 1000


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "test_x.py").write_text(TEST)
        wall_ms(folder)  # bytecode is written
        ours = loaded(folder)
        pairs = [(wall_ms(folder), wall_ms(folder, "-p", "no:apr_falsify")) for _ in range(RUNS)]
        with_it, without = (statistics.median(times) for times in zip(*pairs, strict=True))
        (folder / "pyproject.toml").write_text(CONFIGURED)
        (folder / "contracts").mkdir()
        (folder / "contracts" / "toy-v1.yaml").write_text(CONTRACT)
        configured = statistics.median(wall_ms(folder, "-k", "test_x") for _ in range(RUNS))
    took = statistics.median(import_ms() for _ in range(RUNS))
    print(f"importing the entry: {took:.1f} ms, modules of ours: {', '.join(sorted(ours))}")
    print(f"pytest on one test, median of {RUNS}: {with_it:.0f} ms with it, {without:.0f} ms without")
    print(f"in a configured project with one contract: {configured:.0f} ms")
    holds = took <= LIMIT_MS and ours == OURS
    print(f"{'holds' if holds else 'FAILS'}: {took:.1f} ms, claimed <= {LIMIT_MS} ms and no other module")
    return int(not holds)


if __name__ == "__main__":
    sys.exit(main())
