"""What stands where no query may look is not held against a port; a weight there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from apr_falsify.compare.bisection import FindingType, Kind
from apr_falsify.model.stages import Key
from apr_falsify.operators.attention import visible_keys
from apr_falsify.traces.trace import StageArray, Trace
from tests.sampling import in_turn
from tests.unit.compare.ports import EVERY, TOKENS, Array, Runs, accused, changed, fold, judged, port

pytestmark = pytest.mark.bare

# --- what stands where no query may look ------------------------------------------------------------


def hidden_of(run: Trace, layer: int) -> npt.NDArray[np.bool_]:
    return ~visible_keys(len(run.tokens), run.geometry.windows[layer])


def absent_keys(run: Trace, passes: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Return the keys that were not there yet in each token's pass."""
    ends = np.cumsum(passes)
    return np.arange(len(run.tokens))[None] >= np.repeat(ends, passes)[:, None]


def filled(run: Trace, name: str, value: float, where: npt.NDArray[np.bool_]) -> dict[Key, StageArray]:
    return changed(run, name, lambda x, layer: np.where(where & hidden_of(run, layer), np.float32(value), x))


def garbage(run: Trace, rows: slice) -> dict[Key, StageArray]:
    """Return scores of which ``rows`` hold anything where no query may look."""

    def change(x: Array, layer: int) -> Array:
        noise = np.random.default_rng(layer).normal(0, 30, x.shape).astype(np.float32)
        chosen = np.zeros(x.shape[-1], dtype=np.bool_)
        chosen[rows] = True
        return np.where(hidden_of(run, layer) & chosen[:, None], noise, x)

    return changed(run, "attn_scores", change)


DECODE = (TOKENS - 3, 1, 1, 1)
FILLS: dict[str, Callable[[Trace], dict[Key, StageArray]]] = {
    **{
        f"{value} for keys that were not there yet": lambda run, value=value: filled(
            run, "attn_scores", value, absent_keys(run, DECODE)
        )
        for value in (0.0, np.nan, -np.inf)
    },
    "three passes": lambda run: filled(run, "attn_scores", np.nan, absent_keys(run, (5, 5, 4))),
    "one token a pass": lambda run: filled(run, "attn_scores", 0.0, absent_keys(run, (1,) * TOKENS)),
    "the mask, added already": lambda run: filled(
        run, "attn_scores", -np.inf, absent_keys(run, (1,) * TOKENS)
    ),
    "the least f32": lambda run: filled(run, "attn_scores", -3.4028235e38, absent_keys(run, (1,) * TOKENS)),
    "garbage in some rows": lambda run: garbage(run, slice(2, 6)),
    "garbage in every row": lambda run: garbage(run, slice(None)),
    "no number in scores and softmax": lambda run: {
        **filled(run, "attn_scores", np.nan, absent_keys(run, DECODE)),
        **filled(run, "attn_softmax", np.nan, absent_keys(run, DECODE)),
    },
    "-inf in the softmax alone": lambda run: filled(run, "attn_softmax", -np.inf, absent_keys(run, DECODE)),
}


@pytest.mark.parametrize(("fill", "name"), in_turn(FILLS, ["llama", "qwen2", "gemma2", "mistral"]))
def test_what_no_query_may_see_is_not_held_against_a_port(name: str, fill: str, runs: Runs) -> None:
    model, run = runs[name]
    found = judged(model, run, port(run, FILLS[fill](run)))
    assert (found.kind, int(found.exit_code), accused(found)) == (Kind.CONSISTENT, 0, set())
    assert {finding.type for finding in found.findings} == {FindingType.RECORDING}
    assert all(row.accumulated is None or row.accumulated.rel_l2 < 1e-6 for row in found.rows)
    assert all(rule.crossings == () for rule in found.published)


@pytest.mark.parametrize("fill", FILLS)
def test_a_fault_in_what_a_query_sees_is_located_all_the_same(fill: str, runs: Runs) -> None:
    model, run = runs["llama"]
    wrong = port(run, FILLS[fill](run))
    key = Key(1, "attn_scores")
    seen = ~hidden_of(run, 1)
    data = np.array(wrong.stages[key].data)
    data[:, seen] *= np.float32(1.02)
    scaled = replace(wrong.stages[key], data=data)
    found = judged(model, run, replace(wrong, stages={**wrong.stages, key: scaled}))
    # The softmax was computed from the sound scores, not from these.
    assert accused(found) == {key, Key(1, "attn_softmax")}


@pytest.mark.parametrize(
    ("fill", "layers"), in_turn([fill for fill in FILLS if "softmax" not in fill], [(1,), EVERY])
)
def test_a_weight_on_the_future_is_a_fault(fill: str, layers: tuple[int, ...], runs: Runs) -> None:
    model, run = runs["llama"]
    wrong = port(run, FILLS[fill](run))
    ahead = {
        Key(layer, "attn_softmax"): np.array(wrong.stages[layer, "attn_softmax"].data) for layer in layers
    }
    for weights in ahead.values():
        weights[:, 4, 5] = 0.01
    stages = {**wrong.stages, **{key: StageArray(data=data, layout=()) for key, data in ahead.items()}}
    assert set(ahead) <= accused(judged(model, run, replace(wrong, stages=stages)))


def test_a_softmax_whose_future_is_no_number_and_is_read_is_a_fault(
    runs: Runs,
) -> None:
    model, run = runs["llama"]
    broken = filled(run, "attn_softmax", np.nan, absent_keys(run, DECODE))
    read = changed(run, "attention", lambda x, layer: np.full_like(x, np.nan))
    found = judged(model, run, port(run, {**broken, **read}))
    assert {Key(layer, "attn_softmax") for layer in EVERY} <= accused(found)


def test_scores_of_which_no_one_is_a_number_are_a_fault_and_read_in_no_other_way(runs: Runs) -> None:
    """Each reading of them leaves as much as the other: to turn back and forth would never end."""
    model, run = runs["llama"]
    broken = changed(run, "attn_scores", lambda x, layer: np.full_like(x, np.nan))
    found = judged(model, run, port(run, broken))
    assert {Key(layer, "attn_scores") for layer in EVERY} <= accused(found)
    assert FindingType.RECORDING not in {finding.type for finding in found.findings}


@pytest.mark.parametrize("way", ["into q", "its root into q and k"])
def test_a_cached_run_that_folds_the_scale_is_right(way: str, runs: Runs) -> None:
    model, run = runs["llama"]
    both = {**fold(model, run, way), **filled(run, "attn_scores", 0.0, absent_keys(run, DECODE))}
    found = judged(model, run, port(run, both))
    assert (found.kind, accused(found)) == (Kind.CONSISTENT, set())
