"""One captured stage beside its replay, as the variations take it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from apr_falsify.compare.judge import store_of
from apr_falsify.compare.replay import Replayer
from apr_falsify.compare.variations.case import Case, Guess, open_case
from apr_falsify.model.stages import Key
from apr_falsify.numerics.operand_rules import PLAIN
from apr_falsify.operators.roundoff import LIMIT
from apr_falsify.traces.trace import StageArray, Trace
from tests.unit.compare.wrong_stages import F64, Run


def case_of(run: Run, stage: str, subject: F64 | None = None) -> Case:
    """Return the case of a stage of the run's layer; ``subject`` stands for what was captured."""
    model = run.model
    key = Key({"final_norm": None, "lm_head": None}.get(stage, run.layer), stage)
    assert model is not None
    replayer = Replayer(run.trace, model.weights, store_of(run.trace))
    values = replayer.captured(key) if subject is None else subject
    assert values is not None
    found = open_case(replayer, key, PLAIN, values, LIMIT)
    assert found is not None
    return found


def replayed(run: Run, stage: str) -> F64:
    """Return what a stage should be, in f64."""
    return case_of(run, stage).expected


def put(run: Run, said: dict[str, Any] | None = None, **stages: StageArray) -> Run:
    """Return the run with stages of its layer replaced, and ``said`` of it."""
    new: dict[Key, StageArray] = {(run.layer, name): array for name, array in stages.items()}
    provenance = replace(run.trace.provenance, **(said or {}))
    trace: Trace = replace(run.trace, provenance=provenance, stages={**run.trace.stages, **new})
    return replace(run, trace=trace)


def saying(guesses: Iterable[Guess], says: str) -> Guess:
    """Return the one guess that says this."""
    (found,) = [guess for guess in guesses if guess.says == says]
    return found


def close(found: F64, expected: F64) -> None:
    """Check f64 values, each computed in another order."""
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)
