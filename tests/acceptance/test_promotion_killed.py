"""A promotion killed at any moment: the contract is as it was, or as it was to be."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from apr_falsify.commands.main import cli, guarded
from tests.acceptance.programs import run
from tests.acceptance.toy_project import CONTRACT, ONE, measured, toy

__all__ = ["measured", "toy"]

ARGUMENTS = ["promote", CONTRACT, ONE, "--evidence", f"evidence/{ONE}"]


def test_killed_at_any_moment_a_promotion_leaves_the_contract_old_or_new(toy: Path) -> None:
    """The whole command, forked after its imports."""
    contract = Path(CONTRACT)
    before = contract.read_bytes()
    assert run(*ARGUMENTS).code == 0
    after = contract.read_bytes()
    longest = max(_lifetime(contract, before) for _ in range(3))
    chance, seen = random.Random(11), set()
    for moment in range(200):
        if moment >= 100:  # as many again, ever later, where the machine has become slower
            if len(seen) == 2:
                break
            longest *= 1.05
        contract.write_bytes(before)
        child = _child()
        time.sleep(chance.uniform(0, 1.2 * longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left = contract.read_bytes()
        assert left in (before, after)
        seen.add(left == after)
    contract.write_bytes(before)
    assert run(*ARGUMENTS).code == 0
    assert contract.read_bytes() == after
    assert sorted(os.listdir(contract.parent)) == [contract.name]
    assert seen == {False, True}


def _child() -> int:
    child = os.fork()
    if child == 0:
        try:
            with redirect_stdout(StringIO()):
                guarded(cli, ARGUMENTS, "apr-falsify")
        finally:
            os._exit(0)
    return child


def _lifetime(contract: Path, before: bytes) -> float:
    contract.write_bytes(before)
    start = time.perf_counter()
    os.waitpid(_child(), 0)
    return time.perf_counter() - start
