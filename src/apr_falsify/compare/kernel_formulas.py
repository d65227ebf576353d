"""Each stage as lines of NumPy over exported files alone: what a porter reads beside one kernel's data.

The names in a formula are those of the exported arrays and constants; expert weights are mappings from the
expert's number. tests/unit/compare/test_kernel_case.py runs every formula on the files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from apr_falsify.model.families import Norm
from apr_falsify.model.shape import Geometry

Lines = tuple[str, ...]


def _norm(stage: str, x: str, role: str, geometry: Geometry) -> Lines:
    if geometry.row.norm is Norm.LAYER:
        return (
            f"centred = {x} - np.mean({x}, axis=-1, keepdims=True)",
            "spread = np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + norm_eps)",
            f"{stage} = centred / spread * {role}_weight + {role}_bias",
        )
    return (f"{stage} = {x} / np.sqrt(np.mean({x}**2, axis=-1, keepdims=True) + norm_eps) * {role}_weight",)


def _projected(stage: str, x: str, role: str, biased: bool, post: str, geometry: Geometry) -> Lines:
    line = f"{x} @ {role}_weight.T" + (f" + {role}_bias" if biased else "")
    if not post or not geometry.row.post_norms:
        return (f"{stage} = {line}",)
    return (f"product = {line}", *_norm(stage, "product", post, geometry))


def _embedding(geometry: Geometry, layer: int | None) -> Lines:
    scale = " * embed_scale" if geometry.embed_scale != 1.0 else ""
    positions = " + position_rows" if geometry.positions else ""
    return (f"embedding = embed_rows{scale}{positions}",)


def _rotated(role: str) -> Callable[[Geometry, int | None], Lines]:
    columns = {"q": "[:, : heads * head_dim]", "k": "[:, heads * head_dim : -kv_heads * head_dim]"}[role]

    def lines(geometry: Geometry, layer: int | None) -> Lines:
        normed = _norm("x", "x", f"{role}_norm", geometry) if geometry.row.qk_norm else ()
        return (
            f"x = qkv_bias{columns}.reshape(tokens, -1, head_dim)",
            *normed,
            "angles = np.arange(tokens)[:, None, None] * np.array(rope_frequencies)",
            "cos, sin = np.cos(angles) * rope_factor, np.sin(angles) * rope_factor",
            "half = len(rope_frequencies)",
            "a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]",
            "turned = np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)",
            f"{role}_post_rope = turned.reshape(tokens, -1)",
        )

    return lines


def _capped(stage: str, value: str, cap: str, geometry: Geometry) -> Lines:
    return (f"{stage} = {value}",) + ((f"{stage} = np.tanh({stage} / {cap}) * {cap}",) if cap else ())


def _scores(geometry: Geometry, layer: int | None) -> Lines:
    cap = "" if geometry.attn_softcap is None else "attn_softcap"
    return (
        "q = q_post_rope.reshape(tokens, heads, head_dim).swapaxes(0, 1)",
        "k = k_post_rope.reshape(tokens, kv_heads, head_dim).swapaxes(0, 1)",
        "k = np.repeat(k, heads // kv_heads, axis=0)",
        *_capped("attn_scores", "q @ k.swapaxes(1, 2) * scale", cap, geometry),
    )


def _softmax(geometry: Geometry, layer: int | None) -> Lines:
    assert layer is not None
    windowed = "" if geometry.windows[layer] is None else " & (back < window)"
    return (
        "back = np.arange(tokens)[:, None] - np.arange(tokens)",
        f"visible = (back >= 0){windowed}",
        "masked = np.where(visible, attn_scores, -np.inf)",
        "weights = np.exp(masked - np.max(masked, axis=-1, keepdims=True))",
        "attn_softmax = weights / np.sum(weights, axis=-1, keepdims=True)",
    )


def _attention(geometry: Geometry, layer: int | None) -> Lines:
    return (
        "v = qkv_bias[:, -kv_heads * head_dim :].reshape(tokens, kv_heads, head_dim).swapaxes(0, 1)",
        "v = np.repeat(v, heads // kv_heads, axis=0)",
        "attention = (attn_softmax @ v).swapaxes(0, 1).reshape(tokens, -1)",
    )


_ACTIVATIONS: Mapping[str, str] = {
    "silu": "{x} / (1 + np.exp(-{x}))",
    "gelu_new": "{x} / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * ({x} + 0.044715 * {x}**3)))",
    "gelu_pytorch_tanh": "{x} / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * ({x} + 0.044715 * {x}**3)))",
}


def _activation(x: str, geometry: Geometry) -> str:
    return _ACTIVATIONS[geometry.activation].format(x=x)


def _routing(x: str) -> Lines:
    return (
        f"logits = {x} @ router_weight.T",
        "odds = np.exp(logits - np.max(logits, axis=-1, keepdims=True))",
        "odds = odds / np.sum(odds, axis=-1, keepdims=True)",
    )


def _chosen(stage: str, geometry: Geometry) -> Lines:
    taken = f"{stage} = np.take_along_axis(odds, chosen, axis=-1)"
    if not geometry.norm_topk_prob:
        return (taken,)
    return taken, f"{stage} = {stage} / np.sum({stage}, axis=-1, keepdims=True)"


def _mixed(stage: str, x: str, geometry: Geometry) -> Lines:
    return (
        f"{stage} = np.zeros_like({x})",
        "for token, experts in enumerate(chosen):",
        "    for slot, e in enumerate(experts):",
        f"        gate = {x}[token] @ expert_gate_weight[e].T",
        f"        hidden = {_activation('gate', geometry)} * ({x}[token] @ expert_up_weight[e].T)",
        f"        {stage}[token] += shares[token, slot] * (hidden @ expert_down_weight[e].T)",
    )


_CHOICE = "chosen = np.argsort(-odds, axis=-1, kind='stable')[:, :experts_per_token]"


def _ffn_out(geometry: Geometry, layer: int | None) -> Lines:
    if geometry.is_mixture(layer):
        x = "ffn_swigl"
        return (*_routing(x), _CHOICE, *_chosen("shares", geometry), *_mixed("ffn_out", x, geometry))
    return _projected("ffn_out", "ffn_swigl", "down", geometry.mlp_bias, "ffn_post_norm", geometry)


def _moe_router(geometry: Geometry, layer: int | None) -> Lines:
    return (
        *_routing("ffn_norm[-1:]"),
        "chosen = moe_router_indices[None].astype(int)",
        *_chosen("shares", geometry),
        "moe_router = shares[0]",
    )


def _moe_ffn_out(geometry: Geometry, layer: int | None) -> Lines:
    return (
        "last = ffn_norm[-1:]",
        "chosen, shares = moe_router_indices[None].astype(int), moe_router[None]",
        *_mixed("mixed", "last", geometry),
        "moe_ffn_out = mixed[0]",
    )


def _lm_head(geometry: Geometry, layer: int | None) -> Lines:
    cap = "" if geometry.final_softcap is None else "final_softcap"
    return _capped("lm_head", "final_norm[-1] @ lm_head_weight.T", cap, geometry)


_Formula = Callable[[Geometry, int | None], Lines]


def _residual(stage: str, before: str, added: str) -> _Formula:
    return lambda geometry, layer: (f"{stage} = {before} + {added}",)


def _normed(stage: str, x: str) -> _Formula:
    return lambda geometry, layer: _norm(stage, x, stage, geometry)


_FORMULAS: Mapping[str, _Formula] = {
    "embedding": _embedding,
    "attn_norm": _normed("attn_norm", "layer_input"),
    "qkv_matmul": lambda geometry, layer: (
        "qkv_matmul = attn_norm @ np.concatenate([q_weight, k_weight, v_weight]).T",
    ),
    "qkv_bias": lambda geometry, layer: ("qkv_bias = qkv_matmul + np.concatenate([q_bias, k_bias, v_bias])",),
    "q_post_rope": _rotated("q"),
    "k_post_rope": _rotated("k"),
    "attn_scores": _scores,
    "attn_softmax": _softmax,
    "attention": _attention,
    "attn_out": lambda geometry, layer: _projected(
        "attn_out", "attention", "o", geometry.output_bias, "attn_post_norm", geometry
    ),
    "post_attn_residual": _residual("post_attn_residual", "layer_input", "attn_out"),
    "ffn_norm": _normed("ffn_norm", "post_attn_residual"),
    "ffn_gate": lambda geometry, layer: _projected(
        "ffn_gate", "ffn_norm", "gate", geometry.mlp_bias, "", geometry
    ),
    "ffn_up": lambda geometry, layer: _projected("ffn_up", "ffn_norm", "up", geometry.mlp_bias, "", geometry),
    "ffn_silu": lambda geometry, layer: (f"ffn_silu = {_activation('ffn_gate', geometry)}",),
    "ffn_swigl": lambda geometry, layer: ("ffn_swigl = ffn_silu * ffn_up",),
    "ffn_out": _ffn_out,
    "post_ffn_residual": _residual("post_ffn_residual", "post_attn_residual", "ffn_out"),
    "moe_router": _moe_router,
    "moe_ffn_out": _moe_ffn_out,
    "moe_router_indices": lambda geometry, layer: (
        *_routing("ffn_norm[-1:]"),
        _CHOICE,
        "moe_router_indices = chosen[0]",
    ),
    "final_norm": _normed("final_norm", "post_ffn_residual"),
    "lm_head": _lm_head,
}
"""Stage -> its formula; names as in ``ops.FORMULAS``, of which it says the same in words of files."""


def formula(name: str, geometry: Geometry, layer: int | None) -> Lines:
    """Return the lines of NumPy that compute stage ``name`` into a variable of that name."""
    return _FORMULAS[name](geometry, layer)
