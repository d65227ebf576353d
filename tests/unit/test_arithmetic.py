"""Rounding to number formats, bit for bit as torch rounds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apr_falsify.errors import UsageError
from apr_falsify.numerics.arithmetic import FORMATS, format_named, round_bf16, round_f16, round_f32

TORCH = {"bf16": torch.bfloat16, "f16": torch.float16}
ROUND = {"bf16": round_bf16, "f16": round_f16}


def torch_rounded(values: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float32]:
    return torch.from_numpy(values).to(TORCH[name]).to(torch.float32).numpy()


def assert_same_bits(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> None:
    nan = np.isnan(theirs)
    np.testing.assert_array_equal(np.isnan(ours), nan)
    np.testing.assert_array_equal(ours[~nan].view(np.uint32), theirs[~nan].view(np.uint32))


def every_format_value_and_what_lies_around_it(name: str) -> npt.NDArray[np.float32]:
    """All 2**16 values of the format, their neighbours in f32, the ties between them and the ties' own."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    if name == "f16":
        exact = bits.view(np.float16).astype(np.float32)
    else:
        exact = (bits.astype(np.uint32) << 16).view(np.float32)
    finite = np.sort(exact[np.isfinite(exact)])
    ties = ((finite[:-1].astype(np.float64) + finite[1:]) / 2).astype(np.float32)
    with np.errstate(all="ignore"):
        around = [
            np.nextafter(base, np.float32(towards)) for base in (exact, ties) for towards in (np.inf, -np.inf)
        ]
    return np.concatenate([exact, ties, *around])


@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_every_value_tie_and_neighbour_is_rounded_as_torch_does(name: str) -> None:
    values = every_format_value_and_what_lies_around_it(name)
    assert len(values) > 300_000
    assert_same_bits(ROUND[name](values), torch_rounded(values, name))


@pytest.mark.parametrize("name", ["bf16", "f16"])
@given(st.lists(st.floats(width=32), min_size=1))
def test_any_f32_is_rounded_as_torch_does(name: str, numbers: list[float]) -> None:
    values = np.array(numbers, dtype=np.float32)
    assert_same_bits(ROUND[name](values), torch_rounded(values, name))


@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_random_bits_are_rounded_as_torch_does(name: str) -> None:
    bits = np.random.default_rng(1).integers(0, 1 << 32, 1 << 18, dtype=np.uint32)
    assert_same_bits(ROUND[name](bits.view(np.float32)), torch_rounded(bits.view(np.float32), name))


@pytest.mark.parametrize("name", list(FORMATS))
@given(st.lists(st.floats(width=32), min_size=1))
def test_rounding_twice_changes_nothing(name: str, numbers: list[float]) -> None:
    number_format = FORMATS[name]
    once = number_format.round(np.array(numbers, dtype=number_format.compute))
    np.testing.assert_array_equal(number_format.round(once), once)
    assert once.dtype == number_format.compute


@pytest.mark.parametrize("name", list(FORMATS))
def test_the_unit_roundoff_is_half_the_distance_after_one(name: str) -> None:
    number_format = FORMATS[name]
    u = number_format.unit_roundoff
    values = np.array([1.0, 1 + u, 1 + 2 * u], dtype=np.float64)
    rounded = number_format.round(values)
    assert rounded[2] == 1 + 2 * u
    if name != "f64":
        assert rounded[1] == 1.0  # a tie goes to the even neighbour


@pytest.mark.parametrize(("name", "largest"), [("f16", 65504.0), ("bf16", 3.3895313892515355e38)])
def test_beyond_the_largest_value_is_infinite(name: str, largest: float) -> None:
    values = np.array([largest, -largest, largest * 1.01, 1e300], dtype=np.float64)
    assert list(ROUND[name](values)) == [np.float32(largest), np.float32(-largest), np.inf, np.inf]


def test_f64_is_rounded_to_f32_and_f32_is_not_copied() -> None:
    values = np.array([1 + 2.0**-30, 1e300])
    assert list(FORMATS["f32"].round(values)) == [1.0, np.inf]
    exact = np.ones(3, dtype=np.float32)
    assert round_f32(exact) is exact


def test_a_single_number_keeps_its_shape() -> None:
    for number_format in FORMATS.values():
        assert number_format.round(np.array(1.5, dtype=number_format.compute)).shape == ()


def test_an_unknown_format_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError) as refusal:
        format_named("fb16")
    assert "f32" in refusal.value.expected
    assert "bf16" in refusal.value.remedy or "f16" in refusal.value.remedy


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("f64", torch.float64), ("f32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)],
)
def test_the_unit_roundoff_is_half_the_distance_from_one_to_the_next_number(
    name: str, dtype: torch.dtype
) -> None:
    assert FORMATS[name].unit_roundoff == torch.finfo(dtype).eps / 2


def test_an_array_in_the_order_of_columns_is_rounded_like_any_other() -> None:
    values = np.random.default_rng(2).normal(size=(5, 7)).astype(np.float32)
    np.testing.assert_array_equal(round_bf16(np.asfortranarray(values)), round_bf16(values))
    np.testing.assert_array_equal(round_bf16(values.T), round_bf16(values).T)
