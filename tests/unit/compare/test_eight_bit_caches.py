"""KV caches in 8 bits: told by name, right where they are stated, and no excuse for a fault of their size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from apr_falsify.compare.findings import arithmetic_findings
from apr_falsify.compare.judge import Judged, judge
from apr_falsify.formats.weights import open_model
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import Key
from apr_falsify.numerics.grains import Grain, caches
from apr_falsify.traces.trace import Trace
from tests.checkpoints import make_checkpoint
from tests.unit.compare.fused_runs import ATTENTION, for_queries, heads, kernel, trace_of

Tensor = torch.Tensor
TOKENS = 14
STEPS = ("attn_scores", "attn_softmax", "attention")
KINDS = {name.replace(" {}", ""): kept for name, kept in caches().items()}


@pytest.fixture(scope="module")
def geometry(tmp_path_factory: pytest.TempPathFactory) -> Geometry:
    model = open_model(make_checkpoint(tmp_path_factory.mktemp("llama") / "model", "llama"))
    return replace(model.geometry, heads=6, kv_heads=3)


def cached(x: Tensor, kept: Grain) -> Tensor:
    """Return what a cache leaves of k or v [K, S, D]."""
    held = kept(x.transpose(0, 1).numpy())
    return torch.tensor(held, dtype=torch.float32).transpose(0, 1)


def ran(geometry: Geometry, k: Tensor, v: Tensor, parts: list[Tensor], *, fused: bool, **said: str) -> Trace:
    """Return a run that attended to ``k`` and ``v`` where ``parts`` are q, k and v as captured."""
    q, scale = parts[0], geometry.attn_scale_at(0)
    scores = q @ for_queries(k, geometry).transpose(1, 2) * scale
    mask = kernel(geometry, q.shape[1], "steps", "f32").mask
    weights = torch.softmax(scores.masked_fill(~mask, float("-inf")), -1)
    more = {} if fused else {"attn_scores": scores, "attn_softmax": weights}
    return trace_of(geometry, parts, weights @ for_queries(v, geometry), more=more, **said)


def all_judged(trace: Trace) -> dict[Key, Judged]:
    return judge(trace, None, [key for key in trace.stages if key.stage in STEPS])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fused", [False, True])
def test_a_cache_is_told_by_its_name_and_right_where_it_is_stated(
    geometry: Geometry, kind: str, fused: bool
) -> None:
    parts = heads(geometry, TOKENS, "f32")
    k, v = (cached(x, KINDS[kind]) for x in parts[1:])
    found = all_judged(ran(geometry, k, v, parts, fused=fused))
    assert not any(entry.in_error or entry.missing for entry in found.values())
    told = " ".join(finding.explanation for finding in arithmetic_findings(found))
    first, _, scale = kind.partition(",")
    names = [f"{first.removesuffix(' cache')} {each} cache" + (f",{scale}" if scale else "") for each in "kv"]
    assert all(f"{name} fits" in told or f"{name};" in told for name in names)
    stated = all_judged(ran(geometry, k, v, parts, fused=fused, arithmetic=f"f32; {kind}"))
    assert not any(entry.in_error or entry.missing for entry in stated.values())
    assert arithmetic_findings(stated) == []


@pytest.mark.parametrize("fused", [False, True])
def test_noise_of_the_size_of_a_cache_is_an_error(geometry: Geometry, fused: bool) -> None:
    parts = heads(geometry, TOKENS, "f32")
    values = np.random.default_rng(1)
    noisy = [
        x + (cached(x, KINDS["int8 cache, a scale per head"]) - x).abs() * torch.tensor(sign)
        for x in parts[1:]
        for sign in [values.choice([-1.0, 1.0], tuple(x.shape)).astype(np.float32)]
    ]
    k, v = noisy
    found = all_judged(ran(geometry, k, v, parts, fused=fused))
    wrong = {key.stage for key, entry in found.items() if entry.in_error}
    assert wrong == ({"attention"} if fused else {"attn_scores", "attention"})


@pytest.mark.parametrize("fused", [False, True])
def test_a_stated_cache_excuses_no_fault_of_its_size(geometry: Geometry, fused: bool) -> None:
    kept = KINDS["int8 cache, a scale per token and head"]
    parts = heads(geometry, TOKENS, "f32")
    k, v = (cached(x, kept) for x in parts[1:])
    k[:, -1] *= 1.004  # which the last token alone sees: all others are as stated
    said = "f32; int8 cache, a scale per token and head"
    found = all_judged(ran(geometry, k, v, parts, fused=fused, arithmetic=said))
    assert {key.stage for key, entry in found.items() if entry.in_error} == {
        "attention" if fused else "attn_scores"
    }


@pytest.mark.parametrize("fused", [False, True])
def test_a_value_on_an_edge_falls_to_either_side(geometry: Geometry, fused: bool) -> None:
    kept = KINDS["int8 cache, a scale per token and head"]
    parts = heads(geometry, TOKENS, "f32")
    k = parts[1]
    scale = float(k[1, 4].abs().max()) / 127
    at = int(k[1, 4].abs().argmin())  # not that which sets the scale
    k[1, 4, at] = 10.5 * scale
    held = cached(k, kept)
    other = held.clone()
    other[1, 4, at] += scale if held[1, 4, at] < 10.5 * scale else -scale
    v = cached(parts[2], kept)
    for k_of_run, edges in ((held, 0), (other, 1)):
        found = all_judged(ran(geometry, k_of_run, v, parts, fused=fused))
        key = ATTENTION if fused else Key(0, "attn_scores")
        assert not found[key].in_error
        assert found[key].fit is not None
        assert found[key].fit.edges == edges
    wrong = other.clone()
    wrong[1, 4, (at + 1) % len(wrong[1, 4])] += scale  # a whole step where no edge is
    key = ATTENTION if fused else Key(0, "attn_scores")
    assert all_judged(ran(geometry, wrong, v, parts, fused=fused))[key].in_error
