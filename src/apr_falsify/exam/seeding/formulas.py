"""Wrong formulas of single stages, each one that a port has really had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.exam.seeding.scene import Formula, Scene
from apr_falsify.model.passes import Passes
from apr_falsify.model.reach import seen_keys
from apr_falsify.model.stages import LAYER_INPUT
from apr_falsify.model.wiring import has_stage, node_of
from apr_falsify.numerics.arithmetic import round_bf16
from apr_falsify.operators import norms
from apr_falsify.operators.feedforward import silu
from apr_falsify.operators.operator import Array
from apr_falsify.operators.rotation import rope_frequencies, rotate

F64 = npt.NDArray[np.float64]
Mask = Callable[[npt.NDArray[np.intp], Scene], npt.NDArray[np.bool_]]
"""Whether a token sees a key, by how far back the key lies ([S, S], negative ahead)."""


def shifted_row(scene: Scene) -> Array:
    """Read the embedding's next row."""
    tokens = tuple((token + 1) % scene.geometry.vocab for token in scene.site.tokens)
    return scene.site.moved(tokens=tokens).run(scene.name, scene.inputs)


def other_epsilon(scene: Scene) -> Array:
    """Use the epsilon of another family."""
    eps = scene.geometry.norm_eps
    return scene.in_geometry(replace(scene.geometry, norm_eps=1e-3 if eps < 1e-4 else 1e-6))


def _norm_parts(scene: Scene) -> tuple[Array, Array]:
    """Return the norm's input and its weight."""
    (x,) = (scene.inputs[name] for name in scene.inputs)
    return x, scene.site.vector(scene.name)


def _normed(scene: Scene, x: Array, weight: Array, role: str) -> Array:
    """Return ``x`` through the family's norm with another weight, and ``role``'s bias where it has one."""
    geometry = scene.geometry
    final = node_of("final_norm", geometry, None)
    if final.operator == "layer_norm":
        bias = scene.site.vector(f"{role}_bias") if "final_norm_bias" in final.roles else None
        return norms.layer_norm(x, weight, bias, geometry.norm_eps)
    return norms.rms_norm(x, weight, geometry.norm_eps)


def unweighted_norm(scene: Scene) -> Array:
    """Leave the norm's weight out."""
    x, weight = _norm_parts(scene)
    return _normed(scene, x, np.ones_like(weight), scene.name)


def offset_norm(scene: Scene) -> Array:
    """Use 1 + weight, as Gemma does."""
    x, weight = _norm_parts(scene)
    return _normed(scene, x, 1 + weight, scene.name)


def layer_norm(scene: Scene) -> Array:
    """Subtract the mean, as LayerNorm does."""
    x, weight = _norm_parts(scene)
    return norms.rms_norm(x - np.mean(x, axis=-1, keepdims=True), weight, scene.geometry.norm_eps)


def other_norm(role: str) -> Formula:
    """Use the weight of the norm in ``role``."""

    def wrong(scene: Scene) -> Array:
        x, _ = _norm_parts(scene)
        layer = scene.geometry.layers - 1 if scene.site.layer is None else scene.layer
        weight = scene.site.moved(layer=layer).vector(role)
        return _normed(scene, x, weight, scene.name)

    return wrong


def bias_times(roles: str, times: float) -> Formula:
    """Add the biases of ``roles`` ``times`` times: 0 leaves them out, 2 doubles them."""

    def wrong(scene: Scene) -> Array:
        right = scene.right().copy()
        for role in roles:
            right[:, scene.columns(role)] += (times - 1) * scene.site.vector(f"{role}_bias")
        return right

    return wrong


def swapped_parts(first: str, second: str) -> Formula:
    """Write q, k and v in another order."""

    def wrong(scene: Scene) -> Array:
        right = scene.right()
        order = {"q": "q", "k": "k", "v": "v", first: second, second: first}
        return np.concatenate([right[:, scene.columns(order[role])] for role in "qkv"], axis=-1)

    return wrong


def _role(scene: Scene) -> str:
    return scene.name[0]


def _rotated(scene: Scene, turn: Callable[[Array], Array]) -> Array:
    """Return q or k as ``turn`` makes it of the normed heads [S, heads, D], from the rotated channels on."""
    still, size = _unrotated(scene), scene.geometry.head_dim
    start = scene.geometry.rotary_start(scene.site.layer)
    before, heads = np.split(still.reshape(len(still), -1, size), [start], axis=-1)
    return np.concatenate((before, turn(heads)), axis=-1).reshape(still.shape)


def _unrotated(scene: Scene) -> Array:
    """Return what enters the rotation: q or k after their norm, where they have one."""
    x = scene.inputs["qkv_bias"][:, scene.columns(_role(scene))]
    if not has_stage("q_norm", scene.geometry, scene.layer):
        return x
    return _through_norm(scene, x, _role(scene))


def _through_norm(scene: Scene, x: Array, role: str) -> Array:
    """Return ``x`` [S, heads * D] through the norm of q or of k: of each head, or over all, by its width."""
    weight = scene.site.vector(f"{role}_norm")
    groups = x.reshape(len(x), -1, len(weight))
    return norms.rms_norm(groups, weight, scene.geometry.norm_eps).reshape(x.shape)


def _angles(scene: Scene, first: float = 0.0) -> tuple[F64, float]:
    """Return the angles, [S, pairs], and the factor on cos and sin."""
    frequencies, factor = rope_frequencies(scene.rope, scene.geometry.head_dim, scene.tokens)
    return np.outer(np.arange(scene.tokens) + first, frequencies), factor


def _rotate(heads: Array, cos: F64, sin: F64) -> Array:
    """Turn as many pairs as the tables [S, pairs] have, half-split over the first channels."""
    half = cos.shape[-1]
    c, s = (table.astype(heads.dtype)[:, None, :] for table in (cos, sin))
    a, b, still = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    return np.concatenate((a * c - b * s, b * c + a * s, still), axis=-1)


def _by_angles(scene: Scene, angles: F64, factor: float) -> Array:
    cos, sin = np.cos(angles) * factor, np.sin(angles) * factor
    return _rotated(scene, lambda heads: _rotate(heads, cos, sin))


def positions_from(first: float, role: str = "qk") -> Formula:
    """Count positions from ``first`` for the parts in ``role``."""

    def wrong(scene: Scene) -> Array:
        return _by_angles(scene, *_angles(scene, first)) if _role(scene) in role else scene.right()

    return wrong


def not_rotated(scene: Scene) -> Array:
    """Skip the rotation."""
    return np.array(_unrotated(scene))


def rotated_backwards(scene: Scene) -> Array:
    """Turn the other way."""
    angles, factor = _angles(scene)
    return _by_angles(scene, -angles, factor)


def interleaved(scene: Scene) -> Array:
    """Pair neighbouring channels, where the model pairs halves."""
    angles, factor = _angles(scene)
    cos, sin = np.cos(angles) * factor, np.sin(angles) * factor

    def turn(heads: Array) -> Array:
        width = 2 * cos.shape[-1]
        first, still = heads[..., :width], heads[..., width:]
        pairs = first.reshape(*first.shape[:-1], -1, 2).swapaxes(-1, -2).reshape(first.shape)
        turned = _rotate(pairs, cos, sin).reshape(*first.shape[:-1], 2, -1)
        return np.concatenate((turned.swapaxes(-1, -2).reshape(first.shape), still), axis=-1)

    return _rotated(scene, turn)


def partly_rotated(scene: Scene) -> Array:
    """Turn only the first half of the pairs."""
    angles, factor = _angles(scene)
    angles[:, angles.shape[1] // 2 :] = 0
    return _by_angles(scene, angles, factor)


def coarse_angles(scene: Scene) -> Array:
    """Keep the tables of cos and sin in bfloat16."""
    angles, factor = _angles(scene)
    cos, sin = (round_bf16(f(angles) * factor).astype(np.float64) for f in (np.cos, np.sin))
    return _rotated(scene, lambda heads: _rotate(heads, cos, sin))


def exponent_by_pairs(scene: Scene) -> Array:
    """Take theta ** -(i / D) for pair i, without its factor of 2."""
    width = scene.rope.width(scene.geometry.head_dim)
    angles = np.outer(np.arange(scene.tokens), scene.rope.theta ** -(np.arange(width // 2) / width))
    return _by_angles(scene, angles, 1.0)


def theta_times(factor: float) -> Formula:
    """Use another rotary base."""
    return lambda scene: scene.re_rope(theta=scene.rope.theta * factor)


def unscaled_rope(scene: Scene) -> Array:
    """Ignore the model's rope scaling."""
    return scene.re_rope(kind="default", parameters={})


def linear_rope(factor: float) -> Formula:
    """Interpolate positions where the model does not."""
    return lambda scene: scene.re_rope(kind="linear", parameters={"factor": factor})


def without_head_norm(scene: Scene) -> Array:
    """Skip the norm of the heads before the rotation."""
    heads = scene.inputs["qkv_bias"][:, scene.columns(_role(scene))]
    start = scene.geometry.rotary_start(scene.site.layer)
    return rotate(heads, scene.rope, scene.geometry.head_dim, start=start)


def head_norm_after_rope(scene: Scene) -> Array:
    """Norm the heads after the rotation, not before it."""
    return _through_norm(scene, without_head_norm(scene), _role(scene))


def other_head_norm(scene: Scene) -> Array:
    """Use k's norm for q, or q's for k."""
    heads = scene.inputs["qkv_bias"][:, scene.columns(_role(scene))]
    normed = _through_norm(scene, heads, "k" if _role(scene) == "q" else "q")
    return rotate(normed, scene.rope, scene.geometry.head_dim)


def _chosen_heads(x: Array, choice: npt.NDArray[np.intp], head_dim: int) -> Array:
    heads = x.reshape(len(x), -1, head_dim)
    return np.ascontiguousarray(heads[:, choice].reshape(len(x), -1))


def mapped(name: str, choose: Callable[[npt.NDArray[np.intp], int], npt.NDArray[np.intp]]) -> Formula:
    """Let query head h read kv head ``choose(h, K)``, where it should read h // (H / K)."""

    def wrong(scene: Scene) -> Array:
        geometry = scene.geometry
        choice = choose(np.arange(geometry.heads), geometry.kv_heads)
        x = scene.inputs[name]
        kv = x[:, scene.columns("v")] if name == "qkv_bias" else x
        size = geometry.value_dim if name == "qkv_bias" else geometry.head_dim
        spread = _chosen_heads(kv, choice, size)
        ungrouped = replace(geometry, kv_heads=geometry.heads)
        site = scene.site.moved(geometry=ungrouped)
        fed = np.concatenate((spread, spread, spread), axis=-1) if name == "qkv_bias" else spread
        return site.run(scene.name, {**scene.inputs, name: fed})

    return wrong


def soft_capped(cap: float) -> Formula:
    """Soft-cap the scores, as Gemma 2 does."""
    return lambda scene: np.asarray(np.tanh(scene.right() / cap) * cap, dtype=scene.right().dtype)


def masked(sees: Mask) -> Formula:
    """Let each token see other keys than it should; one that sees none sees itself."""

    def wrong(scene: Scene) -> Array:
        scores = scene.inputs["attn_scores"]
        back = np.arange(scene.tokens)[:, None] - np.arange(scene.tokens)[None, :]
        visible = np.asarray(sees(back, scene))
        visible |= (back == 0) & ~np.any(visible, axis=1, keepdims=True)
        hidden = np.where(visible, scores, -np.inf)
        return _with_sinks(scene, hidden) if scene.geometry.sinks else softmax(hidden)

    return wrong


def _with_sinks(scene: Scene, hidden: Array, sinks: Array | None = None) -> Array:
    """Return softmax over ``hidden`` and a logit per head, the model's own sinks where none are given."""
    logits = (scene.site.vector("sinks") if sinks is None else sinks).astype(hidden.dtype)
    spread = np.broadcast_to(logits[:, None, None], (*hidden.shape[:-1], 1))
    return np.asarray(softmax(np.concatenate((hidden, spread), axis=-1))[..., :-1])


def _visible(scene: Scene) -> npt.NDArray[np.bool_]:
    return seen_keys(scene.geometry, scene.layer, Passes.whole(scene.tokens))


def one_sink(scene: Scene) -> Array:
    """Take the first head's sink for all of them."""
    visible = _visible(scene)
    sinks = scene.site.vector("sinks")
    hidden = np.where(visible, scene.inputs["attn_scores"], -np.inf)
    return _with_sinks(scene, hidden, np.full_like(sinks, sinks[0]))


def otherwise(**changed: Any) -> Formula:
    """Compute the stage as a model does whose geometry differs."""
    return lambda scene: scene.in_geometry(replace(scene.geometry, **changed))


def softmax(scores: Array, sink: float = 0.0) -> Array:
    """Return the weights of scores [..., keys], ``sink`` added to the denominator."""
    top = np.max(scores, axis=-1, keepdims=True)
    weights = np.exp(scores - top)
    total = np.sum(weights, axis=-1, keepdims=True)
    return np.asarray(weights / (total + sink * np.exp(-top) if sink else total))


def with_sink(scene: Scene) -> Array:
    """Add 1 to the softmax's denominator ("off by one" softmax)."""
    visible = _visible(scene)
    return softmax(np.where(visible, scene.inputs["attn_scores"], -np.inf), 1.0)


def tempered(factor: float) -> Formula:
    """Apply a temperature within the softmax."""

    def wrong(scene: Scene) -> Array:
        scores = scene.inputs["attn_scores"]
        return scene.fed(attn_scores=scores * scores.dtype.type(factor))

    return wrong


def window_of(scene: Scene) -> int:
    """Return the layer's window, the whole run where it has none."""
    return scene.geometry.windows[scene.layer] or scene.tokens


def heads_not_transposed(scene: Scene) -> Array:
    """Write [H, S, D] where [S, H, D] is read."""
    right = scene.right()
    heads = right.reshape(len(right), -1, scene.geometry.value_dim).swapaxes(0, 1)
    return np.ascontiguousarray(heads).reshape(right.shape)


def term(name: str, times: float) -> Formula:
    """Add the term ``name`` of a residual ``times`` times."""

    def wrong(scene: Scene) -> Array:
        x = scene.inputs[name]
        return np.asarray(scene.right() + x * x.dtype.type(times - 1))

    return wrong


def normed_stream(scene: Scene) -> Array:
    """Add to the normed stream instead of the stream itself."""
    stream = scene.inputs[LAYER_INPUT]
    normed = _normed(scene, stream, scene.site.vector("attn_norm"), "attn_norm")
    return scene.right() - stream + normed


def activated(function: Callable[[Array], Array]) -> Formula:
    """Use another activation."""
    return lambda scene: np.asarray(function(scene.inputs["ffn_gate"]), dtype=scene.inputs["ffn_gate"].dtype)


def gelu_tanh(x: Array) -> Array:
    """Return GELU by its tanh approximation."""
    return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


def hard_silu(x: Array) -> Array:
    """Return x * clip(x / 6 + 1/2, 0, 1), the cheap stand-in for SiLU."""
    return np.asarray(x * np.clip(x / 6 + 0.5, 0, 1))


def activated_twice(scene: Scene) -> Array:
    """Activate the gate once more before the product."""
    return scene.fed(ffn_silu=silu(scene.inputs["ffn_silu"]))


def summed(scene: Scene) -> Array:
    """Add gate and up instead of multiplying them."""
    return np.asarray(scene.inputs["ffn_silu"] + scene.inputs["ffn_up"])


def logits_of_token_before(scene: Scene) -> Array:
    """Take the logits of the token before the last one."""
    return scene.fed(final_norm=scene.inputs["final_norm"][..., :-1, :])
