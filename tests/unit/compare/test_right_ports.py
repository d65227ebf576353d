"""Ports that are right in a way of their own are not accused; the same ports with a fault are, at its place.

Every run is transformers' own of a small random checkpoint, changed as such a port holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from apr_falsify.capture import MemorySink
from apr_falsify.compare.bisection import Bisection, Kind
from apr_falsify.compare.localise import bisect
from apr_falsify.oracle.capture import capture
from apr_falsify.stages import Layout
from apr_falsify.trace import Key, StageArray, Trace
from apr_falsify.weights import Model, open_model
from tests.checkpoints import make_checkpoint
from tests.unit.oracle.requests import request_for

Array = npt.NDArray[Any]
TOKENS = 14


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[Model, Trace]]:
    """Recipe -> its checkpoint in f32, and transformers' run of it."""

    class Made(dict[str, tuple[Model, Trace]]):
        def __missing__(self, name: str) -> tuple[Model, Trace]:
            folder: Path = tmp_path_factory.mktemp(name)
            model = open_model(make_checkpoint(folder, name))
            self[name] = model, capture(model, request_for(model, tokens=TOKENS), MemorySink())
            return self[name]

    return Made()


def port(run: Trace, stages: Mapping[Key, StageArray] | None = None, **said: Any) -> Trace:
    """Return the run as that of a port of which nothing is known but what is ``said``."""
    known = replace(run.provenance, **{"runtime": "port", "arithmetic": "unknown", **said})
    return replace(run, provenance=known, stages={**run.stages, **(stages or {})})


def changed(
    run: Trace, name: str, change: Callable[[Array, int], Array], *layout: Layout
) -> dict[Key, StageArray]:
    """Return stage ``name`` of every layer, changed; ``change`` takes the values and the layer."""
    return {
        key: StageArray(
            data=np.asarray(change(np.array(array.data), key[0] or 0)), layout=(*array.layout, *layout)
        )
        for key, array in run.stages.items()
        if key[1] == name
    }


def judged(model: Model, run: Trace, subject: Trace) -> Bisection:
    return bisect(run, subject, weights=model.weights)


def accused(found: Bisection) -> set[Key]:
    return {(finding.layer, name) for finding in found.sources for name in finding.stages}


# --- scores stored before the scale of their own layer ----------------------------------------------


@pytest.mark.parametrize("name", ["gpt2-by-layer-upcast", "gemma3"])
def test_scores_stored_before_the_scale_of_their_own_layer_are_right(
    name: str, runs: Mapping[str, tuple[Model, Trace]]
) -> None:
    model, run = runs[name]
    scales = [model.geometry.attn_scale_at(layer) for layer in range(model.geometry.layers)]
    bare = changed(run, "attn_scores", lambda x, n: x / np.float32(scales[n]), Layout.UNSCALED)
    found = judged(model, run, port(run, bare))
    assert (found.kind, int(found.exit_code), found.findings) == (Kind.CONSISTENT, 0, ())
    key = (1, "attn_scores")
    wrong = {**bare, key: replace(bare[key], data=bare[key].data * np.float32(1.02))}
    assert key in accused(judged(model, run, port(run, wrong)))
