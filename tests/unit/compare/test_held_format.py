"""Runs in 16 bits that are said to be f32 are seen, judged by their rounding, and their faults located."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from apr_falsify.compare.bisection import Bisection, FindingType, Kind
from apr_falsify.compare.judge import judge
from apr_falsify.compare.localise import bisect
from apr_falsify.compare.seen_format import seen_format
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.stages import STAGES, Key, Layout
from apr_falsify.numerics.arithmetic import FORMATS
from apr_falsify.oracle.capture import capture
from apr_falsify.subjects import embedded
from apr_falsify.traces.capture import MemorySink
from apr_falsify.traces.trace import StageArray, Trace
from tests.checkpoints import make_checkpoint
from tests.sampling import in_turn
from tests.unit.compare.ports import TOKENS, Runs, accused, columns_of, port
from tests.unit.oracle.requests import request_for

pytestmark = pytest.mark.bare

Array = npt.NDArray[Any]
FAMILIES = (
    "qwen2",
    "llama",
    "qwen3",
    "gemma2",
    "gemma3",
    "gpt2-by-layer-upcast",
    "mistral",
    "phi3",
    "qwen3_moe",
)
SIXTEEN = ("f16", "bf16")


@pytest.fixture(scope="module")
def rounded_runs(runs: Runs) -> dict[tuple[str, str], Trace]:
    """(Recipe, format) -> transformers' run of its f32 checkpoint in that format."""

    class Made(dict[tuple[str, str], Trace]):
        def __missing__(self, key: tuple[str, str]) -> Trace:
            model, _ = runs[key[0]]
            self[key] = capture(model, request_for(model, tokens=TOKENS), MemorySink(), dtype=key[1])
            return self[key]

    return Made()


def as_f32(run: Trace, stages: dict[Key, Array] | None = None, dtype: str = "f32") -> Trace:
    """Return a run that keeps 16 bits as it looks in a file of f32 whose mapping says ``dtype``."""
    given = {
        key: StageArray(data=np.float32(data), layout=run.stages[key].layout)
        for key, data in (stages or {}).items()
    }
    plain = {key: replace(array, data=np.array(array.data, np.float32)) for key, array in run.stages.items()}
    return port(replace(run, stages=plain), given, dtype=dtype)


def told(found: Bisection) -> list[str]:
    return [
        finding.explanation.partition(":")[0]
        for finding in found.findings
        if finding.type is FindingType.RECORDING
    ]


@pytest.mark.parametrize(("name", "dtype"), in_turn(FAMILIES, SIXTEEN))
def test_a_right_run_in_16_bits_that_was_saved_as_f32_is_consistent(
    name: str, dtype: str, runs: Runs, rounded_runs: dict[tuple[str, str], Trace]
) -> None:
    model, oracle = runs[name]
    found = bisect(oracle, as_f32(rounded_runs[name, dtype]), weights=model.weights)
    assert (found.kind, int(found.exit_code), accused(found)) == (Kind.CONSISTENT, 0, set())
    assert f"the stages are stored in {dtype}" in told(found)
    assert found.subject.dtype == "f32", "what the recording says of itself is reported as it is"
    (finding,) = [each for each in found.findings if each.explanation.startswith("the stages")]
    assert f"`dtype: {dtype}`" in finding.advice


@pytest.mark.parametrize("said", ["unknown", "f16"])
def test_so_is_one_of_which_nothing_or_a_finer_format_is_said(
    said: str, runs: Runs, rounded_runs: dict[tuple[str, str], Trace]
) -> None:
    model, oracle = runs["llama"]
    found = bisect(oracle, as_f32(rounded_runs["llama", "bf16"], dtype=said), weights=model.weights)
    assert (found.kind, accused(found)) == (Kind.CONSISTENT, set())
    assert "the stages are stored in bf16" in told(found)


Change = Callable[[Key, Array], Array]


def run_in(
    dtype: str,
    model: Model,
    fault: Change = lambda key, x: x,
    *,
    unrounded: tuple[str, ...] = (),
    products: bool = True,
    weights: bool = True,
) -> Trace:
    """Return a run in ``dtype`` but for ``unrounded`` stages, with ``fault`` and what follows from it.

    Products take rounded ``products`` of rounded ``weights``, or either as it is.
    """
    kept = FORMATS[dtype]

    def step(key: Key, inputs: embedded.Inputs, site: embedded.RuntimeSite) -> embedded.Array:
        if products and STAGES[key[1]].product:
            inputs = {name: kept.round(x) for name, x in inputs.items()}
        value = fault(key, embedded.as_defined(key, inputs, site))
        return value if key[1] in unrounded else kept.round(value)

    held = replace(model, weights=replace(model.weights, cast_to=kept)) if weights else model
    return embedded.capture(held, request_for(model, tokens=TOKENS), MemorySink(), step=step)


def at(key: Key, factor: float) -> Change:
    return lambda other, x: x * np.float32(factor) if other == key else x


FAULTS = (
    Key(0, "qkv_matmul"),
    Key(1, "attn_norm"),
    Key(1, "q_post_rope"),
    Key(2, "attn_scores"),
    Key(1, "attention"),
    Key(0, "ffn_swigl"),
    Key(2, "ffn_out"),
    Key(1, "post_ffn_residual"),
)


@pytest.mark.parametrize(("key", "dtype", "weights"), in_turn(FAULTS, SIXTEEN, (True, False)))
def test_a_fault_of_such_a_run_is_located(key: Key, dtype: str, weights: bool, runs: Runs) -> None:
    model, oracle = runs["llama"]
    found = bisect(oracle, as_f32(run_in(dtype, model, at(key, 1.1), weights=weights)), weights=model.weights)
    assert accused(found) == {key}
    assert f"the stages are stored in {dtype}" in told(found)


def test_a_value_that_the_format_cannot_hold_is_no_end_of_it(runs: Runs, rounded_runs: Any) -> None:
    model, oracle = runs["llama"]
    run = rounded_runs["llama", "f16"]
    key = Key(1, "ffn_norm")
    for factor, wrong in ((1 + 1e-4, set()), (1.5001, {key, Key(1, "ffn_gate"), Key(1, "ffn_up")})):
        odd = np.array(run.stages[key].data, np.float32)
        place = np.unravel_index(int(np.argmax(np.abs(odd))), odd.shape)
        odd[place] *= np.float32(factor)
        found = bisect(oracle, as_f32(run, {key: odd}), weights=model.weights)
        assert (accused(found), found.kind) == (wrong, Kind.SEVERAL if wrong else Kind.CONSISTENT)
        (finding,) = [each for each in found.findings if each.explanation.startswith("the stages are stored")]
        assert "(not: ffn_norm)" in finding.explanation


def test_a_port_that_keeps_some_stages_in_f32_is_right(runs: Runs) -> None:
    model, oracle = runs["qwen3"]
    mixed = run_in("f16", model, unrounded=("attn_softmax", "post_attn_residual", "post_ffn_residual"))
    found = bisect(oracle, as_f32(mixed), weights=model.weights)
    assert (found.kind, accused(found)) == (Kind.CONSISTENT, set())


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_an_f32_run_that_was_rounded_when_it_was_saved_is_right(dtype: str, runs: Runs) -> None:
    model, run = runs["llama"]
    rounded = {key: FORMATS[dtype].round(np.array(array.data)) for key, array in run.stages.items()}
    found = bisect(run, as_f32(run, rounded), weights=model.weights)
    assert (found.kind, accused(found)) == (Kind.CONSISTENT, set())
    assert told(found) == [f"the stages were saved in {dtype}"]


def test_a_fault_of_such_a_saved_run_is_located(runs: Runs) -> None:
    model, run = runs["llama"]
    key = Key(1, "attention")
    wrong = run_in("f32", model, at(key, 1.2), weights=False)
    rounded = {each: FORMATS["bf16"].round(np.array(array.data)) for each, array in wrong.stages.items()}
    assert accused(bisect(run, as_f32(wrong, rounded), weights=model.weights)) == {key}


@pytest.mark.parametrize("size", [1.0, 2.0**-8, 2.0**-12])
def test_a_run_in_f16_that_folds_the_scale_is_right_down_to_its_smallest_numbers(
    size: float, runs: Runs
) -> None:
    base, _ = runs["llama"]
    geometry = replace(base.geometry, attn_scales=(1 / 64,) * 3)  # as of large heads: the steps grow 64-fold
    f16, key = FORMATS["f16"], Key(1, "q_post_rope")
    model = replace(base, geometry=geometry, weights=replace(base.weights, geometry=geometry, cast_to=f16))

    def folding(key: Key, inputs: embedded.Inputs, site: embedded.RuntimeSite) -> embedded.Array:
        value = embedded.as_defined(key, inputs, site)
        if key[1] == "qkv_matmul":  # a q that reaches down to where the steps of f16 no longer shrink
            value = np.array(value)
            value[:, columns_of(geometry, key[1], "q")] *= np.float32(size)
        return f16.round(value / np.float32(64) if key[1] == "q_post_rope" else value)

    run = embedded.capture(model, request_for(model, tokens=TOKENS), MemorySink(), step=folding)
    scaled = {key: replace(run.stages[key], layout=(Layout.SCALED,))}
    subject = port(run, scaled, dtype="f16")
    assert not judge(subject, model.weights, [key])[key].in_error
    off = {key: replace(scaled[key], data=scaled[key].data * np.float32(1.5))}
    assert judge(port(run, off, dtype="f16"), model.weights, [key])[key].in_error


# --- what must not be taken for a format ------------------------------------------------------------


def test_an_f32_run_of_an_f16_checkpoint_is_judged_as_f32(tmp_path: Path) -> None:
    model = open_model(make_checkpoint(tmp_path, "llama", torch.float16))
    run = capture(model, request_for(model, tokens=TOKENS), MemorySink(), dtype="f32")
    found = bisect(run, port(run, dtype="f32"), weights=model.weights)
    assert (found.kind, found.findings) == (Kind.CONSISTENT, ())
    key = Key(1, "ffn_out")
    small = at(key, 1 + 1e-4)
    off = {each: replace(array, data=small(each, np.array(array.data))) for each, array in run.stages.items()}
    found = bisect(run, port(run, off, dtype="f32"), weights=model.weights)
    assert accused(found) == {key, Key(1, "post_ffn_residual")}
    assert told(found) == []


@pytest.mark.parametrize("stages", [("attn_softmax",), ("attn_norm", "ffn_norm"), ("attention", "attn_out")])
def test_stages_that_an_f32_run_computes_in_16_bits_are_faults(stages: tuple[str, ...], runs: Runs) -> None:
    model, run = runs["llama"]
    kept = FORMATS["bf16"]
    narrow = run_in("f32", model, lambda key, x: kept.round(x) if key[1] in stages else x, weights=False)
    found = bisect(run, as_f32(narrow), weights=model.weights)
    assert accused(found) == {key for key in run.stages if key[1] in stages}
    assert told(found) == []


RNG = np.random.default_rng(0)
NAMES = ("attn_norm", "qkv_matmul", "attention", "attn_out", "ffn_out")
LOOK: dict[str, Callable[[int], Array]] = {
    "zeros": lambda n: np.zeros((8, 64), np.float32),
    "small whole numbers": lambda n: RNG.integers(-200, 200, (8, 64)).astype(np.float32),
    "powers of two": lambda n: np.exp2(RNG.integers(-8, 8, (8, 64))).astype(np.float32),
    "one number": lambda n: np.full((8, 64), 0.3337, np.float16).astype(np.float32)[:1, :8],
    "f32": lambda n: RNG.standard_normal((8, 64)).astype(np.float32),
    "f32 but for one array in three": lambda n: (
        RNG.standard_normal((8, 64)).astype(np.float16 if n % 3 == 0 else np.float32).astype(np.float32)
    ),
}


@pytest.mark.parametrize("look", LOOK)
def test_what_proves_nothing_is_no_format(look: str) -> None:
    arrays = [(name, LOOK[look](index)) for index, name in enumerate(NAMES)]
    assert seen_format(arrays) is None


def test_an_embedding_and_two_stages_alone_prove_nothing() -> None:
    half = RNG.standard_normal((3, 8, 64)).astype(np.float16).astype(np.float32)
    assert seen_format(zip(("embedding", "attn_norm", "attn_out"), half, strict=True)) is None
    seen = seen_format(zip(("ffn_out", "attn_norm", "attn_out"), half, strict=True))
    assert seen is not None
    assert (seen.format.name, seen.holding, seen.arrays, seen.others) == ("f16", 3, 3, ())


# --- operands that were recorded before they were rounded -------------------------------------------

UNROUNDED: dict[str, tuple[str, ...]] = {
    "silu and product, as torch.compile leaves them": ("ffn_silu", "ffn_swigl"),
    "norms": ("attn_norm", "ffn_norm", "final_norm"),
    "rotated q and k": ("q_post_rope", "k_post_rope"),
    "softmax": ("attn_softmax",),
    "attention": ("attention",),
    "all of these": ("attn_norm", "ffn_norm", "ffn_silu", "ffn_swigl", "q_post_rope", "k_post_rope"),
}


@pytest.mark.parametrize(("which", "said", "name"), in_turn(UNROUNDED, ("bf16", "f32"), ("llama", "qwen2")))
def test_what_a_product_takes_rounded_may_be_recorded_unrounded(
    name: str, which: str, said: str, runs: Runs
) -> None:
    model, oracle = runs[name]
    run = run_in("bf16", model, unrounded=UNROUNDED[which])
    found = bisect(oracle, as_f32(run, dtype=said), weights=model.weights)
    assert (found.kind, accused(found)) == (Kind.CONSISTENT, set())


PRODUCTS = (Key(1, "ffn_out"), Key(1, "qkv_matmul"), Key(0, "attn_scores"), Key(2, "ffn_up"))


@pytest.mark.parametrize(("which", "key"), in_turn(UNROUNDED, PRODUCTS))
def test_a_fault_beside_that_is_located(key: Key, which: str, runs: Runs) -> None:
    model, oracle = runs["llama"]
    run = run_in("bf16", model, at(key, 1.2), unrounded=UNROUNDED[which])
    assert accused(bisect(oracle, as_f32(run, dtype="bf16"), weights=model.weights)) == {key}


def test_a_product_that_takes_unrounded_values_is_right_too(runs: Runs) -> None:
    model, oracle = runs["llama"]
    run = run_in("bf16", model, unrounded=("ffn_silu", "ffn_swigl"), products=False)
    found = bisect(oracle, as_f32(run, dtype="bf16"), weights=model.weights)
    assert (found.kind, accused(found)) == (Kind.CONSISTENT, set())
    assert told(found) == ["the weights are rounded to bf16"]
