"""What the falsifiers measure: the real ``apr`` where it is found, and the embedded default with faults."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from apr_falsify.commands.specs import DEFAULT_MODEL
from tests.falsifiers.real_apr import Apr
from tests.falsifiers.seeded import Bench


@pytest.fixture(scope="session")
def apr(tmp_path_factory: pytest.TempPathFactory) -> Apr:
    """The real ``apr``, and the tiny checkpoint as it imports it."""
    program = shutil.which("apr")
    if program is None:
        pytest.skip("no apr binary on PATH")
    folder = tmp_path_factory.mktemp("apr")
    return Apr.importing(program, DEFAULT_MODEL, folder)


@pytest.fixture(scope="session")
def captured(apr: Apr) -> Path:
    """Every stage of the three layers of the tiny checkpoint, as the real ``apr`` writes them."""
    return apr.trace("captured", "all", "0..3")


@pytest.fixture(scope="session")
def bench() -> Bench:
    """The tiny checkpoint of the package and its oracle, for the embedded runtime with a fault in it."""
    return Bench.of(DEFAULT_MODEL, layers=1)


@pytest.fixture(scope="session")
def four_layers(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A checkpoint of four layers, so that it has the layer 3 that the prediction speaks of."""
    from tests.checkpoints import make_checkpoint

    return Bench.of(make_checkpoint(tmp_path_factory.mktemp("four"), "qwen2", layers=4), layers=4)
