"""8-bit numbers with a scale for a group of values, against torch and by hand."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import pytest
import torch

from apr_falsify.errors import UsageError
from apr_falsify.numerics.grains import ACTIVATIONS, FLOATS, SPANS, Grain, caches
from apr_falsify.numerics.operand_rules import Operation, stated_rules

FLOAT8 = {"fp8 e4m3": torch.float8_e4m3fn, "fp8 e5m2": torch.float8_e5m2}


def values_of(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    values = np.random.default_rng(seed)
    return (values.standard_normal(shape) * 10.0 ** values.integers(-4, 2, shape)).astype(np.float32)


@pytest.mark.parametrize("name", FLOATS)
def test_8_bit_floats_are_rounded_as_torch_rounds_them(name: str) -> None:
    values = np.concatenate([values_of(4096), np.arange(-440, 440, 0.5, dtype=np.float32), np.zeros(1)])
    expected = torch.tensor(values, dtype=torch.float32).to(FLOAT8[name]).float().numpy()
    np.testing.assert_array_equal(FLOATS[name].round(values.astype(np.float32)), expected)


@pytest.mark.parametrize(("name", "largest"), [("fp8 e4m3", 448.0), ("fp8 e5m2", 57344.0)])
def test_what_is_beyond_an_8_bit_float_is_its_largest_number(name: str, largest: float) -> None:
    assert FLOATS[name].round(np.float32([1e6, -1e6])).tolist() == [largest, -largest]


@pytest.mark.parametrize("span", SPANS)
def test_integers_share_the_scale_of_their_group(span: str) -> None:
    values = values_of(5, 3, 4)
    x = torch.tensor(values)
    scale = x.abs().amax(SPANS[span], keepdim=True) / 127
    expected = torch.round(x / scale).double() * scale
    np.testing.assert_array_equal(Grain(axes=SPANS[span])(values), expected.numpy())


def test_a_zero_point_lets_the_range_of_the_values_be_used() -> None:
    values = np.float32([[-1.0, 0.0, 0.3, 4.1]])  # a step of 5.1 / 255 = 0.02
    found = Grain(axes=(0, 1), zero_point=255)(values)
    np.testing.assert_allclose(found, values, atol=1e-6)
    above = Grain(axes=(0, 1), zero_point=255)(np.float32([[1.0, 2.55]]))  # the range holds 0
    np.testing.assert_allclose(above, [[1.0, 2.55]], atol=1e-6)


def test_dynamic_activations_are_those_of_torch() -> None:
    layer = torch.nn.Linear(24, 7, bias=False)
    x = torch.tensor(values_of(6, 24).clip(-3, 9))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its own module deprecated, in several ways
        quantised = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(layer), dtype=torch.qint8)
    weight = quantised[0].weight().dequantize().double().numpy()
    held = {name: kept(x.numpy()) @ weight.T for name, kept in ACTIVATIONS.items()}
    made = quantised(x).numpy()
    left = {name: float(np.linalg.norm(each - made) / np.linalg.norm(made)) for name, each in held.items()}
    # The engines of other processors may use all 8 bits.
    names = [f"{bits} activations, a scale and a zero point per tensor" for bits in ("7-bit", "int8")]
    assert min(left[name] for name in names) < 1e-6
    assert sorted(left.values())[1] > 1e-4


def test_groups_of_zeros_stay_zero() -> None:
    zeros = np.zeros((2, 2, 4), np.float32)
    for kept in (*caches().values(), *ACTIVATIONS.values()):
        assert not kept(zeros).any()
        assert np.isfinite(kept.steps(zeros).fraction).all()


def test_steps_tell_what_is_kept_and_the_nearest_edge() -> None:
    values = np.float32([[127.0, 2.4, -2.6, 0.0]])
    steps = Grain(axes=(-1,)).steps(values)
    assert steps.quants.tolist() == [[127.0, 2.0, -3.0, 0.0]]
    np.testing.assert_allclose(steps.fraction[0, 1:3], [0.1, 0.1], atol=1e-6)
    assert steps.flip[0, 1:3].tolist() == [1.0, 1.0]
    floats = Grain(axes=None, float8=FLOATS["fp8 e4m3"]).steps(np.float32([[17.0, 18.9]]))  # 16, 18, 20
    assert (floats.quants * floats.scale).tolist() == [[16.0, 18.0]]
    np.testing.assert_allclose(floats.fraction * floats.scale, [[0.0, 0.1]], atol=1e-5)


def test_a_cache_is_stated_for_both_or_for_one() -> None:
    both = stated_rules("f32; int8 cache, a scale per head")
    assert [rule.name for rule in both.values()] == [
        "int8 k cache, a scale per head",
        "int8 v cache, a scale per head",
    ]
    assert set(stated_rules("fp8 e5m2 k cache")) == {Operation.SCORES}
    assert {rule.name for rule in stated_rules("bf16 cache").values()} == {"bf16 k", "bf16 v"}
    assert {rule.name for rule in stated_rules("q8_0 cache").values()} == {"q8_0 k cache", "q8_0 v cache"}
    with pytest.raises(UsageError, match="int8 cache, a scale per planet"):
        stated_rules("int8 cache, a scale per planet")
