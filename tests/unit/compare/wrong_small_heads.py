"""Wrong attention that only some families can have, on random small models."""

from __future__ import annotations

import math

import numpy as np

from tests.unit.compare.wrong_heads import in_words
from tests.unit.compare.wrong_stages import F64, Run, Wrong, back, softmax, split, wrong

MHA = {"model_type": "qwen2", "num_key_value_heads": 4}
GROUPED = {"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4}
MISTRAL = {"model_type": "mistral", "sliding_window": 3}
NARROW = {"head_dim": 8}  # where hidden / heads is 4


def small_scores(run: Run, mapping: list[int]) -> F64:
    heads, kv = run.trace.geometry.heads, run.trace.geometry.kv_heads
    q, k = split(run["q_post_rope"], heads), split(run["k_post_rope"], kv)
    return np.stack([q[h] @ k[mapping[h]].T for h in range(heads)]) / math.sqrt(run.trace.geometry.head_dim)


def small_bias(run: Run, order: str) -> F64:
    return run["qkv_matmul"] + np.concatenate([run.w(f"self_attn.{part}_proj.bias") for part in order])


SMALL_HEADS: dict[str, tuple[dict[str, object], Wrong]] = {
    **{
        f"biases {order}": (
            MHA,
            wrong(
                "qkv_bias",
                "other-bias",
                f"the biases of {in_words(order)} added to q.k.v",
                lambda r, order=order: small_bias(r, order),
            ),
        )
        for order in ("qvk", "kqv", "kvq", "vqk", "vkq")
    },
    **{
        says: (
            GROUPED,
            wrong("attn_scores", "head-mapping", says, lambda r, mapping=mapping: small_scores(r, mapping)),
        )
        for says, mapping in {
            "query head h reading kv head h % K": [0, 1, 2, 3, 0, 1, 2, 3],
            "kv heads in reverse order": [3, 3, 2, 2, 1, 1, 0, 0],
            "every query head reading kv head 0": [0] * 8,
            "query head h reading the kv head after its own": [1, 1, 2, 2, 3, 3, 0, 0],
            "reading the kv heads 0, 0, 1, 1, 3, 3, 2, 2": [0, 0, 1, 1, 3, 3, 2, 2],
        }.items()
    },
    "E/H for head_dim": (
        NARROW,
        wrong(
            "attn_scores",
            "factor",
            r"x sqrt\(D\)/sqrt\(E/H\) = 1\.41421 fits.*takes E/H for head_dim",
            lambda r: r["attn_scores"] * math.sqrt(8) / math.sqrt(4),
        ),
    ),
    "hidden for head_dim": (
        NARROW,
        wrong(
            "attn_scores",
            "factor",
            r"x sqrt\(D\)/sqrt\(E\) = 0\.707107 fits.*takes the hidden size for head_dim",
            lambda r: r["attn_scores"] * math.sqrt(8) / math.sqrt(16),
        ),
    ),
    "scaled by D": (
        NARROW,
        wrong("attn_scores", "factor", "^x D fits", lambda r: r["attn_scores"] * 8),
    ),
    "scaled by 1/D": (
        NARROW,
        wrong("attn_scores", "factor", "^x 1/D fits", lambda r: r["attn_scores"] / 8),
    ),
    "next token within the window": (
        MISTRAL,
        wrong(
            "attn_softmax",
            "mask",
            "see the next one.*the model's window is 3",
            lambda r: softmax(r["attn_scores"], (back(5) >= -1) & (back(5) < 3)),
        ),
    ),
    "the first hidden within the window": (
        MISTRAL,
        wrong(
            "attn_softmax",
            "mask",
            "hides the first token",
            lambda r: np.where(
                np.arange(5)[:, None] == 0,
                np.eye(5)[0],
                softmax(r["attn_scores"], (back(5) >= 0) & (back(5) < 3) & (np.arange(5) > 0)),
            ),
        ),
    ),
    "itself hidden within the window": (
        MISTRAL,
        wrong(
            "attn_softmax",
            "mask",
            "hides each token from itself",
            lambda r: np.where(
                np.arange(5)[:, None] == 0,
                np.eye(5)[0],
                softmax(r["attn_scores"], (back(5) >= 1) & (back(5) < 3)),
            ),
        ),
    ),
    "window too short": (
        MISTRAL,
        wrong(
            "attn_softmax",
            "mask",
            "a window of 2",
            lambda r: softmax(r["attn_scores"], (back(5) >= 0) & (back(5) < 2)),
        ),
    ),
    "a cached mean": (
        MISTRAL,
        wrong(
            "attn_softmax",
            "padding",
            "3 padded keys",
            lambda r: softmax(
                np.concatenate((r["attn_scores"], np.zeros((4, 5, 3))), -1),
                np.hstack(((back(5) >= 0) & (back(5) < 3), np.ones((5, 3), bool))),
            )[..., :5],
        ),
    ),
}
"""Of random small models: what makes the model, and the fault."""
