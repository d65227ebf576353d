"""What enters a short convolution of a padded row: nothing, or the bias of the projection in front of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from apr_falsify.compare.bisection import Kind
from apr_falsify.compare.localise import bisect
from apr_falsify.formats.weights import Model
from apr_falsify.model.passes import Passes
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.oracle.capture import load
from apr_falsify.subjects.embedded import capture
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import Trace
from tests.unit.oracle.conftest import OpenCheckpoint

PADDING = 3
BIASED = {
    "granitemoehybrid-dense-biased-tied-rotated-bounded": Key(0, "conv_out"),
    "nemotron_h-biased-bounded": Key(1, "conv_out"),
    "lfm2-biased-untied": Key(0, "conv_out"),
}


def request_of(model: Model) -> Request:
    tokens = tuple((5 * at + 7) % (model.geometry.vocab - 3) + 3 for at in range(12))
    return Request(
        tokens=tokens,
        layers=range(model.geometry.layers),
        stages=tuple(STAGES),
        in_passes=Passes(sizes=(12,), padding=PADDING),
    )


def without(trace: Trace, *stages: str) -> Trace:
    return replace(trace, stages={key: data for key, data in trace.stages.items() if key.stage not in stages})


def changed(trace: Trace, key: Key, data: np.ndarray) -> Trace:
    return replace(trace, stages={**trace.stages, key: replace(trace.stages[key], data=data)})


@pytest.mark.parametrize("name", BIASED)
def test_padding_that_enters_as_zeros_or_as_a_bias_is_right(name: str, checkpoint: OpenCheckpoint) -> None:
    model, key = checkpoint(name), BIASED[name]
    request = request_of(model)
    oracle, own = load(model).capture(request, MemorySink()), capture(model, request, MemorySink())
    first = slice(PADDING, PADDING + 1)  # the token that padding reaches: the two forms are far apart there
    assert not np.allclose(oracle.stages[key].data[first], own.stages[key].data[first], rtol=1e-3)
    for subject in (oracle, own, without(oracle, "attn_norm", "scan_xbc", "conv_proj", "conv_in")):
        found = bisect(oracle, subject, weights=model.weights)
        assert (found.kind, found.sources, found.breakdowns) == (Kind.CONSISTENT, (), ())

    data = oracle.stages[key].data.copy()
    data[PADDING] *= np.float32(1.05)
    found = bisect(oracle, changed(oracle, key, data), weights=model.weights)
    assert (found.sources[0].layer, found.sources[0].stages) == (key.layer, ("conv_out",))


def test_padding_that_enters_as_it_is_is_a_fault_of_the_convolution(checkpoint: OpenCheckpoint) -> None:
    model, key = checkpoint("lfm2-biased-untied"), Key(0, "conv_out")
    request = request_of(model)
    oracle, own = load(model).capture(request, MemorySink()), capture(model, request, MemorySink())
    x = torch.from_numpy(own.stages[Key(0, "conv_in")].data.copy())
    kernel, bias = (
        torch.from_numpy(np.array(model.weights.vector(role, 0), dtype=np.float32))
        for role in ("conv", "conv_bias")
    )
    kernel = kernel.reshape(x.shape[1], 1, -1)
    made = torch.nn.functional.conv1d(
        x.T[None], kernel, bias, padding=kernel.shape[-1] - 1, groups=len(kernel)
    )
    found = bisect(oracle, changed(own, key, made[0, :, : len(x)].T.numpy()), weights=model.weights)
    assert (0, ("conv_out",)) in [(source.layer, source.stages) for source in found.sources]
