"""Attention of which only q, k, v and the result were captured: right ones pass, faults inside are named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch

from apr_falsify.compare.doubt import BLUR, doubt
from apr_falsify.compare.judge import judge, replayer_of
from apr_falsify.formats.weights import open_model
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import Key
from apr_falsify.numerics.operand_rules import PLAIN, RULES, Operation, together
from apr_falsify.operators.table import FUSED
from tests.checkpoints import make_checkpoint
from tests.unit.compare.family_runs import Run, run_of
from tests.unit.compare.fused_runs import (
    ATTENTION,
    Kernel,
    cause,
    flat,
    for_queries,
    heads,
    judged,
    kernel,
    trace_of,
)

Tensor = torch.Tensor


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Geometry]:
    """Grouped heads; the same under a window; Gemma 2's cap, window and scale."""
    folder = tmp_path_factory.mktemp("geometries")
    llama, gemma2 = (
        open_model(make_checkpoint(folder / name, name)).geometry for name in ("llama", "gemma2")
    )
    grouped = replace(llama, heads=6, kv_heads=3)
    windowed = replace(grouped, windows=(9,) * grouped.layers)
    return {"grouped": grouped, "windowed": windowed, "gemma2": replace(gemma2, heads=4, kv_heads=2)}


def attended(geometry: Geometry, parts: list[Tensor], how: Kernel) -> Tensor:
    q, k, v = parts
    return how(q, for_queries(k, geometry), for_queries(v, geometry))


# --- right ones ---------------------------------------------------------------------------------------

RIGHT = [
    ("grouped", 7, "sdpa", "f32"),
    ("grouped", 150, "sdpa", "f32"),
    ("grouped", 7, "sdpa", "bf16"),
    ("grouped", 60, "sdpa", "bf16"),
    ("grouped", 60, "sdpa", "f16"),
    ("windowed", 60, "online", "bf16"),
    ("windowed", 60, "online", "f16"),
    ("gemma2", 60, "online", "f32"),
    ("gemma2", 60, "online", "bf16"),
    ("grouped", 60, "steps", "f16"),
    ("windowed", 60, "steps", "bf16"),
    ("gemma2", 60, "steps", "f32"),
]


@pytest.mark.parametrize(("model", "tokens", "way", "dtype"), RIGHT)
def test_a_right_kernel_is_within_its_floor(
    models: dict[str, Geometry], model: str, tokens: int, way: str, dtype: str
) -> None:
    geometry = models[model]
    parts = heads(geometry, tokens, dtype)
    found = judged(
        trace_of(geometry, parts, attended(geometry, parts, kernel(geometry, tokens, way, dtype)), dtype)
    )
    assert found.missing is None
    assert not found.in_error
    assert found.fit is not None
    assert found.fit.rule is found.expected  # and no other arithmetic is told
    assert found.composed == ("attn_scores", "attn_softmax")


def test_a_kernel_that_keeps_its_steps_in_f32_is_held_to_them(models: dict[str, Geometry]) -> None:
    geometry = models["grouped"]
    parts = heads(geometry, 60, "bf16")
    floors = {
        way: judged(
            trace_of(geometry, parts, attended(geometry, parts, kernel(geometry, 60, way, "bf16")), "bf16")
        )
        for way in ("sdpa", "steps")
    }
    narrow, wide = (floors[way].fit for way in ("sdpa", "steps"))
    assert narrow is not None
    assert wide is not None
    assert narrow.floor < wide.floor / 2


# --- faults -------------------------------------------------------------------------------------------


def rescaled(by: float) -> Callable[[Kernel], Kernel]:
    return lambda how: replace(how, scale=how.scale * by)


def masked(sees: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Kernel], Kernel]:
    def change(how: Kernel) -> Kernel:
        rows = torch.arange(len(how.mask))
        return replace(how, mask=sees(rows[:, None], rows[None]))

    return change


def sunk(how: Kernel) -> Kernel:
    return replace(how, sinks=torch.zeros(6))


def learned(how: Kernel) -> Kernel:
    return replace(how, sinks=torch.linspace(-1, 2, 6))


FAULTS: Mapping[str, tuple[str, Callable[[Kernel], Kernel], tuple[str, str]]] = {
    "scale": ("grouped", rescaled(1.1), ("attention-scale", "scores x 1.1 before the softmax")),
    "no mask": ("grouped", masked(lambda i, j: (i + j) >= 0), ("mask", "no mask at all")),
    "chunks": (
        "grouped",
        masked(lambda i, j: (j <= i) & (i // 5 == j // 5)),
        ("mask", "chunks of 5 tokens that do not see each other"),
    ),
    "a window": ("grouped", masked(lambda i, j: (j <= i) & (i - j < 11)), ("mask", "a window of 11")),
    "window + 1": ("windowed", masked(lambda i, j: (j <= i) & (i - j < 10)), ("mask", "a window of 10")),
    "window - 1": ("windowed", masked(lambda i, j: (j <= i) & (i - j < 8)), ("mask", "a window of 8")),
    "no window": ("windowed", masked(lambda i, j: j <= i), ("mask", "no sliding window")),
    "no cap": ("gemma2", lambda how: replace(how, cap=None), ("soft-cap", "no soft-cap of 3")),
    "a cap": ("grouped", lambda how: replace(how, cap=7.0), ("soft-cap", "scores soft-capped at 7")),
    "sink": ("grouped", sunk, ("sink", "a sink: one more key of score 0 in the sum")),
    "sinks": ("grouped", learned, ("sink", "a sink in each head (of score -1, -0.4, 0.2, 0.8, 1.4, 2)")),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_inside_is_named(models: dict[str, Geometry], name: str) -> None:
    model, change, expected = FAULTS[name]
    geometry = models[model]
    parts = heads(geometry, 20, "f32")
    how = change(kernel(geometry, 20, "online", "f32"))
    assert cause(trace_of(geometry, parts, attended(geometry, parts, how))) == expected


@pytest.mark.parametrize(
    ("name", "dtype"), [("scale", "bf16"), ("no mask", "f16"), ("window + 1", "bf16"), ("no cap", "f16")]
)
def test_a_fault_inside_is_named_in_16_bits(models: dict[str, Geometry], name: str, dtype: str) -> None:
    model, change, expected = FAULTS[name]
    geometry = models[model]
    parts = heads(geometry, 40, dtype)
    how = change(kernel(geometry, 40, "online", dtype))
    kind, says = cause(trace_of(geometry, parts, attended(geometry, parts, how), dtype)) or ("", "")
    assert kind == expected[0]
    assert says == expected[1] or name == "scale"  # of which 16 bits give fewer digits


def test_a_fault_is_named_where_every_step_is_rounded(models: dict[str, Geometry]) -> None:
    geometry = models["windowed"]
    parts = heads(geometry, 40, "bf16")
    how = FAULTS["no window"][1](kernel(geometry, 40, "steps", "bf16"))
    found = cause(trace_of(geometry, parts, attended(geometry, parts, how), "bf16"))
    assert found == ("mask", "no sliding window")


REPEATED: Mapping[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], str]] = {
    "tiled": (lambda x: x.repeat(2, 1, 1), lambda x: x.repeat(2, 1, 1), "query head h reading kv head h % K"),
    "k tiled": (
        lambda x: x.repeat(2, 1, 1),
        lambda x: x.repeat_interleave(2, 0),
        "query head h reading kv head h % K, in k alone",
    ),
    "arbitrary": (
        lambda x: x[[2, 0, 1, 1, 0, 2]],
        lambda x: x[[2, 0, 1, 1, 0, 2]],
        "query heads reading the kv heads 2, 0, 1, 1, 0, 2",
    ),
}


@pytest.mark.parametrize("name", REPEATED)
def test_heads_repeated_in_the_wrong_order_are_named(models: dict[str, Geometry], name: str) -> None:
    of_k, of_v, says = REPEATED[name]
    geometry = models["grouped"]
    q, k, v = heads(geometry, 12, "f32")
    wrong = kernel(geometry, 12, "sdpa", "f32")(q, of_k(k), of_v(v))
    assert cause(trace_of(geometry, [q, k, v], wrong)) == ("head-mapping", says)


def test_a_shifted_cache_is_named(models: dict[str, Geometry]) -> None:
    geometry = models["grouped"]
    q, k, v = heads(geometry, 12, "f32")
    wrong = attended(geometry, [q, k.roll(1, 1), v.roll(1, 1)], kernel(geometry, 12, "sdpa", "f32"))
    found = cause(trace_of(geometry, [q, k, v], wrong))
    assert found == ("stale-cache", "k and v of other tokens: tokens moved on by one, the last one first")


# --- what is known and what is not --------------------------------------------------------------------


def test_a_kernel_of_a_runtime_with_its_own_arithmetic_stays_unmeasured(models: dict[str, Geometry]) -> None:
    geometry = models["grouped"]
    parts = heads(geometry, 12, "f32")
    wrong = attended(geometry, parts, rescaled(1.1)(kernel(geometry, 12, "sdpa", "f32")))
    doubtful = judged(trace_of(geometry, parts, wrong, runtime="llama-cpp"))
    assert doubtful.missing is not None
    assert not doubtful.in_error
    stated = trace_of(geometry, parts, wrong, runtime="llama-cpp", arithmetic="f32; f16 cache")
    assert judged(stated).in_error


def test_a_cache_of_keys_that_were_computed_here_is_no_accusation(models: dict[str, Geometry]) -> None:
    geometry = models["grouped"]
    q, k, v = heads(geometry, 12, "f32")
    held = k.clone()
    held[1, 5, 3] += 1e-3
    wrong = trace_of(
        geometry, [q, k, v], attended(geometry, [q, held, v], kernel(geometry, 12, "sdpa", "f32"))
    )
    replayer = replayer_of(wrong, None, None)
    steps, cached = FUSED["attention"], together(PLAIN, RULES[Operation.MIX][1])
    for composed, rule, doubtful in (
        (steps, PLAIN, False),
        (steps, cached, False),
        (("k_post_rope", *steps), PLAIN, False),
        (("k_post_rope", *steps), cached, True),
        (("qkv_matmul", *steps), PLAIN, True),
    ):
        assert (doubt(replayer, ATTENTION, PLAIN, rule, composed, 0.1) is not None) is doubtful
        assert doubt(replayer, ATTENTION, PLAIN, rule, composed, BLUR) is None


def test_softmax_without_scores_is_replayed_from_q_and_k(models: dict[str, Geometry]) -> None:
    geometry, key = models["grouped"], Key(0, "attn_softmax")
    q, k, v = heads(geometry, 12, "f32")
    mask = kernel(geometry, 12, "steps", "f32").mask
    for by in (1.0, 1.1):
        scores = q @ for_queries(k, geometry).transpose(1, 2) * (geometry.attn_scale_at(0) * by)
        weights = torch.softmax(scores.masked_fill(~mask, float("-inf")), -1)
        more = {"attn_softmax": weights}
        trace = trace_of(geometry, [q, k, v], weights @ for_queries(v, geometry), more=more)
        found = judge(trace, None, [key, ATTENTION])
        assert not found[ATTENTION].in_error
        assert found[key].in_error is (by != 1.0)
        assert found[key].composed == ("attn_scores",)
    assert cause(trace, key) == ("temperature", "scores x 1.1 before the softmax")


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_of(tmp_path_factory.mktemp("qwen2"), "qwen2")


def test_products_with_their_bias_alone_are_judged(qwen2: Run) -> None:
    key = Key(1, "qkv_bias")
    stages = {at: array for at, array in qwen2.trace.stages.items() if at.stage != "qkv_matmul"}
    right = replace(qwen2.trace, stages=stages)
    assert not judge(right, qwen2.model.weights, [key])[key].in_error
    assert judge(right, qwen2.model.weights, [key])[key].composed == ("qkv_matmul",)
    data = stages[key].data.copy()
    data[:, -1] *= 1.001
    wrong = replace(right, stages={**stages, key: replace(stages[key], data=data)})
    assert judge(wrong, qwen2.model.weights, [key])[key].in_error


def test_the_shape_of_heads_laid_flat() -> None:
    assert flat(torch.arange(12.0).reshape(2, 3, 2)).tolist()[0] == [0, 1, 6, 7]
