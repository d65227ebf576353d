"""Correct runs of the families' checkpoints, and the cause of a stage that is put wrong in one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file

from apr_falsify.compare.attempts import Attempts
from apr_falsify.compare.cause import Cause
from apr_falsify.compare.causes import explain
from apr_falsify.compare.judge import store_of
from apr_falsify.compare.replay import Replayer
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.stages import Key
from apr_falsify.numerics.operand_rules import PLAIN
from apr_falsify.operators.roundoff import LIMIT
from apr_falsify.traces.capture import Request
from apr_falsify.traces.trace import Trace
from tests.checkpoints import make_checkpoint
from tests.unit.compare.spoiled import request_of, spoiled_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A correct run, the model, and its tensors by name."""

    model: Model
    trace: Trace
    tensors: Mapping[str, torch.Tensor]

    def __getitem__(self, key: Key) -> torch.Tensor:
        return torch.from_numpy(self.trace.stages[key].data.astype(np.float64))

    def w(self, name: str) -> torch.Tensor:
        return self.tensors[name].double()


def run_of(directory: Path, recipe: str, tokens: int = 9) -> Run:
    path = make_checkpoint(directory / "model", recipe)
    model = open_model(path)
    trace = spoiled_run(model, request_of(model, tokens), {})
    return Run(model=model, trace=trace, tensors=load_file(path / "model.safetensors"))


def cause_of(run: Run, key: Key, wrong: torch.Tensor, request: Request | None = None) -> Cause | None:
    """Put ``wrong`` in the place of a stage and ask for its cause; none of the table may break down."""
    values: npt.NDArray[Any] = wrong.numpy().astype(np.float32)
    request = request or request_of(run.model, len(run.trace.tokens))
    trace = spoiled_run(run.model, request, {key: lambda _: values})
    replayer, attempts = Replayer(trace, run.model.weights, store_of(trace)), Attempts()
    subject = replayer.captured(key)
    assert subject is not None
    found = explain(replayer, key, PLAIN, subject, LIMIT, attempts=attempts)
    assert attempts.noted == []
    return found
