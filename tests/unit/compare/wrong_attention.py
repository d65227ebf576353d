"""Wrong q, k, v, rotations, scores, softmax and mixing, each with its right name."""

from __future__ import annotations

import math

import numpy as np
import torch

from tests.unit.compare.wrong_stages import (
    F64,
    MODULO,
    OWN,
    THETA,
    D,
    H,
    K,
    Run,
    Wrong,
    back,
    biases,
    changed,
    k_of,
    merged,
    mixed,
    q_of,
    rotated,
    rotated_pairs,
    scores,
    softmax,
    split,
    v_of,
    with_biases,
    wrong,
)

Q, V = "self_attn.q_proj.weight", "self_attn.v_proj.weight"


def moved(x: F64, by: int) -> F64:
    return x[np.clip(np.arange(len(x)) + by, 0, len(x) - 1)]


def causal(run: Run) -> F64:
    return back(len(run.trace.tokens)) >= 0


def gathered(weight: F64, shape: tuple[int, ...]) -> F64:
    return weight.reshape(weight.shape[0], -1, *shape).swapaxes(-1, -2).reshape(weight.shape)


def coarse_rotation(run: Run) -> F64:
    """RoPE with cos and sin kept in bf16, by complex numbers."""
    x = q_of(run).reshape(7, H, 2, D // 2)
    angles = torch.outer(torch.arange(7).double(), THETA ** (-torch.arange(0, D, 2).double() / D))
    cos, sin = (f(angles).bfloat16().double().numpy()[:, None] for f in (torch.cos, torch.sin))
    first, second = x[:, :, 0], x[:, :, 1]
    return np.stack((first * cos - second * sin, second * cos + first * sin), axis=2).reshape(7, -1)


ATTENTION: dict[str, Wrong] = {
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
    "interleaved rows of k alone": wrong(
        "qkv_matmul",
        "rotary-order",
        "each k head in rotary order interleaved for half-split",
        lambda r: np.concatenate(
            (
                r["qkv_matmul"][:, :256],
                gathered(r["qkv_matmul"][:, 256:320], (2, 16)),
                r["qkv_matmul"][:, 320:],
            ),
            1,
        ),
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
        "q head 3: x <1.1> ",
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
    "v bias scaled": wrong("qkv_bias", "bias-factor", "v x <1.3>", lambda r: with_biases(r, v=1.3)),
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
    "base <77000>": wrong(
        "k_post_rope", "rope-base", "base <77000>", lambda r: rotated(k_of(r), 77_000), f16=False
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
    "coarse cos and sin": wrong(
        "q_post_rope",
        "precision",
        "cos and sin of the rotation stored as bf16",
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
        "attn_scores", "one-head", "head 2: x <0.9> ", lambda r: changed(r["attn_scores"], 2, 0.9)
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
        "x <0.9> ",
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
}
