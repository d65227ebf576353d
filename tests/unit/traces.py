"""Small traces made by the embedded runtime, for tests that break them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apr_falsify.errors import AprFalsifyError, TraceError
from apr_falsify.model.stages import STAGES
from apr_falsify.subjects.embedded import capture
from apr_falsify.traces.capture import Request, TraceWriter
from apr_falsify.traces.trace import Trace, read_trace
from tests.unit.helpers import small_model

TOKENS = (3, 1, 4, 1, 5)


def write_trace(directory: Path, *, dtype: str = "f32", stages: tuple[str, ...] = tuple(STAGES)) -> Trace:
    """Write a whole small trace to ``directory``."""
    request = Request(tokens=TOKENS, layers=range(2), stages=stages, prompt="a prompt")
    with TraceWriter(directory) as writer:
        return capture(small_model(), request, writer, dtype=dtype)


def edit_json(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Let ``change`` alter trace.json in place."""
    path = directory / "trace.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def everything_under(directory: Path) -> set[str]:
    """Return every path below ``directory``, hidden ones too."""
    return {
        os.path.relpath(os.path.join(folder, name), directory)
        for folder, folders, files in os.walk(directory)
        for name in [*folders, *files]
    }


def refusal_of(directory: Path, what: str, kind: type[AprFalsifyError] = TraceError) -> AprFalsifyError:
    """Return the error with which the trace at ``directory`` is refused; it says ``what`` and where."""
    with pytest.raises(kind, match=what) as refusal:
        read_trace(directory)
    assert str(directory) in str(refusal.value.where)
    return refusal.value
