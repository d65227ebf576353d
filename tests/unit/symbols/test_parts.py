"""Work in parts: everything is done once, whichever process does it, and one that dies loses nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from apr_falsify.symbols import parts


@pytest.fixture(autouse=True)
def _three_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("processes cannot be forked here")
    monkeypatch.setattr(parts, "_cores", lambda: 3)


def test_every_item_is_worked_on_once() -> None:
    done = list(parts.in_parts(list, list(range(10)), at_least=2))
    assert len(done) == 3
    assert sorted(item for part in done for item in part) == list(range(10))


def test_little_work_stays_in_one_process() -> None:
    assert list(parts.in_parts(lambda some: os.getpid(), [1, 2, 3], at_least=2)) == [os.getpid()]


def test_the_part_of_a_process_that_dies_is_done_here() -> None:
    here = os.getpid()

    def work(some: Sequence[int]) -> list[int]:
        if os.getpid() != here:
            os._exit(9)
        return list(some)

    done = list(parts.in_parts(work, list(range(6)), at_least=2))
    assert sorted(item for part in done for item in part) == list(range(6))


def test_an_error_in_a_part_is_met_here() -> None:
    def work(some: Sequence[int]) -> int:
        return 1 // some[0]

    with pytest.raises(ZeroDivisionError):
        list(parts.in_parts(work, [1, 0, 1, 1, 1, 1], at_least=2))
