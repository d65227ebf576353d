"""A stage that was recorded for the last of several tokens alone is no input of what takes them all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from apr_falsify.compare.bisection import Kind, Verdict
from apr_falsify.compare.localise import bisect
from apr_falsify.model.stages import STAGES, Layout
from apr_falsify.traces.trace import StageArray, Trace
from tests.unit.compare.wrong_stages import Run, small_run

OF_TOKENS = tuple(name for name, row in STAGES.items() if row.axes[0] == "tokens")


@pytest.fixture(scope="module")
def run() -> Run:
    return small_run()


def last_alone(trace: Trace, names: Iterable[str]) -> Trace:
    """Return the trace with the last token's row alone of the stages ``names``, in every layer."""
    stages = dict(trace.stages)
    for key, array in trace.stages.items():
        if key[1] in names:
            layout = (*array.layout, Layout.LAST_TOKEN)
            stages[key] = StageArray(data=array.data[-1:], layout=layout)
    return replace(trace, stages=stages)


@pytest.mark.parametrize("name", OF_TOKENS)
def test_one_stage_of_the_last_token_alone_accuses_nobody(name: str, run: Run) -> None:
    assert run.model is not None
    subject = last_alone(run.trace, [name])
    result = bisect(run.trace, subject, weights=run.model.weights)
    assert result.sources == ()
    assert all(row.verdict is not Verdict.INTRODUCES for row in result.rows)


def test_a_run_of_which_only_the_last_token_was_kept_accuses_nobody(run: Run) -> None:
    assert run.model is not None
    kept = {key: array for key, array in run.trace.stages.items() if not key[1].startswith("attn_s")}
    subject = last_alone(replace(run.trace, stages=kept), OF_TOKENS)
    result = bisect(run.trace, subject, weights=run.model.weights)
    assert (result.kind, result.sources) == (Kind.UNMEASURED, ())
