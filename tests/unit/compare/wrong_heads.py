"""Wrong q|k|v, scores, softmax and mixing beyond those of ``wrong_attention``, worked out anew."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.unit.compare.wrong_stages import (
    F64,
    OWN,
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
    scores,
    softmax,
    split,
    v_of,
    with_biases,
    wrong,
)

CAUSAL = back(7) >= 0
EVERYTHING = np.ones((7, 7), bool)
PARTS = {"q": np.s_[:, : H * D], "k": np.s_[:, H * D : (H + K) * D], "v": np.s_[:, (H + K) * D :]}
EVEN = CAUSAL / CAUSAL.sum(axis=1, keepdims=True)


def padded(count: int) -> Callable[[Run], F64]:
    """Return softmax over the visible keys and ``count`` keys of score 0."""

    def make(run: Run) -> F64:
        more = np.concatenate((run["attn_scores"], np.zeros((H, 7, count))), -1)
        return softmax(more, np.hstack((CAUSAL, np.ones((7, count), bool))))[..., :7]

    return make


def hot(factor: float) -> Callable[[Run], F64]:
    return lambda run: softmax(factor * run["attn_scores"], CAUSAL)


def stored_after_the_mask(low: float) -> Callable[[Run], F64]:
    return lambda run: np.where(CAUSAL, run["attn_scores"], low)


def reordered(order: str) -> Callable[[Run], F64]:
    """Return q|k|v of the tiny checkpoint with its parts in another order."""
    return lambda run: np.concatenate([run["qkv_matmul"][PARTS[part]] for part in order], axis=1)


def in_words(order: str) -> str:
    return ".".join(order)  # a pattern: q|k|v


def per_kv_group(run: Run) -> F64:
    """Return q|k|v as fused by kv group: its q heads, its k head, its v head, then the next group."""
    q, k, v = (split(run["qkv_matmul"][PARTS[part]], heads) for part, heads in (("q", H), ("k", K), ("v", K)))
    size = H // K
    return merged(np.concatenate([[*q[g * size : (g + 1) * size], k[g], v[g]] for g in range(K)]))


def in_rotary_order(x: F64, *, interleaved: bool) -> F64:
    shape = (2, D // 2) if interleaved else (D // 2, 2)
    return x.reshape(*x.shape[:-1], -1, *shape).swapaxes(-1, -2).reshape(x.shape)


def turned_biases(run: Run, *, interleaved: bool) -> F64:
    q, k, v = biases(run)
    turned = [in_rotary_order(each, interleaved=interleaved) for each in (q, k)]
    return run["qkv_matmul"] + np.concatenate([*turned, v])


def over_all_of_a_head(run: Run) -> F64:
    flat = softmax(run["attn_scores"].reshape(H, 49), np.tile(CAUSAL.reshape(-1), (H, 1)))
    return flat.reshape(H, 7, 7)


def tokens_at(order: list[int], stage: str, axis: int = 0) -> Callable[[Run], F64]:
    return lambda run: np.take(run[stage], order, axis)


MOVES = {
    "every token with the values of the token before": [0, 0, 1, 2, 3, 4, 5],
    "every token with the values of the token after": [1, 2, 3, 4, 5, 6, 6],
    "tokens moved on by one, the last one first": [6, 0, 1, 2, 3, 4, 5],
    "tokens moved back by one, the first one last": [1, 2, 3, 4, 5, 6, 0],
    "tokens in reverse order": [6, 5, 4, 3, 2, 1, 0],
    "every token with the values of the first": [0] * 7,
    "every token with the values of the last": [6] * 7,
    "the last token with the values of the one before": [0, 1, 2, 3, 4, 5, 5],
}

HEADS: dict[str, Wrong] = {
    # q, k and v
    **{
        f"the order {order}": wrong(
            "qkv_matmul", "qkv-order", f"the order {in_words(order)} for q.k.v", reordered(order)
        )
        for order in ("qvk", "kvq", "vqk", "vkq")
    },
    "per kv group": wrong("qkv_matmul", "qkv-order", "side by side per kv head", per_kv_group),
    "half-split rows of q alone": wrong(
        "qkv_matmul",
        "rotary-order",
        "each q head in rotary order half-split for interleaved",
        lambda r: np.concatenate(
            (in_rotary_order(r["qkv_matmul"][PARTS["q"]], interleaved=False), r["qkv_matmul"][:, H * D :]), 1
        ),
    ),
    "v doubled": wrong(
        "qkv_matmul", "factor", "v x 2 fits", lambda r: changed(r["qkv_matmul"], PARTS["v"], 2)
    ),
    "q scaled early": wrong(
        "qkv_matmul",
        "factor",
        r"q x 1/sqrt\(D\) fits",
        lambda r: changed(r["qkv_matmul"], PARTS["q"], D**-0.5),
    ),
    "two q heads swapped": wrong(
        "qkv_bias",
        "moved-heads",
        "q: heads 1 and 6 swapped",
        lambda r: np.concatenate(
            (
                merged(split(r["qkv_bias"][PARTS["q"]], H)[[0, 6, 2, 3, 4, 5, 1, 7]]),
                r["qkv_bias"][:, H * D :],
            ),
            1,
        ),
    ),
    "v heads swapped": wrong(
        "qkv_matmul",
        "moved-heads",
        "v: heads in reverse order",
        lambda r: np.concatenate(
            (r["qkv_matmul"][:, : (H + K) * D], merged(split(r["qkv_matmul"][PARTS["v"]], K)[::-1])), 1
        ),
    ),
    "k for v": wrong(
        "qkv_matmul",
        "other-weights",
        "the weights of k for v",
        lambda r: np.concatenate((r["qkv_matmul"][:, : (H + K) * D], r["qkv_matmul"][PARTS["k"]]), 1),
    ),
    # biases
    "k bias subtracted": wrong(
        "qkv_bias", "bias-factor", "bias of k subtracted", lambda r: with_biases(r, k=-1)
    ),
    "v bias doubled": wrong("qkv_bias", "doubled-bias", "of v added twice", lambda r: with_biases(r, v=2)),
    "two odd biases": wrong(
        "qkv_bias", "bias-factor", r"the bias of q x 0\.3, k x 1\.7", lambda r: with_biases(r, q=0.3, k=1.7)
    ),
    "k bias too early": wrong(
        "qkv_matmul", "bias-included", "bias of k added here already", lambda r: with_biases(r, q=0, v=0)
    ),
    "k, q, v biases": wrong(
        "qkv_bias",
        "other-bias",
        r"k\|q\|v end to end",
        lambda r: r["qkv_matmul"] + np.concatenate([biases(r)[i] for i in (1, 0, 2)]),
    ),
    "interleaved biases": wrong(
        "qkv_bias", "other-bias", "in interleaved rotary order", lambda r: turned_biases(r, interleaved=True)
    ),
    "half-split biases": wrong(
        "qkv_bias", "other-bias", "in half-split rotary order", lambda r: turned_biases(r, interleaved=False)
    ),
    "a neighbour's k bias": wrong(
        "qkv_bias",
        "neighbour-weights",
        "the biases of k of layer 2",
        lambda r: (
            r["qkv_matmul"] + np.concatenate([biases(r)[0], r.w("self_attn.k_proj.bias", 2), biases(r)[2]])
        ),
    ),
    # scores
    "q and k unrotated": wrong(
        "attn_scores", "rope-not-applied", "q and k before RoPE", lambda r: scores(q_of(r), k_of(r), OWN)
    ),
    "unrotated q": wrong(
        "attn_scores", "rope-not-applied", "^q before RoPE", lambda r: scores(q_of(r), r["k_post_rope"], OWN)
    ),
    **{
        f"masked with {low:g}": wrong(
            "attn_scores", "layout", "scores stored after the mask", stored_after_the_mask(low)
        )
        for low in (-1e4, -65504.0, -1e9, float(np.finfo(np.float32).min))
    },
    "kv heads reversed": wrong(
        "attn_scores",
        "head-mapping",
        "kv heads in reverse order.*reads kv head h // ",
        lambda r: scores(r["q_post_rope"], r["k_post_rope"], [1] * 4 + [0] * 4),
    ),
    "kv head 0": wrong(
        "attn_scores",
        "head-mapping",
        "every query head reading kv head 0",
        lambda r: scores(r["q_post_rope"], r["k_post_rope"], [0] * 8),
    ),
    "stale q": wrong(
        "attn_scores",
        "moved-tokens",
        "token before",
        lambda r: scores(r["q_post_rope"][[0, 0, 1, 2, 3, 4, 5]], r["k_post_rope"], OWN),
    ),
    "keys of the last": wrong(
        "attn_scores",
        "stale-cache",
        "k_post_rope of other tokens: the last token with the values of the one before",
        lambda r: scores(r["q_post_rope"], r["k_post_rope"][[0, 1, 2, 3, 4, 5, 5]], OWN),
    ),
    **{
        f"soft cap {cap}": wrong(
            "attn_scores",
            "soft-cap",
            f"soft-capped at {cap} fits",
            lambda r, cap=cap: cap * np.tanh(r["attn_scores"] / cap),
        )
        for cap in (15, 20, 30)
    },
    "score heads swapped": wrong(
        "attn_scores",
        "moved-heads",
        "heads 0 and 7 swapped",
        lambda r: r["attn_scores"][[7, 1, 2, 3, 4, 5, 6, 0]],
    ),
    # softmax
    "upside down": wrong(
        "attn_softmax",
        "mask",
        r"an inverted mask \(only later",
        lambda r: softmax(r["attn_scores"], back(7) <= 0),
    ),
    "the last key": wrong(
        "attn_softmax",
        "mask",
        "only the last key seen",
        lambda r: np.broadcast_to(np.arange(7) == 6, (H, 7, 7)),
    ),
    "cut after zeros": wrong(
        "attn_softmax",
        "mask",
        "count as 0, then cut off",
        lambda r: np.tril(softmax(np.tril(r["attn_scores"]), EVERYTHING)),
    ),
    "mask after softmax": wrong(
        "attn_softmax",
        "mask",
        "the mask applied after the softmax",
        lambda r: np.tril(softmax(r["attn_scores"], EVERYTHING)),
    ),
    **{
        f"{count} padded keys": wrong(
            "attn_softmax", "padding", f"{count} padded keys of score 0 in the sum", padded(count)
        )
        for count in (9, 57, 121, 249, 40)
    },
    "a very hot softmax": wrong("attn_softmax", "temperature", r"x sqrt\(D\) before", hot(D**0.5)),
    "a cold softmax": wrong("attn_softmax", "temperature", r"x 1/sqrt\(D\) before", hot(D**-0.5)),
    "twice as hot": wrong("attn_softmax", "temperature", "scores x 2 before", hot(2)),
    "half as hot": wrong("attn_softmax", "temperature", "scores x 1/2 before", hot(0.5)),
    "over the heads": wrong(
        "attn_softmax", "softmax-axis", "over the heads", lambda r: softmax(r["attn_scores"], CAUSAL, dim=0)
    ),
    "over all": wrong("attn_softmax", "softmax-axis", "all of a head's scores", over_all_of_a_head),
    "no softmax": wrong("attn_softmax", "softmax-axis", "no softmax", lambda r: np.tril(r["attn_scores"])),
    "bare exponentials": wrong(
        "attn_softmax",
        "softmax-axis",
        "exponentials that are not normalised",
        lambda r: np.tril(np.exp(r["attn_scores"])),
    ),
    # attention
    "the plain mean": wrong(
        "attention",
        "mixing",
        "plain mean of the visible",
        lambda r: mixed(np.stack([EVEN] * H), v_of(r), OWN),
    ),
    "unmixed": wrong(
        "attention", "mixing", "own value, unmixed", lambda r: mixed(np.stack([np.eye(7)] * H), v_of(r), OWN)
    ),
    "scores for weights": wrong(
        "attention",
        "mixing",
        "scores for weights",
        lambda r: mixed(np.tril(r["attn_scores"]), v_of(r), OWN),
    ),
    "q's first columns for v": wrong(
        "attention",
        "mixing",
        "v taken from the columns of q",
        lambda r: mixed(r["attn_softmax"], r["qkv_bias"][:, : K * D], OWN),
    ),
    "rotated k for v": wrong(
        "attention",
        "mixing",
        "the rotated k in the place of v",
        lambda r: mixed(r["attn_softmax"], r["k_post_rope"], OWN),
    ),
    "kv heads at will": wrong(
        "attention",
        "head-mapping",
        "reading the kv heads 1, 0, 0, 0, 1, 1, 1, 0",
        lambda r: mixed(r["attn_softmax"], v_of(r), [1, 0, 0, 0, 1, 1, 1, 0]),
    ),
    **{
        f"v: {says}": wrong(
            "attention",
            "stale-cache",
            f"v of other tokens: {says}",
            lambda r, order=order: mixed(r["attn_softmax"], v_of(r)[order], OWN),
        )
        for says, order in MOVES.items()
        if "every token with the values of the first" not in says and "values of the last" not in says
    },
    # tokens in each other's places
    **{
        says: wrong("ffn_out", "moved-tokens", says, tokens_at(order, "ffn_out"))
        for says, order in MOVES.items()
    },
    **{
        f"scores: {says}": wrong(
            "attn_scores", "moved-tokens", says, tokens_at(MOVES[says], "attn_scores", axis=1)
        )
        for says in ("tokens moved on by one, the last one first", "tokens in reverse order")
    },
    "channels moved on": wrong(
        "ffn_gate",
        "moved-channels",
        "each channel with those before it.*off by one",
        lambda r: np.roll(r["ffn_gate"], 1, axis=1),
    ),
}
"""Of the tiny checkpoint's second layer, on seven tokens."""
