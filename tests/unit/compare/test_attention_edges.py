"""Values of q, k and v on the edge between two steps of a quantised cache, made here with other roundings.

Turned values are summed in another order than llama.cpp's (a product with the Hadamard matrix in f64), and
blocks are quantised by a quotient: both right, and neither to the bit what the table has.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from apr_falsify.commands.specs import DEFAULT_MODEL
from apr_falsify.compare.attention_edges import EdgeStage
from apr_falsify.compare.judge import Judged, judge, replayer_of
from apr_falsify.formats.weights import open_model
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.numerics import quantise
from apr_falsify.numerics.operand_rules import RULES, Operation
from apr_falsify.subjects import embedded
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import StageArray, Trace

F64 = npt.NDArray[np.float64]
S, H, K, D = 160, 4, 2, 64


@pytest.fixture(scope="module")
def base() -> Trace:
    model = open_model(DEFAULT_MODEL)
    request = Request(tokens=(1, 2), layers=range(1), stages=tuple(STAGES))
    trace = embedded.capture(model, request, MemorySink())
    sizes = {"heads": H, "kv_heads": K, "head_dim": D, "hidden": H * D}
    return replace(trace, geometry=replace(trace.geometry, **sizes), tokens=tuple(range(S)), stages={})


def normals(seed: int, *shape: int) -> F64:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32).astype(np.float64)


def hadamard(size: int) -> F64:
    found = np.ones((1, 1))
    while len(found) < size:
        found = np.kron(np.array([[1, 1], [1, -1]]), found)
    return found / np.sqrt(size)


def turned(x: F64) -> F64:
    return (x.reshape(len(x), -1, D) @ hadamard(D)).astype(np.float32).astype(np.float64).reshape(x.shape)


def by_quotient(x: F64) -> F64:
    """``q8_0`` with x / scale in place of x * (127 / max), and ties to even."""
    blocks = x.astype(np.float32).reshape(len(x), -1, 32)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    return (np.rint(blocks / scale) * scale.astype(np.float16).astype(np.float64)).reshape(x.shape)


def scores(q: F64, k: F64, scale: float = D**-0.5) -> F64:
    heads = np.repeat(k.reshape(S, K, D), H // K, axis=1)
    return np.asarray(np.einsum("thd,shd->hts", q.reshape(S, H, D), heads) * scale)


def with_edges(x: F64, seed: int) -> F64:
    """In one value of each twentieth row's first block: half way between two steps, as f32 holds it."""
    x = x.copy()
    for row in range(seed, len(x), 20):
        largest = np.float32(np.abs(x[row, :32]).max())
        place = int(np.argmin(np.abs(x[row, :32])))
        x[row, place] = np.float32(2.5) * (largest / np.float32(127))
    return x


def judged(base: Trace, key: str, stages: dict[str, F64], rule: str) -> Judged:
    held = {Key(0, name): StageArray(data=data.astype(np.float32)) for name, data in stages.items()}
    return judge(replace(base, stages=held), None, [Key(0, key)], f"f32; {rule}")[0, key]


def score_stages(q: F64, k: F64, made: F64) -> dict[str, F64]:
    return {"q_post_rope": q, "k_post_rope": k, "attn_scores": made}


def test_q_and_k_on_an_edge_may_fall_to_either_side(base: Trace) -> None:
    q, k = with_edges(normals(0, S, H * D), 0), with_edges(normals(1, S, K * D), 3)
    entry = judged(
        base, "attn_scores", score_stages(q, k, scores(by_quotient(q), by_quotient(k))), "q8_0 k cache"
    )
    assert entry.fit is not None
    assert entry.fit.edges > 0
    assert not entry.in_error


def test_that_is_so_too_in_a_layer_with_a_scale_of_its_own(base: Trace) -> None:
    """In a layer of another scale the same values make other scores."""
    scaled = replace(base, geometry=replace(base.geometry, attn_scales=(0.2, 0.3, 0.4)))
    q, k = with_edges(normals(0, S, H * D), 0), with_edges(normals(1, S, K * D), 3)
    made = scores(by_quotient(q), by_quotient(k), 0.2)
    entry = judged(scaled, "attn_scores", score_stages(q, k, made), "q8_0 k cache")
    assert entry.fit is not None
    assert entry.fit.edges > 0
    assert not entry.in_error


def on_steps(seed: int, width: int) -> F64:
    """Whole steps of 1/64, the largest of a block 127 of them: ``q8_0`` keeps such values as they are."""
    steps = np.random.default_rng(seed).integers(-126, 127, (S, width)).astype(np.float64)
    steps[:, ::32] = 127
    return steps / 64


HALF, UP = 2.5 / 64, 3 / 64
"""On the edge between two steps, which ``q8_0`` keeps as 2 of them, and what else it may be kept as."""


@pytest.mark.parametrize(("count", "explained"), [(1024, True), (1025, False)])
def test_at_most_1024_values_on_an_edge_are_tried(base: Trace, count: int, explained: bool) -> None:
    q, k = on_steps(0, H * D), on_steps(1, K * D)
    held = q.copy()
    rows = [x.reshape(-1, 32)[:count] for x in (q, held)]  # views: the first so many blocks
    rows[0][:, 5], rows[1][:, 5] = HALF, UP
    entry = judged(base, "attn_scores", score_stages(q, k, scores(held, k)), "q8_0 k cache")
    assert entry.fit is not None
    assert (entry.fit.edges, entry.in_error) == (count if explained else 0, not explained)


def test_of_two_values_that_undo_each_other_the_one_that_fell_is_told(base: Trace) -> None:
    """Where two columns of k are opposite, one value of q a step up is the other a step down."""
    q, k = on_steps(0, H * D), on_steps(1, K * D)
    k[:, 7] = -k[:, 3]
    q[5, [3, 7]] = HALF
    held = q.copy()
    held[5, [3, 7]] = 2 / 64, UP
    entry = judged(base, "attn_scores", score_stages(q, k, scores(held, k)), "q8_0 k cache")
    assert entry.fit is not None
    assert (entry.fit.edges, entry.in_error) == (1, False)


@pytest.mark.parametrize(
    ("left", "spoilt", "taken"), [(1, 0, True), (0, 1, True), (3, 0, False), (1, 2, False)]
)
def test_values_on_an_edge_are_taken_where_they_explain_nine_of_ten(
    left: int, spoilt: int, taken: bool
) -> None:
    """Of 20 values beyond their limit so many are left, and so many others are spoilt."""
    expected, sigma = np.zeros(40), np.ones(40)
    subject = np.where(np.arange(40) < 20, 10.0, 0.0)
    moved = subject.copy()
    moved[:left] = 0.0
    moved[20 : 20 + spoilt] = 10.0
    stage = EdgeStage(subject=subject, expected=expected, sigma=sigma, shaped=lambda x: x)
    values, count = stage.nearer(moved, 3)
    assert (values is moved, values is expected, count) == (taken, not taken, 3 if taken else 0)
    assert stage.nearer(moved, 0)[0] is expected


def test_q_and_k_that_were_turned_in_another_order_of_sums_are_right(base: Trace) -> None:
    taken = 0
    for seed in range(4):
        q, k = normals(10 + seed, S, H * D), normals(20 + seed, S, K * D)
        made = scores(by_quotient(turned(q)), by_quotient(turned(k)))
        entry = judged(base, "attn_scores", score_stages(q, k, made), "q8_0 k cache, Hadamard-rotated")
        assert entry.fit is not None
        assert not entry.in_error
        taken += entry.fit.edges
    assert taken > 0


def test_a_cached_key_that_is_off_by_a_step_on_no_edge_is_an_error(base: Trace) -> None:
    q, k = normals(0, S, H * D), normals(1, S, K * D)
    held = by_quotient(k)
    largest = np.abs(k[7, :32]).max()
    place = int(np.argmin(np.abs(k[7, :32] / largest * 127 % 1)))  # nearest to a whole number of steps
    held[7, place] += largest / 127
    entry = judged(base, "attn_scores", score_stages(q, k, scores(by_quotient(q), held)), "q8_0 k cache")
    assert entry.in_error


def test_a_wrong_score_beside_values_on_an_edge_is_an_error(base: Trace) -> None:
    q, k = with_edges(normals(0, S, H * D), 0), with_edges(normals(1, S, K * D), 3)
    made = scores(by_quotient(q), by_quotient(k))
    made[2, 20, 3] += 1e-3
    entry = judged(base, "attn_scores", score_stages(q, k, made), "q8_0 k cache")
    assert entry.in_error


def mixed(weights: F64, v: F64) -> F64:
    heads = np.repeat(v.reshape(S, K, D), H // K, axis=1)
    return np.einsum("hts,shd->thd", weights, heads).reshape(S, H * D)


def mix_stages(seed: int) -> tuple[F64, F64]:
    raw = np.exp(3 * normals(seed, H, S, S)) * np.tril(np.ones((S, S)))
    weights = (raw / raw.sum(axis=-1, keepdims=True)).astype(np.float32).astype(np.float64)
    return weights, normals(seed + 1, S, (H + 2 * K) * D)


def test_cached_values_that_were_turned_in_another_order_of_sums_are_right(base: Trace) -> None:
    weights, fused = mix_stages(30)
    many = normals(40, 20_000, K * D)
    other = by_quotient(turned(many)) != quantise.q8_0(quantise.hadamard_rotated(many, D))
    rows = many[other.any(axis=1)][:8]  # on an edge, where the two orders of sums fall to either side
    assert len(rows)
    fused[3 : 3 + len(rows), -K * D :] = rows
    held = by_quotient(turned(fused[:, -K * D :]))
    back = (held.reshape(S, -1, D) @ hadamard(D)).reshape(held.shape)
    stages = {"attn_softmax": weights, "qkv_bias": fused, "attention": mixed(weights, back)}
    entry = judged(base, "attention", stages, "q8_0 v cache, Hadamard-rotated")
    assert entry.fit is not None
    assert not entry.in_error
    assert entry.fit.edges >= len(rows)


def test_a_cached_value_that_is_off_by_a_step_on_no_edge_is_an_error(base: Trace) -> None:
    weights, fused = mix_stages(30)
    v = fused[:, -K * D :]
    held = by_quotient(v)
    largest = np.abs(v[7, :32]).max()
    place = int(np.argmin(np.abs(v[7, :32] / largest * 127 % 1)))
    held[7, place] += largest / 127
    stages = {"attn_softmax": weights, "qkv_bias": fused, "attention": mixed(weights, held)}
    assert judged(base, "attention", stages, "q8_0 v cache").in_error


def test_a_block_sum_of_q_between_two_f16_numbers_may_be_either(base: Trace) -> None:
    """A sum of 2049 steps lies half way from 2048 to 2050; what is missing in it falls on the minima of k."""
    q, k = normals(0, S, H * D), normals(1, S, K * D)
    q[5, :32] = 64.0
    q[5, 0], q[5, 31] = 127.0, 2049 - 127 - 30 * 64
    rule = "q4_1 k cache"
    trace = replace(
        base,
        stages={
            Key(0, name): StageArray(data=data.astype(np.float32))
            for name, data in score_stages(q, k, np.zeros((H, S, S))).items()
        },
    )
    replayer = replayer_of(trace, None, f"f32; {rule}")
    operands = replayer.operands(0)
    (held,) = (each for each in RULES[Operation.SCORES] if each.name == rule)
    made = operands.scores(q, k, held)
    # The whole run as it is, but that block's sum rounded up and not to even: 2 steps more for its minima.
    lowest = k.reshape(S, K, D)[:, 0, :32].min(axis=-1).astype(np.float16).astype(np.float64)
    made[0, 5] += 2 * lowest / np.sqrt(D)
    entry = judged(base, "attn_scores", score_stages(q, k, made), rule)
    assert entry.fit is not None
    assert not entry.in_error
    assert entry.fit.edges == 1
