"""Runs that several tests look at; each is made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.programs import APR_TOKENS, RECORDINGS, TINY, Outcome, run


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
