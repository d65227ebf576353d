"""Tensors of 16-bit files: a cast costs a step where a value does not fit, and nothing where it does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from apr_falsify.compare.weights import difference
from apr_falsify.formats.tensors import PlainTensor

TORCH = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
FINITE = st.floats(-60000, 60000, width=32)


def tensor(values: np.ndarray, kind: str) -> PlainTensor:
    """Return what a file of format ``kind`` holds of ``values``, as torch casts them."""
    stored = torch.from_numpy(np.array(values, np.float32)).to(TORCH[kind])
    raw = stored.view(torch.uint16).numpy() if kind == "bf16" else stored.numpy()
    return PlainTensor(name="w", data=raw, type=kind)


def wrong(oracle: PlainTensor, subject: PlainTensor) -> int:
    return difference(oracle, subject).blocks


@settings(deadline=None)
@given(arrays(np.float32, (3, 40), elements=FINITE), st.sampled_from(["f32", "f16", "bf16"]))
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_a_cast_of_torch_is_no_difference(kind: str, values: np.ndarray, original: str) -> None:
    ours = tensor(values, original)
    assert wrong(ours, tensor(ours.rows(0, 3), kind)) == 0


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 1000.0])
def test_a_value_one_step_off_is_found_in_a_file_that_was_passed_through(kind: str, size: float) -> None:
    """However large its neighbours are: nothing was rounded, so nothing may differ."""
    values = np.full((2, 64), 50000.0, np.float32)
    values[1, 5] = size
    ours = tensor(values, kind)
    raw = ours.data.copy()
    raw.view(np.uint16)[1, 5] += 1
    assert wrong(ours, PlainTensor(name="w", data=raw, type=kind)) == 1


@pytest.mark.parametrize(("kind", "factor"), [("f16", 1.0008), ("bf16", 1.004)])
def test_a_scale_of_a_step_or_less_is_found(kind: str, factor: float) -> None:
    values = np.random.default_rng(0).normal(1, 0.1, (1, 96)).astype(np.float32)
    ours = tensor(values, kind)
    assert wrong(ours, tensor(ours.rows(0, 1) * np.float32(factor), kind)) == 3


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_nan_and_infinity_are_no_agreement_with_a_number(kind: str) -> None:
    values = np.ones((1, 32), np.float32)
    for odd in (np.nan, np.inf):
        other = values.copy()
        other[0, 3] = odd
        assert wrong(tensor(values, kind), tensor(other, kind)) == 1
