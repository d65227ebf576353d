"""Every family with transformers' own cache: a right run in passes is accused of nothing, whoever ran it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from apr_falsify.commands.transformers_subject import TransformersSubject
from apr_falsify.compare.bisection import Bisection, Kind
from apr_falsify.compare.localise import bisect
from apr_falsify.errors import UsageError
from apr_falsify.formats.weights import Model
from apr_falsify.model.passes import Passes
from apr_falsify.model.stages import STAGES
from apr_falsify.oracle.capture import load
from apr_falsify.subjects.embedded import capture
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import Trace
from tests.checkpoints import FAMILIES, RECIPES
from tests.sampling import in_turn, one_in
from tests.unit.oracle.conftest import OpenCheckpoint

S = 11
PASSES = {
    "decode": Passes(sizes=(8, 1, 1, 1)),
    "chunks": Passes(sizes=(4, 4, 3)),
    "padded": Passes(sizes=(8, 2, 1), padding=3),
}


def request_of(model: Model, passes: Passes) -> Request:
    """Ask for every stage of all layers, on tokens of which no two neighbours are the same."""
    tokens = tuple((5 * at + 7) % (model.geometry.vocab - 3) + 3 for at in range(S))
    return Request(tokens=tokens, layers=range(model.geometry.layers), stages=tuple(STAGES), in_passes=passes)


def hf_runs(model: Model, passes: Passes) -> tuple[Trace, Trace]:
    """Return transformers at once, and with its own cache."""
    oracle = load(model)
    whole = Passes(sizes=(S,), padding=passes.padding)
    at_once, cached = (oracle.capture(request_of(model, each), MemorySink()) for each in (whole, passes))
    return at_once, cached


def told(found: Bisection) -> list[str]:
    return [
        f"{finding.type} {finding.layer} {finding.stages}: {finding.explanation}"
        for finding in found.findings
    ]


WITHIN_BOUNDS = [name for name in RECIPES if not name.endswith("bounded")]
"""All but those with bounds of steps, without which transformers computes single tokens: a right run is
another one there. ``test_layers_without_attention.py`` holds what is said then."""


@pytest.mark.parametrize(("name", "way"), one_in(23, in_turn(WITHIN_BOUNDS, tuple(PASSES))))
def test_passes_of_transformers_and_of_the_embedded_runtime_are_never_accused(
    name: str, way: str, checkpoint: OpenCheckpoint
) -> None:
    model = checkpoint(name)
    at_once, cached = hf_runs(model, PASSES[way])
    found = bisect(at_once, cached, weights=model.weights)
    assert (found.kind, told(found)) == (Kind.CONSISTENT, [])
    embedded = capture(model, request_of(model, PASSES[way]), MemorySink())
    for oracle in (at_once, cached):
        found = bisect(oracle, embedded, weights=model.weights)
        assert (found.kind, told(found), found.breakdowns) == (Kind.CONSISTENT, [], ())


@pytest.mark.parametrize("name", ["granitemoehybrid", "nemotron_h", "qwen3_next", "lfm2"])
def test_single_tokens_of_a_batch_without_attention_are_those_of_its_first_row(
    name: str, checkpoint: OpenCheckpoint
) -> None:
    model = checkpoint(name)
    if any(model.geometry.mixtures):  # a batch of which is refused by name
        model = checkpoint("granitemoehybrid-unbiased-convolution")
    request = replace(request_of(model, Passes(sizes=(4, 1))), tokens=(7, 12, 17, 22, 27))
    alone, batched = (
        TransformersSubject(model=model, batch=rows).capture(request, MemorySink()) for rows in (1, 2)
    )
    assert alone.stages.keys() == batched.stages.keys()
    for key, array in alone.stages.items():
        np.testing.assert_allclose(
            batched.stages[key].data, array.data, rtol=1e-3, atol=1e-4, err_msg=f"{key}"
        )
    found = bisect(alone, batched, weights=model.weights)
    assert (found.kind, told(found)) == (Kind.CONSISTENT, [])


REFUSED = ("gemma2",)
"""Families of which transformers itself refuses another attention than the eager one."""


@pytest.mark.parametrize("name", dict.fromkeys((*one_in(29, FAMILIES), *REFUSED)))
def test_a_fused_attention_is_the_same_or_is_refused_by_name(name: str, checkpoint: OpenCheckpoint) -> None:
    model = checkpoint(name)
    rows = 1 if any(model.geometry.mixtures) else 2
    fused = TransformersSubject(model=model, attention="sdpa", batch=rows)
    request = request_of(model, PASSES["decode"])
    if name in REFUSED:
        with pytest.raises(UsageError, match=f"does not run {model.geometry.family} with this attention"):
            fused.capture(request, MemorySink())
        return
    eager = load(model).capture(request, MemorySink())
    found = bisect(eager, fused.capture(request, MemorySink()), weights=model.weights)
    assert (found.kind, told(found)) == (Kind.CONSISTENT, [])


def test_a_mixture_beside_other_rows_is_refused(checkpoint: OpenCheckpoint) -> None:
    """Its router sees the rows of a batch as one sequence."""
    model = checkpoint("mixtral")
    with pytest.raises(UsageError, match="all rows of a batch as one sequence"):
        TransformersSubject(model=model, batch=2).capture(request_of(model, PASSES["decode"]), MemorySink())
