"""Bugs that were reported of ports of these models, made on small ones: each is located, and named.

The table of docs/reported-bugs.md has the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apr_falsify.compare.localise import bisect
from apr_falsify.exam.seeding import recurrent
from apr_falsify.exam.seeding.places import from_input
from apr_falsify.exam.seeding.scene import Formula, Scene
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import Key
from apr_falsify.operators.heads import parts
from apr_falsify.operators.operator import Array, Inputs
from apr_falsify.operators.rotation import rope_angles
from apr_falsify.subjects.embedded import Step, as_defined, capture
from apr_falsify.subjects.kernel import RuntimeSite
from apr_falsify.traces.capture import MemorySink
from apr_falsify.traces.trace import Trace
from tests.checkpoints import make_checkpoint
from tests.unit.compare.reported_state_spaces import STATE_SPACES
from tests.unit.oracle.requests import request_for

Change = Callable[[Geometry], dict[str, Any]]
"""How a port's geometry differs."""

PAGE = Path(__file__).parents[3] / "docs" / "reported-bugs.md"
ROTATED = ("q_post_rope", "k_post_rope")


def _always(**changed: Any) -> Change:
    return lambda geometry: changed


def _rope(**changed: float) -> Change:
    return lambda geometry: {
        "rope": replace(geometry.rope, parameters={**geometry.rope.parameters, **changed})
    }


def _scale(of: Callable[[Geometry], float]) -> Change:
    return lambda geometry: {"attn_scales": (of(geometry),) * geometry.layers}


def _without_latent_norm(key: Key, inputs: Inputs, site: RuntimeSite) -> Array:
    return inputs["kv_latent"] if key.stage == "kv_latent_norm" else as_defined(key, inputs, site)


def _pairs_side_by_side(key: Key, inputs: Inputs, site: RuntimeSite) -> Array:
    if key.stage not in ROTATED:
        return as_defined(key, inputs, site)
    start = site.geometry.head_dim - site.geometry.dims(1)["rotary"]
    joined = inputs["qkv_bias"]
    x = joined[:, parts(site.geometry)[key.stage[0]]].reshape(len(joined), -1, site.geometry.head_dim)
    angles, _ = rope_angles(site.geometry.rope, site.geometry.head_dim, site.passes, len(x))
    even, odd = x[..., start::2], x[..., start + 1 :: 2]
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    turned = np.stack((even * cos - odd * sin, odd * cos + even * sin), axis=-1)
    found = np.concatenate((x[..., :start], turned.reshape(*x.shape[:2], -1)), axis=-1)
    return found.reshape(len(x), -1).astype(joined.dtype)


def _rotated_part_first(key: Key, inputs: Inputs, site: RuntimeSite) -> Array:
    if key.stage not in ROTATED:
        return as_defined(key, inputs, site)
    rotary, size = site.geometry.dims(1)["rotary"], site.geometry.head_dim
    joined = np.array(inputs["qkv_bias"])
    columns = parts(site.geometry)[key.stage[0]]
    heads = joined[:, columns].reshape(len(joined), -1, size)
    joined[:, columns] = np.roll(heads, -rotary, axis=-1).reshape(len(joined), -1)
    made = as_defined(key, {"qkv_bias": joined}, site).reshape(heads.shape)
    return np.roll(made, rotary, axis=-1).reshape(len(joined), -1)


BUGS: Mapping[str, tuple[str, int, Change | Step, tuple[str, ...], str, str]] = {
    "YaRN's attention factor left out": (
        "ernie4_5-biased-untied-yarn",
        1,
        _rope(attention_factor=1.0),
        ROTATED,
        "rope-scaling",
        "RoPE without the attention factor",
    ),
    "a layer without RoPE is rotated": (
        "smollm3",
        1,
        _always(rotated=()),
        ROTATED,
        "rope-applied",
        "RoPE with base",
    ),
    "partial rotary ignored": (
        "stablelm",
        1,
        _rope(partial_rotary_factor=1.0),
        ROTATED,
        "rope-partial",
        "each head rotated as a whole",
    ),
    "a multiplier forgotten": (
        "granite",
        1,
        _always(residual_scale=1.0),
        ("post_attn_residual", "post_ffn_residual"),
        "multiplier",
        "the residual multiplier 0.22 left out",
    ),
    "sinks dropped": ("gpt_oss", 1, _always(sinks=False), ("attn_softmax",), "sinks", "the sinks left out"),
    "the window ignored beside sinks": (
        "gpt_oss",
        0,
        _always(windows=(None, None)),
        ("attn_softmax",),
        "mask",
        "no sliding window",
    ),
    "experts not clamped": (
        "gpt_oss",
        1,
        _always(expert_limit=None),
        ("ffn_out",),
        "expert-form",
        "no clamp of gate and up",
    ),
    "the sigmoid's 1.702 left out": (
        "gpt_oss",
        1,
        _always(expert_alpha=1.0),
        ("ffn_out",),
        "expert-form",
        "the 1.702 within the experts' sigmoid left out",
    ),
    "up without its 1": (
        "gpt_oss",
        1,
        _always(expert_shift=0.0),
        ("ffn_out",),
        "expert-form",
        "up without the 1 added",
    ),
    "YaRN's mscale not in the scale of the scores": (
        "deepseek_v3",
        1,
        _scale(lambda geometry: geometry.head_dim**-0.5),
        ("attn_scores",),
        "multiplier",
        "YaRN's mscale left out of the scale of the scores",
    ),
    "YaRN's mscale in the scale, but not squared": (
        "deepseek_v2",
        1,
        _scale(lambda geometry: (geometry.head_dim**-0.5 * geometry.attn_scale_at(1)) ** 0.5),
        ("attn_scores",),
        "multiplier",
        "YaRN's mscale once, not squared",
    ),
    "the norm of kv's latent left out": (
        "deepseek_v3",
        1,
        _without_latent_norm,
        ("kv_latent_norm",),
        "norm-form",
        "the norm skipped",
    ),
    "the rotated part's pairs taken side by side": (
        "youtu",
        1,
        _pairs_side_by_side,
        ROTATED,
        "rope-pairing",
        "rotary pairs (0, 1), (2, 3)",
    ),
    "the first channels of a head rotated, not the last": (
        "deepseek_v2-direct-greedy-biased",
        1,
        _rotated_part_first,
        ROTATED,
        "head-parts",
        "the first 12 channels of each head rotated",
    ),
    "the shared expert dropped": (
        "deepseek_v3",
        1,
        _always(shared_intermediate=0),
        ("ffn_out",),
        "shared-expert",
        "the shared expert left out",
    ),
    "the group limit ignored": (
        "deepseek_v2",
        1,
        _always(expert_groups=1, expert_groups_chosen=1, group_best=1),
        ("moe_router_indices",),
        "expert-groups",
        "experts chosen from all groups",
    ),
    "chunks ignored": ("llama4_text", 0, _always(chunks=()), ("attn_softmax",), "mask", "no chunks"),
    "a window for chunks": (
        "llama4_text",
        0,
        _always(chunks=(), windows=(5, 5)),
        ("attn_softmax",),
        "mask",
        "a sliding window of 5 for chunks",
    ),
    "the router's weight applied after the expert": (
        "llama4_text",
        1,
        _always(weighted_input=False),
        ("ffn_out",),
        "expert-form",
        "the router's weights applied to what the experts make",
    ),
    "the shared expert's gate left out": (
        "qwen3_next",
        0,
        _always(shared_gated=False),
        ("ffn_out",),
        "shared-expert",
        "the shared expert without the sigmoid of its gate",
    ),
}
"""Bug -> recipe, layer, how the port's geometry or steps differ, the wrong stages, the cause, its words."""


STEPS = (_without_latent_norm, _pairs_side_by_side, _rotated_part_first)
"""The changes that are of steps."""


FORMULAS: Mapping[str, tuple[str, int, Formula, str, str, str]] = {
    "the attention temperature left out": (
        "llama4_text-unnormed-biased-tied",
        1,
        from_input("q_post_rope"),
        "q_tempered",
        "attention-temperature",
        "the attention temperature left out",
    ),
    "a convolution shifted by one": (
        "qwen3_next",
        0,
        recurrent.conv_shifted,
        "conv_out",
        "convolution",
        "a convolution that sees the tokens before",
    ),
    "the decay's sign wrong": (
        "qwen3_next",
        0,
        recurrent.decay_sign,
        "decay",
        "decay",
        "the decay with the other sign",
    ),
    "the decay's softplus left out": (
        "qwen3_next",
        0,
        recurrent.without_softplus,
        "decay",
        "decay",
        "the decay without softplus",
    ),
    "a state that is not carried": (
        "qwen3_next",
        0,
        recurrent.state_lost,
        "scan_out",
        "state",
        "a scan whose state begins anew",
    ),
    "the gate of attention left out": (
        "qwen3_next",
        1,
        from_input("attention"),
        "attn_gated",
        "gate",
        "the gate of attention's output left out",
    ),
    **STATE_SPACES,
}
"""Bug -> recipe, layer, how the port computes a stage, that stage, the cause, some of its words."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    class Made(dict[str, Model]):
        def __missing__(self, recipe: str) -> Model:
            self[recipe] = open_model(make_checkpoint(tmp_path_factory.mktemp(recipe), recipe, layers=2))
            return self[recipe]

    return Made()


def run(model: Model, step: Step = as_defined, **changes: Any) -> Trace:
    geometry = replace(model.geometry, **changes)
    ported = replace(model, geometry=geometry, weights=replace(model.weights, geometry=geometry))
    request = request_for(ported, tokens=12)
    return replace(capture(ported, request, MemorySink(), step=step), geometry=model.geometry)


@pytest.mark.parametrize("bug", BUGS)
def test_a_reported_bug_is_located_and_named(bug: str, models: dict[str, Model]) -> None:
    recipe, layer, change, stages, cause, words = BUGS[bug]
    model = models[recipe]
    subject = run(model, change) if change in STEPS else run(model, **change(model.geometry))
    found = bisect(run(model), subject, weights=model.weights, layers=[layer])

    assert found.breakdowns == ()
    assert {(each.layer, *each.stages) for each in found.sources} == {(layer, stage) for stage in stages}
    for each in found.sources:
        assert each.cause is not None
        assert (each.cause[0], words in each.cause[1]) == (cause, True), each.cause


@pytest.mark.parametrize("bug", FORMULAS)
def test_a_bug_of_a_layer_without_attention_is_located_and_named(bug: str, models: dict[str, Model]) -> None:
    recipe, layer, formula, stage, cause, words = FORMULAS[bug]
    model = models[recipe]

    def step(key: Key, inputs: Inputs, site: RuntimeSite) -> Array:
        if key != Key(layer, stage):
            return as_defined(key, inputs, site)
        return formula(Scene(name=stage, inputs=inputs, site=site, seed=0))

    subject = capture(model, request_for(model, tokens=12), MemorySink(), step=step)
    found = bisect(run(model), subject, weights=model.weights, layers=[layer])

    assert found.breakdowns == ()
    (source,) = found.sources
    assert (source.layer, source.stages) == (layer, (stage,))
    assert source.cause is not None
    assert (source.cause[0], words in source.cause[1]) == (cause, True), source.cause


def _rows() -> dict[str, str]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return {line.split("|")[1].strip(): line for line in lines if "| `" in line}


def test_the_page_says_of_each_bug_what_is_found() -> None:
    said = _rows()
    assert list(said) == [*BUGS, *FORMULAS]
    for bug, (_, _, _, stage, cause, words) in FORMULAS.items():
        assert all(f"`{word}`" in said[bug] for word in (stage, cause))
        assert words in said[bug]
    for bug, (_, _, _, stages, cause, words) in BUGS.items():
        assert all(f"`{word}`" in said[bug] for word in (*stages, cause))
        assert words in said[bug]
