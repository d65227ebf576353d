"""A convention is told beside a fault only where it changes no verdict, and the first of equals is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.bisection import Bisection, FindingType
from apr_falsify.compare.localise import bisect
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.operators.operator import Array, Inputs
from apr_falsify.subjects.embedded import as_defined, capture
from apr_falsify.subjects.kernel import RuntimeSite
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import StageArray, Trace
from tests.unit.helpers import small_model

FAULT: Key = Key(1, "attn_scores")
MODEL = small_model()


def run(*, faulty: bool = False) -> Trace:
    """Return a run; a faulty one's scores of a layer are a tenth too large, with all that follows."""

    def step(key: Key, inputs: Inputs, site: RuntimeSite) -> Array:
        value = as_defined(key, inputs, site)
        return value * np.float32(1.1) if faulty and key == FAULT else value

    request = Request(tokens=(3, 1, 4, 1, 5, 9), layers=range(2), stages=tuple(STAGES))
    return capture(MODEL, request, MemorySink(), step=step)


def judged(subject: Trace, name: str, change: Any) -> Bisection:
    """Judge a run of which every array of a stage is stored otherwise than is said."""
    stored = {
        key: StageArray(data=change(np.array(array.data)))
        for key, array in subject.stages.items()
        if key[1] == name
    }
    told = replace(subject.provenance, runtime="port", arithmetic="unknown")
    changed = replace(subject, provenance=told, stages={**subject.stages, **stored})
    return bisect(run(), changed, weights=MODEL.weights)


def accused(found: Bisection) -> set[Key]:
    return {(finding.layer, name) for finding in found.sources for name in finding.stages}


def told(found: Bisection, kind: FindingType) -> list[str]:
    return [each.explanation.partition(":")[0] for each in found.findings if each.type is kind]


def test_of_two_conventions_that_mend_as_much_the_first_is_told() -> None:
    """Without a window, where a query may look is where causality lets it."""
    found = judged(run(faulty=True), "attn_scores", np.tril)
    assert accused(found) == {FAULT}
    assert told(found, FindingType.RECORDING) == ["scores zero above the diagonal"]


def head_major(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return x.reshape(len(x), MODEL.geometry.heads, -1).swapaxes(0, 1).reshape(x.shape)


def test_a_layout_that_should_be_declared_is_not_told_beside_a_fault() -> None:
    """Heads before tokens in q alone: without the fault it is told, with it all of q stays accused."""
    found = judged(run(), "q_post_rope", head_major)
    assert (accused(found), told(found, FindingType.LAYOUT)) == (set(), ["q head-major"])
    found = judged(run(faulty=True), "q_post_rope", head_major)
    assert accused(found) >= {Key(0, "q_post_rope"), Key(1, "q_post_rope")}
    assert told(found, FindingType.LAYOUT) == []
