"""Runs that several files judge, made once."""

from __future__ import annotations

import pytest

from tests.unit.compare.ports import Runs


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("checkpoints"))
