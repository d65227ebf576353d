"""A small trace on disk, for tests that break it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.unit.traces import write_trace


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trace") / "run"
    write_trace(directory)
    return directory


@pytest.fixture
def run(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "run"))
