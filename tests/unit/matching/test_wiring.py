"""Arrays without names are wired to their stages: none wrongly, a wrong stage as itself, doubt said."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from apr_falsify.errors import TraceError, UndecidedError
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.matching.names import pattern_of
from apr_falsify.matching.result import Wiring
from apr_falsify.matching.wire import wire
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.oracle.capture import capture
from apr_falsify.subjects.dumps import read_dump
from apr_falsify.traces.capture import MemorySink, Request
from tests.checkpoints import make_checkpoint
from tests.sampling import one_in
from tests.unit.helpers import TINY
from tests.wired_bags import TOKENS, Arrays, Bag, Case, bag_of, save, score

CASES = (
    Case(recipe="llama", seed=1),
    Case(recipe="qwen2", fault="all-biases-missing", layer=1, seed=23),
    Case(recipe="llama", fault="attention-residual-omitted", layer=0, seed=4),
    Case(recipe="gemma2", fault="scores-scaled-twice", layer=1, seed=8),
    Case(recipe="qwen3", fault="rope-from-one", layer=2, seed=5),
    Case(recipe="qwen3_moe", fault="attn-norm-scaled", layer=1, seed=11),
    Case(recipe="gpt_neox", fault="o-one-channel", layer=0, seed=9),
    Case(recipe="olmo2", fault="activation-skipped", layer=1, seed=14),
    Case(recipe="phi3", fault="head-soft-capped", seed=2),
    Case(recipe="cohere", seed=6),
    Case(recipe="llama", fault="mask-one-ahead", layer=0, seed=17),
    Case(recipe="mistral", fault="down-one-channel", layer=2, seed=3),
)


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    @functools.cache
    def model(recipe: str) -> Model:
        if recipe == "tiny":
            return open_model(TINY)
        return open_model(make_checkpoint(tmp_path_factory.mktemp(recipe), recipe))

    return model


def wired(folder: Path, arrays: Arrays, model: Model, tokens: tuple[int, ...] = TOKENS) -> Wiring:
    path = save(folder, Bag(arrays=arrays))
    request = Request(tokens=tokens, layers=range(model.geometry.layers), stages=tuple(STAGES))
    oracle = capture(model, request, MemorySink())
    left_out = frozenset({"ids"})
    return wire(path, read_dump(path), model.weights, tokens, oracle=oracle, left_out=left_out)


@pytest.mark.parametrize("case", one_in(6, CASES, start=2), ids=str)
def test_no_array_is_taken_for_another_and_the_wrong_stage_is_among_those_that_are_found(
    case: Case, model_of: Callable[[str], Model], tmp_path: Path
) -> None:
    model = model_of(case.recipe)
    bag = bag_of(model, case)
    assert bool(bag.wrong) == bool(case.fault)
    got = score(bag, wired(tmp_path, bag.arrays, model), model.geometry)
    assert got.wrong == ()
    assert got.missed == frozenset()


def arrays_of(model: Model, tokens: tuple[int, ...]) -> dict[str, np.ndarray]:
    request = Request(tokens=tokens, layers=range(model.geometry.layers), stages=tuple(STAGES))
    trace = capture(model, request, MemorySink())
    return {
        f"{key.stage}.{key.layer}": np.array(array.data, np.float32) for key, array in trace.stages.items()
    }


def test_layers_of_two_runs_are_refused(model_of: Callable[[str], Model], tmp_path: Path) -> None:
    model = model_of("tiny")
    arrays = arrays_of(model, TOKENS)
    other = arrays_of(model, tuple(reversed(TOKENS)))
    arrays |= {name: values for name, values in other.items() if name.endswith(".1")}
    with pytest.raises(UndecidedError, match="neither is of the run of these tokens"):
        wired(tmp_path, arrays, model)


def test_two_whole_runs_are_refused(model_of: Callable[[str], Model], tmp_path: Path) -> None:
    model = model_of("tiny")
    arrays = arrays_of(model, TOKENS)
    arrays |= {f"b.{name}": values for name, values in arrays_of(model, tuple(reversed(TOKENS))).items()}
    with pytest.raises(UndecidedError, match="neither is of the run of these tokens"):
        wired(tmp_path, arrays, model)


def test_arrays_of_no_stage_are_refused(model_of: Callable[[str], Model], tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    noise = {f"a{n}": chance.standard_normal((len(TOKENS), 256)).astype(np.float32) for n in range(3)}
    with pytest.raises(TraceError, match="no array is a stage of this model"):
        wired(tmp_path, noise, model_of("tiny"))
    with pytest.raises(TraceError, match="no array has the shape"):
        wired(tmp_path, {"a": np.ones((7, 13), np.float32)}, model_of("tiny"))


def test_what_nothing_reads_and_two_arrays_may_be_is_left_open(
    model_of: Callable[[str], Model], tmp_path: Path
) -> None:
    """Two near logits: either may be the port's head, and neither is what its inputs make it."""
    model = model_of("tiny")
    arrays = arrays_of(model, TOKENS)
    right = arrays.pop("lm_head.None")
    arrays |= {"x": right * np.float32(1.1), "y": right * np.float32(0.9)}
    found = wired(tmp_path, arrays, model)
    assert [(one.place.key, sorted(one.candidates)) for one in found.open] == [
        (Key(None, "lm_head"), ["x", "y"])
    ]
    assert "lm_head" not in {stage.stage for stage in found.stages}


PATTERNS = {
    "h{layer}.x": {0: "h0.x", 1: "h1.x"},
    "b{layer+1:02}": {0: "b01", 1: "b02", 9: "b10"},
    "m.{layer}.l{layer}": {0: "m.0.l0", 3: "m.3.l3"},
    None: {0: "silu", 1: "silu_1"},
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_names_have_a_pattern_where_their_numbers_follow_the_layer(pattern: str | None) -> None:
    assert pattern_of(PATTERNS[pattern]) == pattern
    assert pattern_of({0: "t7", 1: "t3"}) is None
    assert pattern_of({0: "a{", 1: "a{"}) is None
