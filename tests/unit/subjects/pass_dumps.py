"""A run of transformers with its own cache, written as a port might write it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.bisection import Bisection
from apr_falsify.compare.localise import bisect
from apr_falsify.formats.weights import Model
from apr_falsify.model.passes import Passes
from apr_falsify.model.stages import SQUARES, STAGES
from apr_falsify.oracle.capture import capture
from apr_falsify.subjects.recorded import open_recorded
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import Trace
from tests.unit.subjects.dumps import write

Arrays = dict[str, npt.NDArray[Any]]


def request_for(model: Model, tokens: int, passes: Passes | None = None) -> Request:
    """Ask for every stage of all layers, on random tokens of which no two neighbours are the same."""
    drawn = np.random.default_rng(tokens).permutation(model.geometry.vocab - 3)[:tokens] + 3
    ids = tuple(map(int, drawn))
    return Request(tokens=ids, layers=range(model.geometry.layers), stages=tuple(STAGES), in_passes=passes)


def hf_run(model: Model, passes: Passes) -> Trace:
    """Run transformers with its own cache.

    The products of q, k and v before their biases are left out: transformers adds these within.
    """
    run = capture(model, request_for(model, passes.tokens, passes), MemorySink())
    stages = {key: array for key, array in run.stages.items() if key.stage != "qkv_matmul"}
    return replace(run, stages=stages if model.geometry.qkv_bias else run.stages)


def name_of(layer: int | None, stage: str) -> str:
    return stage if layer is None else f"L{layer}.{stage}"


def end_to_end(trace: Trace, beyond: float = 0.0) -> Arrays:
    """Return one array a stage; ``beyond`` stands where a pass has no keys."""
    arrays = {}
    for (layer, stage), array in trace.stages.items():
        values = np.array(array.data)
        if stage in SQUARES:
            values[:, ~trace.passes.met()] = beyond
        arrays[name_of(layer, stage)] = values
    return arrays


def by_pass(trace: Trace, more_keys: int = 0) -> Arrays:
    """Return one array a pass and stage, ``p0/NAME`` and so on, with the keys that the pass has and more."""
    arrays: Arrays = {}
    ends = np.cumsum(trace.passes.sizes)
    for (layer, stage), array in trace.stages.items():
        axes = STAGES[stage].axes
        for number, (start, end) in enumerate(zip(trace.passes.starts, ends, strict=True)):
            values = array.data
            if "tokens" in axes:
                values = values.take(range(start, end), axes.index("tokens"))
            if stage in SQUARES:
                values = values[..., :end]
                values = np.pad(values, ((0, 0), (0, 0), (0, more_keys)), constant_values=np.nan)
            arrays[f"p{number}/{name_of(layer, stage)}"] = values
    return arrays


def mapping_of(trace: Trace, *, each_pass: bool = False, **said: Any) -> dict[str, Any]:
    """Return the mapping file of :func:`end_to_end`, or of :func:`by_pass`."""
    prefix = "p{pass}/" if each_pass else ""
    stages: dict[str, Any] = {
        stage: {"from": prefix + (stage if layer is None else f"L{{layer}}.{stage}")}
        for layer, stage in trace.stages
    }
    windowed = any("visible-only" in array.layout for array in trace.stages.values())
    for stage in ("attn_scores", "attn_scores_uncapped") if windowed else ():
        if stage in stages:
            stages[stage]["layout"] = ["visible-only"]
    return {
        "schema": "apr-falsify/mapping/v1",
        "runtime": "port",
        "dtype": "f32",
        "tokens": list(trace.tokens),
        "stages": stages,
        **said,
    }


def judged(
    folder: Any, model: Model, arrays: Mapping[str, Any], said: Mapping[str, Any], oracle: Trace
) -> Bisection:
    """Write a recording, read it, and compare it with ``oracle``."""
    from apr_falsify.subjects.interface import Target

    path = write(folder, dict(arrays), said)
    subject = open_recorded(Target(path=path, model=model))
    return bisect(oracle, subject.trace, weights=model.weights)
