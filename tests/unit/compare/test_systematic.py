"""Quantised tensors wrong by less than a step in every value, and sound ones: by the gguf package."""

from __future__ import annotations

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from apr_falsify.compare.weights import difference
from apr_falsify.formats.tensors import PlainTensor
from tests.unit.compare.weight_values import VALUES

F32 = npt.NDArray[np.float32]

SHAPE = (256, 512)
KINDS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


def values(name: str = "normal") -> F32:
    found: F32 = VALUES[name](np.random.default_rng(3), SHAPE).astype(np.float32)
    return found


def through(kind: str, weight: npt.NDArray[np.floating]) -> F32:
    """Return what ``kind`` keeps of a weight."""
    kept = gguf.quants.quantize(weight.astype(np.float32), gguf.GGMLQuantizationType[kind])
    result: F32 = gguf.quants.dequantize(kept, gguf.GGMLQuantizationType[kind])
    return result


def told(kind: str, right: F32, theirs: F32, oracle: str = "f32") -> str:
    ours = PlainTensor(name="w", type=oracle, data=right)
    held = PlainTensor(name="w", type="f32", data=theirs)
    found = difference(ours, held, kind.lower())
    assert found.blocks == 0  # no block is off by more than its steps
    return found.systematic


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_quantising_costs_is_no_fault(kind: str, name: str) -> None:
    right = values(name)
    assert told(kind, right, through(kind, right)) == ""


@pytest.mark.parametrize("factor", [1.03, 0.95])
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_a_factor_smaller_than_a_step_is_told(kind: str, factor: float) -> None:
    right = values()
    said = told(kind, right, through(kind, right * factor))
    assert said.startswith("all of it is x ")
    assert float(said.split()[-1]) == pytest.approx(factor, abs=0.01)


def test_the_finer_a_format_the_smaller_the_factor_that_is_told() -> None:
    right = values()
    assert told("Q8_0", right, through("Q8_0", right * 1.002)) == "all of it is x 1.002"


def test_a_factor_of_some_rows_is_told_of_these() -> None:
    right = values()
    scaled = right.copy()
    scaled[64:96] *= 1.05
    said = told("Q4_1", right, through("Q4_1", scaled))
    assert said.startswith("rows 64 to 79 are x 1.05")
    assert said.endswith("and 1 more of 16 such groups")


def test_noise_smaller_than_a_step_is_told() -> None:
    right = values()
    noise = np.random.default_rng(5).normal(0, 0.1, SHAPE)
    kept = through("Q4_1", right + 0.05 * noise)
    assert told("Q4_1", right, kept) == ""
    found = told("Q4_1", right, through("Q4_1", right + np.clip(noise, -0.12, 0.12)))
    assert found.startswith("its median block has 1.")


@pytest.mark.parametrize("factor", [1.02, 0.99])
def test_one_row_whose_scales_were_read_wrongly_is_told(factor: float) -> None:
    """The blocks of one row are scaled, as f16 holds it; all other bytes are the same."""
    kept = gguf.quants.quantize(values(), gguf.GGMLQuantizationType.Q4_1).reshape(SHAPE[0], -1, 20)
    wrong = kept.copy()
    wrong[100, :, :4] = (kept[100, :, :4].view(np.float16) * np.float16(factor)).view(np.uint8)
    right, theirs = (
        gguf.quants.dequantize(held.reshape(SHAPE[0], -1), gguf.GGMLQuantizationType.Q4_1)
        for held in (kept, wrong)
    )
    said = told("Q4_1", right, theirs)
    assert said.startswith("row 100 is x ")
    assert float(said.split()[-1]) == pytest.approx(factor, abs=2e-3)


@pytest.mark.parametrize("name", ["normal", "with a mean"])
@pytest.mark.parametrize("first", KINDS)
def test_what_quantising_once_more_costs_is_no_fault(first: str, name: str) -> None:
    once = through(first, values(name))
    assert {told(kind, once, through(kind, once), oracle=first.lower()) for kind in KINDS} == {""}


@pytest.mark.parametrize(("first", "kind", "factor"), [("Q8_0", "Q4_0", 1.03), ("Q5_1", "Q4_1", 0.9)])
def test_a_factor_is_told_of_what_was_quantised_once_more(first: str, kind: str, factor: float) -> None:
    once = through(first, values())
    said = told(kind, once, through(kind, once * factor), oracle=first.lower())
    assert said.startswith("all of it is x ")
    assert float(said.split()[-1]) == pytest.approx(factor, abs=0.03)
