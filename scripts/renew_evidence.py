"""Make the bundles that our contracts' statuses rest on, and let the contracts name them.

    make evidence          (or: python scripts/renew_evidence.py [FALSIFIER...])

1. Refuse where sources are not committed: such a bundle would carry nothing.
2. Run every falsifier's tests (or those named) with ``--evidence-dir=evidence``.
3. Promote each falsifier that stands lowest, and renew the evidence of those that stand higher: those of
   one contract together, and each alone where one of them is refused.

Commit evidence/ and contracts/ together.
"""

from __future__ import annotations

import subprocess
import sys
from itertools import groupby
from pathlib import Path

from apr_falsify.contracts.claim import Claim, read_claims
from apr_falsify.contracts.discover import discover
from apr_falsify.contracts.markers import marker_of
from apr_falsify.contracts.statuses import BLOCKER

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
EVIDENCE = "evidence"
APART = (EVIDENCE, "contracts")


def uncommitted() -> list[str]:
    """Return what differs from the last commit, but for the evidence and the contracts that name it."""
    command = ["git", "status", "--porcelain", "--", ".", *(f":!{name}" for name in APART)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def measure(claims: list[Claim]) -> int:
    """Run the falsifiers' tests; each leaves a bundle."""
    markers = " or ".join(marker_of(claim.falsifier) for claim in claims)
    command = [BIN / "pytest", "-q", "-n", "2", "-m", markers, f"--evidence-dir={EVIDENCE}"]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def name_them(claims: list[Claim], *move: str) -> bool:
    """Let a contract name the bundles of some of its falsifiers; whether it does."""
    names = [claim.falsifier for claim in claims]
    bundles = [word for name in names for word in ("--evidence", f"{EVIDENCE}/{name}")]
    command = [BIN / "apr-falsify", "promote", claims[0].path, *names, *bundles, *move]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def name_all(claims: list[Claim]) -> int:
    """Let one contract name its bundles; the number of those that were refused."""
    lowest = [claim for claim in claims if claim.rung == BLOCKER]
    higher = [claim for claim in claims if claim.rung != BLOCKER]
    refused = sum(not name_them([claim]) for claim in lowest)
    if higher and not name_them(higher, "--renew"):
        refused += sum(not name_them([claim], "--renew") for claim in higher)
    return refused


def main(wanted: list[str]) -> int:
    """Do all three; the number of falsifiers whose evidence was refused."""
    if changed := uncommitted():
        print("commit or remove these first:", *changed, sep="\n  ", file=sys.stderr)
        return 2
    claims = [claim for path in discover([Path("contracts")]) for claim in read_claims(path)]
    claims = [claim for claim in claims if not wanted or claim.falsifier in wanted]
    if code := measure(claims):
        print("a falsifier did not survive: nothing was promoted", file=sys.stderr)
        return code
    by_contract = groupby(claims, key=lambda claim: claim.path)
    return sum(name_all(list(those)) for _, those in by_contract)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
