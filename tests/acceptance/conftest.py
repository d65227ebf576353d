"""Runs and trees that several tests look at; each is made once a session."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.acceptance.programs import APR_TOKENS, RECORDINGS, TINY, Outcome, run
from tests.support import REAL_VARIABLE, real_folder


@pytest.fixture(scope="session")
def embedded_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both sides of the embedded default and their bisection, under ``--out``."""
    folder = tmp_path_factory.mktemp("embedded") / "run"
    assert run("bisect", "--out", folder).code == 0
    return folder


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """The tiny checkpoint's recordings against the oracle, as JSON, by the recording's name."""
    options = ("--oracle", TINY, "--tokens", APR_TOKENS, "--format", "json")
    names = ("base", "k-bias-zero", "norm-scaled", "base-q4k")
    return {name: run("bisect", "--subject", f"recorded:{RECORDINGS / name}", *options) for name in names}


@pytest.fixture(scope="session")
def aprender(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Rust trees of aprender 0.72.3, reduced to names."""
    folder = real_folder()
    archive = folder / "aprender-names-0.72.3.tar.xz" if folder else None
    if archive is None or not archive.is_file():
        pytest.skip(f"{REAL_VARIABLE} names no folder")
    root = tmp_path_factory.mktemp("aprender")
    with tarfile.open(archive) as tar:
        tar.extractall(root, filter="data")
    return root
