"""Trees that several acceptance tests look names up in."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.support import REAL_VARIABLE, real_folder


@pytest.fixture(scope="session")
def aprender(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Rust trees of aprender 0.72.3, reduced to names."""
    folder = real_folder()
    archive = folder / "aprender-names-0.72.3.tar.xz" if folder else None
    if archive is None or not archive.is_file():
        pytest.skip(f"{REAL_VARIABLE} names no folder with the names of aprender's sources")
    root = tmp_path_factory.mktemp("aprender")
    with tarfile.open(archive) as tar:
        tar.extractall(root, filter="data")
    return root
