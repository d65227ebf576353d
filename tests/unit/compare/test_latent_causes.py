"""What ports of latent attention get wrong, made by hand on small models: each is located, and named."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from apr_falsify.compare.localise import bisect
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.stages import APR_STAGES, STAGES, Key
from apr_falsify.operators.heads import parts
from apr_falsify.operators.operator import Array, Inputs
from apr_falsify.subjects.embedded import Step, as_defined, capture
from apr_falsify.subjects.kernel import RuntimeSite
from apr_falsify.traces.capture import MemorySink, Request
from tests.checkpoints import make_checkpoint

WITHOUT_SCORES = tuple(name for name in APR_STAGES if name not in ("attn_scores", "attn_softmax"))
"""What a port with a fused kernel shows."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Model]:
    class Made(dict[str, Model]):
        def __missing__(self, recipe: str) -> Model:
            self[recipe] = open_model(make_checkpoint(tmp_path_factory.mktemp("m"), recipe, layers=2))
            return self[recipe]

    return Made()


def at(stage: str, wrong: Callable[[Inputs, RuntimeSite], Array]) -> Step:
    """Compute one stage of layer 1 wrongly."""

    def step(key: Key, inputs: Inputs, site: RuntimeSite) -> Array:
        made = as_defined(key, inputs, site)
        return wrong(inputs, site).astype(made.dtype) if key == Key(1, stage) else made

    return step


def _skipped(part: str) -> Callable[[Inputs, RuntimeSite], Array]:
    def wrong(inputs: Inputs, site: RuntimeSite) -> Array:
        latent = site.run(f"{part}_latent", inputs)
        return site.run("qkv_matmul", {**inputs, f"{part}_latent_norm": latent})

    return wrong


def _unweighted(inputs: Inputs, site: RuntimeSite) -> Array:
    normed = site.run("kv_latent_norm", inputs) / site.vector("kv_a_norm")
    return site.run("qkv_matmul", {**inputs, "kv_latent_norm": normed})


def _other_epsilon(inputs: Inputs, site: RuntimeSite) -> Array:
    latent = site.run("q_latent", inputs)
    normed = latent / np.sqrt(np.mean(latent**2, axis=-1, keepdims=True) + 1e-3) * site.vector("q_a_norm")
    return site.run("qkv_matmul", {**inputs, "q_latent_norm": normed})


def _v_first(inputs: Inputs, site: RuntimeSite) -> Array:
    up = site.run("kv_up", inputs)
    heads = up.reshape(len(up), site.geometry.kv_heads, -1)
    width = site.geometry.value_dim
    swapped = np.concatenate((heads[..., width:], heads[..., :width]), axis=-1)
    return site.run("qkv_matmul", {**inputs, "kv_up": swapped.reshape(up.shape)})


def _q_rotated_part_first(inputs: Inputs, site: RuntimeSite) -> Array:
    made = site.run("q_post_rope", inputs)
    heads = made.reshape(len(made), site.geometry.heads, -1)
    return np.roll(heads, site.geometry.dims(1)["rotary"], axis=-1).reshape(made.shape)


def _scaled(by: Callable[[RuntimeSite], float]) -> Callable[[Inputs, RuntimeSite], Array]:
    def wrong(inputs: Inputs, site: RuntimeSite) -> Array:
        joined = np.array(inputs["qkv_bias"])
        found = site.run("attention", {**inputs, "q_post_rope": inputs["q_post_rope"] * by(site)})
        assert joined.shape[1] == parts(site.geometry)["v"].stop
        return found

    return wrong


CASES: Mapping[str, tuple[str, tuple[str, ...], str, Callable[[Inputs, RuntimeSite], Array], str, str]] = {
    "kv's norm skipped, and no latent shown": (
        "deepseek_v3",
        APR_STAGES,
        "qkv_matmul",
        _skipped("kv"),
        "latent-norm",
        "the norm skipped, of kv's latent",
    ),
    "q's norm skipped, and no latent shown": (
        "deepseek_v2",
        APR_STAGES,
        "qkv_matmul",
        _skipped("q"),
        "latent-norm",
        "the norm skipped, of q's latent",
    ),
    "kv's norm without its weight": (
        "youtu-direct-untied-one-width",
        APR_STAGES,
        "qkv_matmul",
        _unweighted,
        "latent-norm",
        "the norm's weight ignored, of kv's latent",
    ),
    "another epsilon in the latents' norms": (
        "youtu",
        APR_STAGES,
        "qkv_matmul",
        _other_epsilon,
        "epsilon",
        "epsilon 0.001 in the norm of q's latent",
    ),
    "v before k in kv_b": (
        "deepseek_v2",
        APR_STAGES,
        "qkv_matmul",
        _v_first,
        "head-parts",
        "v before k in each head of kv_b",
    ),
    "q's rotated part first": (
        "youtu",
        APR_STAGES,
        "q_post_rope",
        _q_rotated_part_first,
        "head-parts",
        "the rotated part of each head first",
    ),
    "YaRN's mscale left out of a fused kernel": (
        "deepseek_v3",
        WITHOUT_SCORES,
        "attention",
        _scaled(lambda site: site.geometry.head_dim**-0.5 / site.geometry.attn_scale_at(1)),
        "attention-scale",
        "YaRN's mscale left out of the scale of the scores",
    ),
    "the width of k's own part in the scale": (
        "deepseek_v2",
        WITHOUT_SCORES,
        "attention",
        _scaled(lambda site: (site.geometry.head_dim / site.geometry.rotary_start(1)) ** 0.5),
        "attention-scale",
        "the width of k's own part, 16, in the scale of the scores",
    ),
}
"""Fault -> recipe, what the port shows, the wrong stage, how it is computed, the cause, some of its words."""


@pytest.mark.parametrize("case", CASES)
def test_a_fault_of_latent_attention_is_located_and_named(case: str, models: Mapping[str, Model]) -> None:
    recipe, shown, stage, wrong, cause, words = CASES[case]
    model = models[recipe]
    tokens = tuple(int(one) for one in np.random.default_rng(12).integers(0, model.geometry.vocab, 12))
    request = Request(tokens=tokens, layers=range(2), stages=shown)
    step = at(stage, wrong)
    if stage == "attention":  # of a kernel that is given q, k and v
        step = _fused(step)
    subject = capture(model, request, MemorySink(), step=step)
    whole = Request(tokens=tokens, layers=range(2), stages=tuple(STAGES))
    found = bisect(capture(model, whole, MemorySink()), subject, weights=model.weights, layers=[1])

    assert found.breakdowns == ()
    within = ("attn_scores", "attn_softmax") if stage == "attention" else ()
    assert [(each.layer, each.stages) for each in found.sources] == [(1, (*within, stage))]
    (source,) = found.sources
    assert source.cause is not None
    assert (source.cause[0], words in source.cause[1]) == (cause, True), source.cause


def _fused(step: Step) -> Step:
    """Hand the mix rotated q and k, as a kernel has them that does scores, softmax and mix in one."""
    seen: dict[str, Array] = {}

    def fused(key: Key, inputs: Inputs, site: RuntimeSite) -> Array:
        if key == Key(1, "attention"):
            return step(key, {**seen, "qkv_bias": inputs["qkv_bias"]}, site)
        made = step(key, inputs, site)
        if key.layer == 1 and key.stage.endswith("post_rope"):
            seen[key.stage] = made
        return made

    return fused
