"""Wrong rotary embeddings, each worked out with complex numbers, and the words that name it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import transformers

from tests.unit.compare.wrong_stages import (
    F64,
    THETA,
    D,
    H,
    K,
    Run,
    Wrong,
    k_of,
    merged,
    q_of,
    rms,
    split,
    wrong,
)

PAIRS = D // 2
PLAIN = THETA ** (-np.arange(PAIRS) / PAIRS)
"""The model's angle per position of each pair."""


def turn(x: F64, angles: F64, factor: float = 1.0, size: int = D) -> F64:
    """Turn the half-split pairs of each head by ``angles`` [tokens, pairs]."""
    heads = x.reshape(len(x), -1, 2, size // 2)
    z = (heads[:, :, 0] + 1j * heads[:, :, 1]) * np.exp(1j * angles)[:, None] * factor
    return np.stack((z.real, z.imag), axis=2).reshape(x.shape)


def at(positions: npt.ArrayLike, frequencies: F64 = PLAIN) -> F64:
    return np.outer(np.asarray(positions, np.float64), frequencies)


def of_transformers(parameters: dict[str, object]) -> tuple[F64, float]:
    """Return frequencies and attention factor as transformers computes them for the tiny checkpoint."""
    config = transformers.LlamaConfig(
        hidden_size=H * D,
        num_attention_heads=H,
        max_position_embeddings=2048,
        rope_parameters={"rope_theta": THETA, **parameters},
    )
    kind = str(parameters["rope_type"])
    made = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return made[0].double().numpy(), float(made[1])


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def scaled(parameters: dict[str, object], *, factor: bool = True) -> Callable[[Run], F64]:
    def make(run: Run) -> F64:
        frequencies, length = of_transformers(parameters)
        return turn(q_of(run), at(range(7), frequencies), length if factor else 1.0)

    return make


def q_at(positions: npt.ArrayLike, frequencies: F64 = PLAIN) -> Callable[[Run], F64]:
    return lambda run: turn(q_of(run), at(positions, frequencies))


def k_at(positions: npt.ArrayLike, frequencies: F64 = PLAIN) -> Callable[[Run], F64]:
    return lambda run: turn(k_of(run), at(positions, frequencies))


def first_channels(run: Run, count: int) -> F64:
    """Rotate the first ``count`` channels of each head as if they were all of a head."""
    heads = q_of(run).reshape(7, H, D)
    frequencies = THETA ** (-np.arange(count // 2) / (count // 2))
    first = turn(heads[..., :count].reshape(7, -1), at(range(7), frequencies), size=count)
    return np.concatenate((first.reshape(7, H, count), heads[..., count:]), axis=-1).reshape(7, -1)


def rounded_rotation(run: Run) -> F64:
    """RoPE with cos and sin in f16."""
    cos, sin = (f(at(range(7))).astype(np.float16).astype(np.float64)[:, None] for f in (np.cos, np.sin))
    x = q_of(run).reshape(7, H, 2, PAIRS)
    first, second = x[:, :, 0], x[:, :, 1]
    return np.stack((first * cos - second * sin, second * cos + first * sin), axis=2).reshape(7, -1)


def exchanged(run: Run) -> F64:
    """RoPE with cos in the place of sin and sin in that of cos."""
    cos, sin = np.cos(at(range(7)))[:, None], np.sin(at(range(7)))[:, None]
    x = q_of(run).reshape(7, H, 2, PAIRS)
    first, second = x[:, :, 0], x[:, :, 1]
    return np.stack((first * sin - second * cos, second * sin + first * cos), axis=2).reshape(7, -1)


def half_split_of_interleaved(run: Run) -> F64:
    """Turn channels (0, 16), (1, 17) ... of heads that are stored for (0, 1), (2, 3) ..., and store it so."""
    stored = q_of(run).reshape(7, H, 2, PAIRS).swapaxes(2, 3).reshape(7, -1)
    return turn(stored, at(range(7))).reshape(7, H, PAIRS, 2).swapaxes(2, 3).reshape(7, -1)


BASES = (1e4, 5e5, 1e5, 5e4, 8e6, 1e7, 5e6, 2e6, 3e5, 1e3, 1e2, 1.5e5, 2.5e5, 7.5e6)

ROTATIONS: dict[str, Wrong] = {
    **{
        f"base {base:g}": wrong(
            "q_post_rope",
            "rope-base",
            f"RoPE base {base:.10g} fits .*the model declares 1000000",
            q_at(range(7), base ** (-np.arange(PAIRS) / PAIRS)),
        )
        for base in BASES
    },
    "an odd base": wrong(
        "q_post_rope", "rope-base", "RoPE base 123456", q_at(range(7), 123456.0 ** (-np.arange(16) / 16))
    ),
    **{
        f"positions over {factor}": wrong(
            "k_post_rope", "rope-scaling", rf"divided by {factor} \(linear", k_at(np.arange(7) / factor)
        )
        for factor in (4, 8, 16, 32)
    },
    **{
        f"positions times {factor}": wrong(
            "k_post_rope", "rope-scaling", f"positions x {factor} fits", k_at(np.arange(7) * factor)
        )
        for factor in (4, 8, 16)
    },
    "positions doubled": wrong(
        "q_post_rope", "rope-scaling", "rotation applied twice", q_at(np.arange(7) * 2)
    ),
    "positions over 3": wrong(
        "q_post_rope", "rope-scaling", r"divided by 3 \(linear.*base 1000000 and no", q_at(np.arange(7) / 3)
    ),
    "positions over 2.5 and another base": wrong(
        "q_post_rope",
        "rope-scaling",
        r"RoPE base 1234(00)? and positions divided by 2\.5 \(linear",
        q_at(np.arange(7) / 2.5, 1234.0 ** (-np.arange(PAIRS) / PAIRS)),
    ),
    "llama3": wrong("q_post_rope", "rope-scaling", "llama3 scaling with factor 8 fits", scaled(LLAMA3)),
    "yarn": wrong("q_post_rope", "rope-scaling", "yarn scaling with factor 4 fits", scaled(YARN)),
    "yarn without its factor": wrong(
        "q_post_rope", "rope-scaling", "yarn scaling with factor 4 fits", scaled(YARN, factor=False)
    ),
    "yarn, factor 16": wrong(
        "q_post_rope",
        "rope-scaling",
        "yarn scaling with factor 16, context 4096 and attention factor 1.277",
        scaled({**YARN, "factor": 16.0, "original_max_position_embeddings": 4096}),
    ),
    "yarn, factor 6": wrong(
        "q_post_rope",
        "rope-scaling",
        "yarn scaling with factor 6, context 8192 and attention factor 1.179",
        scaled({**YARN, "factor": 6.0, "original_max_position_embeddings": 8192}),
    ),
    "yarn, stated factor": wrong(
        "q_post_rope",
        "rope-scaling",
        "yarn scaling with factor 8, context 2048 and attention factor 1.5 ",
        scaled({**YARN, "factor": 8.0, "original_max_position_embeddings": 2048, "attention_factor": 1.5}),
    ),
    "cos and sin exchanged": wrong("q_post_rope", "rope-direction", "cos and sin exchanged", exchanged),
    "cosine alone": wrong(
        "q_post_rope",
        "rope-direction",
        "the cosine part alone",
        lambda r: (q_of(r).reshape(7, H, 2, 16) * np.cos(at(range(7)))[:, None, None]).reshape(7, -1),
    ),
    "f16 cos and sin": wrong(
        "q_post_rope", "precision", "cos and sin of the rotation stored as f16", rounded_rotation, f16=False
    ),
    "interleaved weights": wrong(
        "q_post_rope",
        "rope-pairing",
        r"\(0, 16\), \(1, 17\) \.\.\. fits .*stored for \(0, 1\)",
        half_split_of_interleaved,
    ),
    "reversed frequencies": wrong(
        "k_post_rope", "rope-pairing", "frequencies in reverse order", k_at(range(7), PLAIN[::-1])
    ),
    **{
        f"{count} channels": wrong(
            "q_post_rope",
            "rope-partial",
            f"only the first {count} of 32 channels of each head rotated",
            lambda r, count=count: first_channels(r, count),
        )
        for count in (8, 16, 24)
    },
    **{
        f"{count} pairs": wrong(
            "k_post_rope",
            "rope-partial",
            f"only the first {count} of 16 pairs rotated",
            k_at(range(7), np.where(np.arange(16) < count, PLAIN, 0.0)),
        )
        for count in (4, 8, 12)
    },
    "stuck at the last": wrong("q_post_rope", "rope-position", "every token at position 6", q_at([6] * 7)),
    "one step late": wrong(
        "q_post_rope", "rope-position", r"positions 0, 0, 1, 2", q_at(np.maximum(np.arange(7) - 1, 0))
    ),
    "from -1": wrong("k_post_rope", "rope-position", "start at -1 instead", k_at(np.arange(7) - 1)),
    "from 8000": wrong("k_post_rope", "rope-position", "start at 8000 instead", k_at(np.arange(7) + 8000)),
    "from -700": wrong("k_post_rope", "rope-position", "start at -700 instead", k_at(np.arange(7) - 700)),
    "q behind k": wrong(
        "q_post_rope",
        "qkv-order",
        r"q taken from where q\|k\|v in the order k\|q\|v has it",
        lambda r: turn(r["qkv_bias"][:, K * D : K * D + H * D], at(range(7))),
    ),
    "q behind k and v": wrong(
        "q_post_rope",
        "qkv-order",
        r"in the order k\|v\|q has it",
        lambda r: turn(r["qkv_bias"][:, 2 * K * D :], at(range(7))),
    ),
    "k first": wrong(
        "k_post_rope",
        "qkv-order",
        r"k taken from where q\|k\|v in the order k\|q\|v has it",
        lambda r: turn(r["qkv_bias"][:, : K * D], at(range(7))),
    ),
    "two heads exchanged": wrong(
        "q_post_rope",
        "moved-heads",
        "heads 2 and 5 swapped",
        lambda r: merged(split(r["q_post_rope"], H)[[0, 1, 5, 3, 4, 2, 6, 7]]),
    ),
    "heads in some order": wrong(
        "q_post_rope",
        "moved-heads",
        "heads in the order 1, 2, 0, 3, 4, 5, 6, 7",
        lambda r: merged(split(r["q_post_rope"], H)[[1, 2, 0, 3, 4, 5, 6, 7]]),
    ),
}
"""Of the tiny checkpoint's second layer, on seven tokens."""


QWEN3 = {"model_type": "qwen3", "head_dim": 8}
LINEAR = {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}
SMALL_YARN = {
    "head_dim": 8,
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
}


def small_turn(run: Run, heads: F64, theta: float = 1e4) -> F64:
    size = heads.shape[-1]
    frequencies = theta ** (-np.arange(size // 2) / (size // 2))
    return turn(heads.reshape(len(heads), -1), at(range(len(heads)), frequencies), size=size)


def small_q(run: Run) -> F64:
    geometry = run.trace.geometry
    fused = run["qkv_bias" if geometry.qkv_bias else "qkv_matmul"]
    return fused[:, : geometry.heads * geometry.head_dim].reshape(len(fused), -1, geometry.head_dim)


def normed(run: Run, weight: F64, eps: float = 1e-5) -> F64:
    return small_turn(run, rms(small_q(run), weight, eps))


def q_norm(run: Run) -> F64:
    return run.w("self_attn.q_norm.weight")


ATTENTION_FACTOR = 0.1 * math.log(4) + 1

SMALL_ROTATIONS: dict[str, tuple[dict[str, object], Wrong]] = {
    "weight of the head norm ignored": (
        QWEN3,
        wrong(
            "q_post_rope",
            "head-norm",
            "weight of the norm before RoPE ignored",
            lambda r: normed(r, np.ones(8)),
        ),
    ),
    "1 + weight of the head norm": (
        QWEN3,
        wrong("q_post_rope", "head-norm", r"1 \+ weight in the norm", lambda r: normed(r, 1 + q_norm(r))),
    ),
    "norm over all heads": (
        QWEN3,
        wrong(
            "q_post_rope",
            "head-norm",
            "over all heads together",
            lambda r: small_turn(
                r, rms(small_q(r).reshape(5, -1), 1.0, 1e-5).reshape(small_q(r).shape) * q_norm(r)
            ),
        ),
    ),
    "another epsilon of the head norm": (
        {**QWEN3, "rms_norm_eps": 1e-2},
        wrong("q_post_rope", "head-norm", "epsilon 1e-6 in the norm", lambda r: normed(r, q_norm(r), 1e-6)),
    ),
    "the other usual epsilon of the head norm": (
        {**QWEN3, "rms_norm_eps": 1e-2},
        wrong("q_post_rope", "head-norm", "epsilon 1e-5 in the norm", lambda r: normed(r, q_norm(r), 1e-5)),
    ),
    "k's head norm for q": (
        QWEN3,
        wrong(
            "q_post_rope",
            "head-norm",
            "q's norm before RoPE with k's weight",
            lambda r: normed(r, r.w("self_attn.k_norm.weight")),
        ),
    ),
    "another base, unscaled": (
        LINEAR,
        wrong(
            "q_post_rope",
            "rope-base",
            "RoPE base 500 without scaling.*the model declares 10000 with linear scaling",
            lambda r: small_turn(r, small_q(r), 500.0),
        ),
    ),
    "another base, scaled": (
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "head_dim": 8},
        wrong(
            "q_post_rope",
            "rope-base",
            "RoPE base 100000 fits .*the model declares 10000",
            lambda r: turn(
                small_q(r).reshape(5, -1), at(np.arange(5) / 4, 1e5 ** (-np.arange(4) / 4)), size=8
            ),
        ),
    ),
    "unscaled with the attention factor": (
        SMALL_YARN,
        wrong(
            "q_post_rope",
            "rope-scaling",
            "without scaling, but with its attention factor,.*declares yarn",
            lambda r: ATTENTION_FACTOR * small_turn(r, small_q(r)),
        ),
    ),
    "attention factor twice": (
        SMALL_YARN,
        wrong(
            "q_post_rope",
            "rope-scaling",
            "attention factor applied twice",
            lambda r: r["q_post_rope"] * ATTENTION_FACTOR,
        ),
    ),
}
"""Of random small models: what makes the model, and the fault."""
