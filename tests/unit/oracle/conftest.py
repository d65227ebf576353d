"""Checkpoints, made once a session and format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apr_falsify.formats.weights import Model, open_model
from tests.checkpoints import make_checkpoint

OpenCheckpoint = Callable[..., Model]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> OpenCheckpoint:
    """Return a function that opens the checkpoint of a recipe, stored as ``dtype``."""
    made: dict[tuple[str, torch.dtype], Path] = {}

    def open_checkpoint(name: str, dtype: torch.dtype = torch.float32) -> Model:
        if (name, dtype) not in made:
            made[name, dtype] = make_checkpoint(tmp_path_factory.mktemp(name), name, dtype)
        return open_model(made[name, dtype])

    return open_checkpoint
