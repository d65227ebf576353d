"""The wrong stages that tests of explanations go through: what is made of a stage, and its right name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import gguf
import numpy as np
import torch

from tests.unit.compare.wrong_stages import (
    F64,
    MODULO,
    OWN,
    TOKENS,
    D,
    E,
    H,
    K,
    Run,
    back,
    biases,
    k_of,
    merged,
    mixed,
    q_of,
    rms,
    rotated,
    rotated_pairs,
    scores,
    softmax,
    split,
    v_of,
    with_biases,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrong:
    """A fault: the stage, what it makes of it, and the cause that should be named."""

    stage: str
    cause: str
    says: str
    make: Callable[[Run], F64]
    f16: bool = True


def wrong(stage: str, cause: str, says: str, make: Callable[[Run], F64], *, f16: bool = True) -> Wrong:
    return Wrong(stage=stage, cause=cause, says=says, make=make, f16=f16)


def changed(x: F64, at: object, by: float) -> F64:
    x = x.copy()
    x[at] *= by  # type: ignore[index]
    return x


def moved(x: F64, by: int) -> F64:
    return x[np.clip(np.arange(len(x)) + by, 0, len(x) - 1)]


def causal(run: Run) -> F64:
    return back(len(run.trace.tokens)) >= 0


def gathered(weight: F64, shape: tuple[int, ...]) -> F64:
    return weight.reshape(weight.shape[0], -1, *shape).swapaxes(-1, -2).reshape(weight.shape)


def through(kind: str, weight: F64) -> F64:
    blocks = gguf.quants.quantize(weight.astype(np.float32), gguf.GGMLQuantizationType[kind])
    return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind]).astype(np.float64)


def layer_norm(run: Run) -> F64:
    x = torch.from_numpy(run["layer_input"])
    weight = torch.from_numpy(run.w("input_layernorm.weight"))
    return torch.nn.functional.layer_norm(x, (E,), weight, eps=1e-6).numpy()


def coarse_rotation(run: Run) -> F64:
    """RoPE with cos and sin kept in bf16, by complex numbers."""
    x = q_of(run).reshape(7, H, 2, D // 2)
    angles = torch.outer(torch.arange(7).double(), THETA ** (-torch.arange(0, D, 2).double() / D))
    cos, sin = (f(angles).bfloat16().double().numpy()[:, None] for f in (torch.cos, torch.sin))
    first, second = x[:, :, 0], x[:, :, 1]
    return np.stack((first * cos - second * sin, second * cos + first * sin), axis=2).reshape(7, -1)


Q, V = "self_attn.q_proj.weight", "self_attn.v_proj.weight"
WO, GATE, UP, DOWN = (
    "self_attn.o_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
)
THETA = 1e6

FAULTS: dict[str, Wrong] = {
    # any stage
    "doubled": wrong("attn_out", "factor", "x 2 ", lambda r: 2 * r["attn_out"]),
    "halved": wrong("ffn_out", "factor", "x 1/2", lambda r: 0.5 * r["ffn_out"]),
    "negated": wrong("ffn_up", "factor", "x -1", lambda r: -r["ffn_up"]),
    "all zero": wrong("ffn_gate", "factor", "all zeros", lambda r: 0 * r["ffn_gate"]),
    "1.01": wrong("ffn_norm", "factor", "x 1.01 ", lambda r: 1.01 * r["ffn_norm"], f16=False),
    "k alone scaled": wrong(
        "qkv_matmul",
        "factor",
        r"k x 1\.5",
        lambda r: changed(r["qkv_matmul"], np.s_[:, H * D : (H + K) * D], 1.5),
    ),
    "bf16": wrong(
        "ffn_out",
        "precision",
        "bf16",
        lambda r: torch.from_numpy(r["ffn_out"]).bfloat16().double().numpy(),
        f16=False,
    ),
    "clipped": wrong(
        "post_ffn_residual", "clipped", "clipped", lambda r: np.clip(r["post_ffn_residual"], -1, 1)
    ),
    # embedding
    "sqrt(E)": wrong("embedding", "factor", r"sqrt\(E\)", lambda r: 16 * r["embedding"]),
    "next row": wrong(
        "embedding", "other-row", r"id \+ 1", lambda r: r.w("model.embed_tokens.weight")[np.array(TOKENS) + 1]
    ),
    "an unknown token": wrong(
        "embedding",
        "other-row",
        r"223 \(token 2\): row 7",
        lambda r: r.w("model.embed_tokens.weight")[[274, 272, 7, 20, 13, 20, 33]],
    ),
    # norms
    "epsilon": wrong(
        "attn_norm",
        "epsilon",
        "epsilon 0.0001",
        lambda r: rms(r["layer_input"], r.w("input_layernorm.weight"), 1e-4),
        f16=False,
    ),
    "odd epsilon": wrong(
        "attn_norm",
        "epsilon",
        "epsilon 0.0023",
        lambda r: rms(r["layer_input"], r.w("input_layernorm.weight"), 0.0023),
        f16=False,
    ),
    "unweighted": wrong("attn_norm", "norm-form", "weight ignored", lambda r: rms(r["layer_input"], 1.0)),
    "1 + weight": wrong(
        "ffn_norm",
        "norm-form",
        r"1 \+ weight",
        lambda r: rms(r["post_attn_residual"], 1 + r.w("post_attention_layernorm.weight")),
    ),
    "layer norm": wrong("attn_norm", "norm-form", "LayerNorm", layer_norm),
    "norm skipped": wrong("ffn_norm", "norm-form", "skipped", lambda r: r["post_attn_residual"]),
    "norm before the residual": wrong(
        "ffn_norm",
        "norm-input",
        "attn_out",
        lambda r: rms(r["attn_out"], r.w("post_attention_layernorm.weight")),
    ),
    "the other norm": wrong(
        "ffn_norm",
        "other-weights",
        "attn_norm for ffn_norm",
        lambda r: rms(r["post_attn_residual"], r.w("input_layernorm.weight")),
    ),
    "a neighbour's norm": wrong(
        "attn_norm",
        "neighbour-weights",
        "layer 2",
        lambda r: rms(r["layer_input"], r.w("input_layernorm.weight", 2)),
    ),
    "norm channel": wrong(
        "attn_norm",
        "one-channel",
        r"channel 17: x 1\.15",
        lambda r: changed(r["attn_norm"], np.s_[:, 17], 1.15),
    ),
    # q, k and v
    "k before q": wrong(
        "qkv_matmul",
        "qkv-order",
        r"k\|q\|v",
        lambda r: np.concatenate(
            (r["qkv_matmul"][:, 256:320], r["qkv_matmul"][:, :256], r["qkv_matmul"][:, 320:]), 1
        ),
    ),
    "interleaved rows": wrong(
        "qkv_matmul",
        "rotary-order",
        "interleaved for half-split",
        lambda r: np.concatenate((gathered(r["qkv_matmul"][:, :320], (2, 16)), r["qkv_matmul"][:, 320:]), 1),
    ),
    "bias too early": wrong("qkv_matmul", "bias-included", "of q and k and v", lambda r: r["qkv_bias"]),
    "one row": wrong(
        "qkv_matmul",
        "one-channel",
        "q head 0|channel 5",
        lambda r: changed(r["qkv_matmul"], np.s_[:, 5], 1.01),
    ),
    "one head": wrong(
        "qkv_matmul",
        "one-head",
        r"q head 3: x 1\.1 ",
        lambda r: changed(r["qkv_matmul"], np.s_[:, 96:128], 1.1),
    ),
    "q of a neighbour": wrong(
        "qkv_matmul",
        "neighbour-weights",
        "q of layer 2",
        lambda r: np.concatenate((r["attn_norm"] @ r.w(Q, 2).T, r["qkv_matmul"][:, 256:]), 1),
    ),
    "q transposed": wrong(
        "qkv_matmul",
        "transposed",
        "q transposed",
        lambda r: np.concatenate((r["attn_norm"] @ r.w(Q), r["qkv_matmul"][:, 256:]), 1),
    ),
    "one input channel": wrong(
        "qkv_matmul",
        "one-input-channel",
        "channel 40 of attn_norm",
        lambda r: (
            r["qkv_matmul"]
            + np.outer(
                r["attn_norm"][:, 40],
                np.concatenate((0 * r.w(Q)[:, 40], 0 * r.w(V)[:, 40], 0.3 * r.w(V)[:, 40])),
            )
        ),
        f16=False,
    ),
    "not normed": wrong(
        "qkv_matmul",
        "other-input",
        "not normed",
        lambda r: r["layer_input"] @ np.concatenate([r.w(f"self_attn.{x}_proj.weight") for x in "qkv"]).T,
    ),
    # biases
    "k bias missing": wrong("qkv_bias", "missing-bias", "bias of k missing", lambda r: with_biases(r, k=0)),
    "no bias": wrong("qkv_bias", "missing-bias", "of q and k and v", lambda r: r["qkv_matmul"]),
    "q bias doubled": wrong(
        "qkv_bias", "doubled-bias", "bias of q added twice", lambda r: with_biases(r, q=2)
    ),
    "v bias scaled": wrong("qkv_bias", "bias-factor", r"v x 1\.3", lambda r: with_biases(r, v=1.3)),
    "k and v biases swapped": wrong(
        "qkv_bias",
        "other-bias",
        r"q\|v\|k",
        lambda r: r["qkv_matmul"] + np.concatenate([biases(r)[i] for i in (0, 2, 1)]),
    ),
    "a neighbour's biases": wrong(
        "qkv_bias",
        "neighbour-weights",
        "layer 0",
        lambda r: r["qkv_matmul"] + np.concatenate([r.w(f"self_attn.{x}_proj.bias", 0) for x in "qkv"]),
    ),
    "one kv head's bias": wrong(
        "qkv_bias",
        "one-head",
        "k head 1",
        lambda r: r["qkv_bias"] - np.concatenate((np.zeros(288), biases(r)[1][32:], np.zeros(64))),
    ),
    # rotary embedding
    "base 10000": wrong(
        "q_post_rope", "rope-base", "base 10000 .*declares 1000000", lambda r: rotated(q_of(r), 1e4)
    ),
    "base 77000": wrong(
        "k_post_rope", "rope-base", "base 77000", lambda r: rotated(k_of(r), 77_000), f16=False
    ),
    "pairs": wrong("q_post_rope", "rope-pairing", r"\(0, 1\)", lambda r: rotated_pairs(q_of(r), THETA)),
    "from one": wrong(
        "q_post_rope", "rope-position", "start at 1 ", lambda r: rotated(q_of(r), THETA, np.arange(7) + 1)
    ),
    "from 300": wrong(
        "k_post_rope", "rope-position", "start at 300 ", lambda r: rotated(k_of(r), THETA, np.arange(7) + 300)
    ),
    "backwards": wrong(
        "k_post_rope",
        "rope-position",
        "reverse",
        lambda r: rotated(k_of(r), THETA, np.arange(7)[::-1].copy()),
    ),
    "unrotated": wrong("q_post_rope", "rope-not-applied", "no rotation", q_of),
    "inverse": wrong(
        "k_post_rope", "rope-direction", "other direction", lambda r: rotated(k_of(r), THETA, sign=-1)
    ),
    "halved positions": wrong(
        "q_post_rope", "rope-scaling", "divided by 2", lambda r: rotated(q_of(r), THETA, np.arange(7) / 2)
    ),
    "half of each head": wrong(
        "q_post_rope",
        "rope-partial",
        "first 8 of 16 pairs",
        lambda r: merged(np.where(np.arange(D) % 16 < 8, split(r["q_post_rope"], H), split(q_of(r), H))),
    ),
    "v for k": wrong("k_post_rope", "qkv-order", "k taken from", lambda r: rotated(v_of(r), THETA)),
    "stale k": wrong(
        "k_post_rope",
        "moved-tokens",
        "last token",
        lambda r: np.vstack((r["k_post_rope"][:-1], r["k_post_rope"][-2:-1])),
    ),
    "k heads swapped": wrong(
        "k_post_rope", "moved-heads", "reverse", lambda r: merged(split(r["k_post_rope"], K)[::-1])
    ),
    "head-major": wrong(
        "q_post_rope", "heads-before-tokens", "read as", lambda r: split(r["q_post_rope"], H).reshape(7, -1)
    ),
    "exponent without its factor of 2": wrong(
        "k_post_rope", "rope-base", "base 1000 ", lambda r: rotated(k_of(r), THETA**0.5)
    ),
    "a mask of its own": wrong(
        "attn_softmax",
        "mask",
        r"another mask \(token 4 sees the keys 0, 3, 4\)",
        lambda r: softmax(
            r["attn_scores"], causal(r) & ~((back(7) > 1) & (back(7) < 4) & (np.mgrid[:7, :7][0] == 4))
        ),
    ),
    "one row's block": wrong(
        "ffn_gate",
        "one-channel",
        "channel 9: by no constant factor",
        lambda r: (
            r["ffn_gate"]
            + np.eye(r["ffn_gate"].shape[1])[9] * (r["ffn_norm"][:, :32] @ r.w(GATE)[9, :32])[:, None]
        ),
    ),
    "coarse cos and sin": wrong(
        "q_post_rope",
        "precision",
        "cos and sin of the rotation kept as bf16",
        lambda r: coarse_rotation(r),
        f16=False,
    ),
    # scores
    "unscaled": wrong(
        "attn_scores", "factor", "1/sqrt.D. is missing", lambda r: r["attn_scores"] * math.sqrt(D)
    ),
    "scaled twice": wrong("attn_scores", "factor", "twice", lambda r: r["attn_scores"] / math.sqrt(D)),
    "h % K": wrong(
        "attn_scores", "head-mapping", "h % K", lambda r: scores(r["q_post_rope"], r["k_post_rope"], MODULO)
    ),
    "kv heads at will": wrong(
        "attn_scores",
        "head-mapping",
        "0, 1, 1, 0, 1, 0, 0, 0",
        lambda r: scores(r["q_post_rope"], r["k_post_rope"], [0, 1, 1, 0, 1, 0, 0, 0]),
    ),
    "unrotated k": wrong(
        "attn_scores", "rope-not-applied", "k before RoPE", lambda r: scores(r["q_post_rope"], k_of(r), OWN)
    ),
    "stale keys": wrong(
        "attn_scores",
        "stale-cache",
        "k_post_rope",
        lambda r: scores(r["q_post_rope"], moved(r["k_post_rope"], -1), OWN),
    ),
    "soft cap": wrong("attn_scores", "soft-cap", "at 50", lambda r: 50 * np.tanh(r["attn_scores"] / 50)),
    "one head's scores": wrong(
        "attn_scores", "one-head", r"head 2: x 0\.9 ", lambda r: changed(r["attn_scores"], 2, 0.9)
    ),
    "transposed scores": wrong(
        "attn_scores", "heads-before-tokens", "queries and keys", lambda r: r["attn_scores"].swapaxes(1, 2)
    ),
    # softmax
    "next token seen": wrong(
        "attn_softmax", "mask", "see the next one", lambda r: softmax(r["attn_scores"], back(7) >= -1)
    ),
    "no mask": wrong("attn_softmax", "mask", "no mask", lambda r: softmax(r["attn_scores"], back(7) >= -9)),
    "blind to itself": wrong(
        "attn_softmax",
        "mask",
        "hides each token from itself",
        lambda r: np.where(np.eye(7)[0] * np.eye(7)[:, :1] > 0, 1, softmax(r["attn_scores"], back(7) >= 1)),
    ),
    "a window": wrong(
        "attn_softmax",
        "mask",
        "window of 3",
        lambda r: softmax(r["attn_scores"], (back(7) >= 0) & (back(7) < 3)),
    ),
    "first token hidden": wrong(
        "attn_softmax",
        "mask",
        "hides the first",
        lambda r: np.where(
            np.arange(7)[:, None] == 0,
            np.eye(7)[0],
            softmax(r["attn_scores"], causal(r) & (np.arange(7) > 0)),
        ),
    ),
    "zero for hidden": wrong(
        "attn_softmax", "mask", "count as 0, not", lambda r: softmax(np.tril(r["attn_scores"]), back(7) >= -9)
    ),
    "padded": wrong(
        "attn_softmax",
        "padding",
        "25 padded keys",
        lambda r: softmax(
            np.concatenate((r["attn_scores"], np.zeros((H, 7, 25))), -1),
            np.hstack((causal(r), np.ones((7, 25), bool))),
        )[..., :7],
    ),
    "sink": wrong(
        "attn_softmax",
        "padding",
        "sink",
        lambda r: softmax(
            np.concatenate((r["attn_scores"], np.zeros((H, 7, 1))), -1),
            np.hstack((causal(r), np.ones((7, 1), bool))),
        )[..., :7],
    ),
    "temperature": wrong(
        "attn_softmax",
        "temperature",
        r"x 0\.9 ",
        lambda r: softmax(0.9 * r["attn_scores"], causal(r)),
        f16=False,
    ),
    "2^x": wrong(
        "attn_softmax", "temperature", "ln 2", lambda r: softmax(math.log(2) * r["attn_scores"], causal(r))
    ),
    "over the queries": wrong(
        "attn_softmax", "softmax-axis", "queries", lambda r: softmax(r["attn_scores"], causal(r), dim=-2)
    ),
    # attention
    "values h % K": wrong(
        "attention", "head-mapping", "h % K", lambda r: mixed(r["attn_softmax"], v_of(r), MODULO)
    ),
    "transposed weights": wrong(
        "attention", "mixing", "transposed", lambda r: mixed(r["attn_softmax"].swapaxes(1, 2), v_of(r), OWN)
    ),
    "k for v": wrong("attention", "mixing", "columns of k", lambda r: mixed(r["attn_softmax"], k_of(r), OWN)),
    "stale values": wrong(
        "attention",
        "stale-cache",
        "token before",
        lambda r: mixed(r["attn_softmax"], moved(v_of(r), -1), OWN),
    ),
    "not transposed": wrong(
        "attention", "heads-before-tokens", "read as", lambda r: split(r["attention"], H).reshape(7, -1)
    ),
    "one token": wrong(
        "attention",
        "one-token",
        "token 4",
        lambda r: np.vstack((r["attention"][:4], r["attention"][2:3], r["attention"][5:])),
    ),
    # projections
    "o transposed": wrong("attn_out", "transposed", "o transposed", lambda r: r["attention"] @ r.w(WO)),
    "o of a neighbour": wrong(
        "attn_out", "neighbour-weights", "layer 2", lambda r: r["attention"] @ r.w(WO, 2).T
    ),
    "o of reversed heads": wrong(
        "attn_out",
        "other-input",
        "heads in reverse",
        lambda r: merged(split(r["attention"], H)[::-1]) @ r.w(WO).T,
    ),
    "residual too early": wrong(
        "attn_out", "residual-included", "residual", lambda r: r["attn_out"] + r["layer_input"]
    ),
    "gate is up": wrong("ffn_gate", "swapped-gate-up", "up for gate", lambda r: r["ffn_norm"] @ r.w(UP).T),
    "up in 4 bits": wrong(
        "ffn_up", "weight-type", "kept as q4_0", lambda r: r["ffn_norm"] @ through("Q4_0", r.w(UP)).T
    ),
    "down in 8 bits": wrong(
        "ffn_out", "weight-type", "kept as q8_0", lambda r: r["ffn_swigl"] @ through("Q8_0", r.w(DOWN)).T
    ),
    "rows off by one": wrong(
        "ffn_up", "moved-channels", "off by one", lambda r: np.roll(r["ffn_up"], -1, axis=1)
    ),
    "last block left out": wrong(
        "ffn_out",
        "truncated-sum",
        "last 32 channels",
        lambda r: r["ffn_swigl"][:, :-32] @ r.w(DOWN)[:, :-32].T,
    ),
    "a vector added": wrong(
        "ffn_out",
        "constant-offset",
        "one vector",
        lambda r: r["ffn_out"] + np.random.default_rng(0).normal(0, 0.1, E),
    ),
    # feed-forward
    "gelu": wrong(
        "ffn_silu",
        "activation",
        r"gelu \(exact\).*declares silu",
        lambda r: torch.nn.functional.gelu(torch.from_numpy(r["ffn_gate"])).numpy(),
    ),
    "gelu tanh": wrong(
        "ffn_silu",
        "activation",
        r"gelu \(tanh\)",
        lambda r: torch.nn.functional.gelu(torch.from_numpy(r["ffn_gate"]), approximate="tanh").numpy(),
        f16=False,
    ),
    "relu": wrong("ffn_silu", "activation", "relu", lambda r: np.maximum(r["ffn_gate"], 0)),
    "not activated": wrong("ffn_silu", "activation", "no activation", lambda r: r["ffn_gate"]),
    "silu of up": wrong(
        "ffn_silu",
        "swapped-gate-up",
        "of up",
        lambda r: torch.nn.functional.silu(torch.from_numpy(r["ffn_up"])).numpy(),
    ),
    "gate * silu(up)": wrong(
        "ffn_swigl",
        "swapped-gate-up",
        "swapped",
        lambda r: r["ffn_gate"] * torch.nn.functional.silu(torch.from_numpy(r["ffn_up"])).numpy(),
    ),
    "without up": wrong("ffn_swigl", "gate-product", "without up", lambda r: r["ffn_silu"]),
    "summed": wrong("ffn_swigl", "gate-product", r"\+ up for", lambda r: r["ffn_silu"] + r["ffn_up"]),
    # residual streams
    "no stream": wrong("post_attn_residual", "residual", "layer_input left out", lambda r: r["attn_out"]),
    "no branch": wrong(
        "post_ffn_residual", "residual", "ffn_out left out", lambda r: r["post_attn_residual"]
    ),
    "stream twice": wrong(
        "post_attn_residual", "residual", "added twice", lambda r: 2 * r["layer_input"] + r["attn_out"]
    ),
    "branch scaled": wrong(
        "post_ffn_residual",
        "residual",
        r"ffn_out x 0\.22",
        lambda r: r["post_attn_residual"] + 0.22 * r["ffn_out"],
        f16=False,
    ),
    "stream of the layer's input": wrong(
        "post_ffn_residual", "residual-source", "the layer's input", lambda r: r["layer_input"] + r["ffn_out"]
    ),
    "normed stream": wrong(
        "post_attn_residual", "residual-source", "attn_norm", lambda r: r["attn_norm"] + r["attn_out"]
    ),
    "stream channel": wrong(
        "post_ffn_residual",
        "one-channel",
        r"channel 9: x 1\.01",
        lambda r: changed(r["post_ffn_residual"], np.s_[:, 9], 1.01),
        f16=False,
    ),
    # head
    "log-softmax": wrong(
        "lm_head",
        "log-softmax",
        "logarithms",
        lambda r: torch.log_softmax(torch.from_numpy(r["lm_head"]), -1).numpy(),
    ),
    "capped logits": wrong(
        "lm_head", "soft-cap", "at 30", lambda r: 30 * np.tanh(r["lm_head"] / 30), f16=False
    ),
    "the token before": wrong(
        "lm_head",
        "other-input",
        "token 5 instead",
        lambda r: r["final_norm"][5] @ r.w("lm_head.weight").T,
    ),
}


SMALL_FAULTS: dict[str, tuple[dict[str, object], Wrong]] = {
    "head norm skipped": (
        {"model_type": "qwen3", "head_dim": 8},
        wrong("q_post_rope", "head-norm", "no norm before RoPE", lambda r: turned_small(r, normed=False)),
    ),
    "head norm late": (
        {"model_type": "qwen3", "head_dim": 8},
        wrong("q_post_rope", "head-norm", "after RoPE", lambda r: late_norm(r)),
    ),
    "o bias missing": (
        {"attention_bias": True, "mlp_bias": True},
        wrong("attn_out", "missing-bias", "bias of o missing", lambda r: r["attention"] @ r.w(WO).T),
    ),
    "gate bias doubled": (
        {"attention_bias": True, "mlp_bias": True},
        wrong(
            "ffn_gate",
            "doubled-bias",
            "gate added twice",
            lambda r: r["ffn_gate"] + r.w("mlp.gate_proj.bias"),
        ),
    ),
    "window ignored": (
        {"model_type": "mistral", "sliding_window": 3},
        wrong("attn_softmax", "mask", "no sliding window", lambda r: softmax(r["attn_scores"], back(5) >= 0)),
    ),
    "window too long": (
        {"model_type": "mistral", "sliding_window": 3},
        wrong(
            "attn_softmax",
            "mask",
            "window of 4.*model's window is 3",
            lambda r: softmax(r["attn_scores"], (back(5) >= 0) & (back(5) < 4)),
        ),
    ),
    "scaling ignored": (
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        wrong("q_post_rope", "rope-scaling", "without scaling.*declares linear", lambda r: turned_small(r)),
    ),
    "yarn's attention factor missing": (
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
        wrong(
            "q_post_rope",
            "rope-scaling",
            "without the attention factor 1.1386",
            lambda r: r["q_post_rope"] / (0.1 * math.log(4) + 1),
        ),
    ),
}


def turned_small(run: Run, normed: bool = True, theta: float = 10_000.0) -> F64:
    """RoPE of a small model's q by complex numbers, after its head norm where it has one."""
    geometry = run.trace.geometry
    size, fused = geometry.head_dim, run["qkv_bias" if geometry.qkv_bias else "qkv_matmul"]
    heads = fused[:, : geometry.heads * size].reshape(len(fused), -1, size)
    if geometry.row.qk_norm and normed:
        heads = rms(heads, run.w("self_attn.q_norm.weight"), geometry.norm_eps)
    angles = np.outer(np.arange(len(fused)), theta ** (-np.arange(0, size, 2) / size))
    z = (heads[..., : size // 2] + 1j * heads[..., size // 2 :]) * np.exp(1j * angles)[:, None]
    return np.concatenate((z.real, z.imag), -1).reshape(len(fused), -1)


def late_norm(run: Run) -> F64:
    bare = turned_small(run, normed=False)
    heads = bare.reshape(len(bare), -1, run.trace.geometry.head_dim)
    return rms(heads, run.w("self_attn.q_norm.weight"), run.trace.geometry.norm_eps).reshape(bare.shape)
