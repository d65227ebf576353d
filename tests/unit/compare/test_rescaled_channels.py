"""Factors that a quantiser moves from one tensor to the next are found in both, by least squares."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from apr_falsify.compare.rescaled_channels import factors
from apr_falsify.formats.tensors import PlainTensor
from apr_falsify.formats.weights import Weights
from tests.unit.helpers import small_model

F32 = npt.NDArray[np.float32]
ROWS, HIDDEN = 300, 16  # more rows than are looked at together
LAYER = "model.layers.0."


@pytest.fixture(scope="module")
def oracle() -> Weights:
    return small_model(intermediate_size=ROWS).weights


def values(weights: Weights, name: str) -> F32:
    tensor = weights.tensors[LAYER + name]
    return np.array(tensor.rows(0, tensor.shape[0]))


def with_values(weights: Weights, **tensors: F32) -> Weights:
    made = {
        LAYER + name.replace("__", "."): PlainTensor(name=name, type="f32", data=np.asarray(data, np.float32))
        for name, data in tensors.items()
    }
    return replace(weights, tensors={**weights.tensors, **made})


def some(count: int) -> F32:
    return np.random.default_rng(0).uniform(0.3, 3, count).astype(np.float32)


def test_the_rows_of_up_are_divided_by_what_the_columns_of_down_are_multiplied_with(oracle: Weights) -> None:
    by = some(ROWS)
    up, down = values(oracle, "mlp.up_proj.weight"), values(oracle, "mlp.down_proj.weight")
    subject = with_values(oracle, mlp__up_proj__weight=up / by[:, None], mlp__down_proj__weight=down * by)
    rows, columns = factors(oracle, subject, "up", 0)
    np.testing.assert_allclose(rows, 1 / by, rtol=1e-5)
    np.testing.assert_allclose(columns, 1.0)
    rows, columns = factors(oracle, subject, "down", 0)
    np.testing.assert_allclose(columns, by, rtol=1e-5)
    np.testing.assert_allclose(rows, 1.0)


def test_rows_that_nothing_makes_up_for_are_rescaled_by_nobody(oracle: Weights) -> None:
    up = values(oracle, "mlp.up_proj.weight") / 2
    rows, _ = factors(oracle, with_values(oracle, mlp__up_proj__weight=up), "up", 0)
    assert rows.tolist() == [1.0] * ROWS


def test_the_columns_after_a_norm_are_multiplied_with_what_the_norm_is_divided_by(oracle: Weights) -> None:
    by, norm = some(HIDDEN), values(oracle, "post_attention_layernorm.weight")
    changed = {
        f"mlp__{part}_proj__weight": values(oracle, f"mlp.{part}_proj.weight") * by for part in ("gate", "up")
    }
    subject = with_values(oracle, **changed, post_attention_layernorm__weight=norm / by)
    for role in ("gate", "up"):
        rows, columns = factors(oracle, subject, role, 0)
        np.testing.assert_allclose(columns, by, rtol=1e-5)
        np.testing.assert_allclose(rows, 1.0)
    alone = with_values(oracle, **changed)  # the norm says nothing of it
    assert factors(oracle, alone, "gate", 0)[1].tolist() == [1.0] * HIDDEN


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.0), (1.0, 0.0)])
def test_a_norm_of_zeros_tells_no_factors(before: float, after: float, oracle: Weights) -> None:
    name = "post_attention_layernorm__weight"
    ours, theirs = (
        with_values(oracle, **{name: np.full(HIDDEN, value, np.float32)}) for value in (before, after)
    )
    assert factors(ours, theirs, "gate", 0)[1].tolist() == [1.0] * HIDDEN
