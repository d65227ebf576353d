"""Wrong embeddings, norms, projections, activations and residual sums, worked out with torch and NumPy."""

from __future__ import annotations

from collections.abc import Callable

import gguf
import numpy as np
import torch
from torch.nn import functional

from tests.unit.compare.wrong_stages import F64, TOKENS, E, H, Run, Wrong, rms, split, wrong

ATTN, FFN = "input_layernorm.weight", "post_attention_layernorm.weight"
WO, GATE, UP, DOWN = (
    "self_attn.o_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
)
EPS = 1e-6  # the tiny checkpoint's


def by_torch(function: Callable[[torch.Tensor], torch.Tensor], x: F64) -> F64:
    return function(torch.from_numpy(x)).numpy()


def silu(x: F64) -> F64:
    return by_torch(functional.silu, x)


def mean_square(x: F64) -> F64:
    return np.mean(x * x, axis=-1, keepdims=True)


NORMS: dict[str, Callable[[F64, F64], F64]] = {
    "the weight - 1 for the weight": lambda x, w: rms(x, w - 1),
    "the weight applied twice": lambda x, w: rms(x, w * w),
    "division by the weight": lambda x, w: rms(x, 1 / w),
    "no normalisation, only the weight,": lambda x, w: x * w,
    "one scale for all tokens": lambda x, w: x / np.sqrt(np.mean(x * x) + EPS) * w,
    "division by the mean square, without the root,": lambda x, w: x / (mean_square(x) + EPS) * w,
    "division by the standard deviation, without taking the mean off,": lambda x, w: (
        x / np.sqrt(x.var(axis=-1, keepdims=True) + EPS) * w
    ),
    "epsilon added outside the root": lambda x, w: x / (np.sqrt(mean_square(x)) + EPS) * w,
}


def through(kind: str, weight: F64) -> F64:
    blocks = gguf.quants.quantize(weight.astype(np.float32), gguf.GGMLQuantizationType[kind])
    return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind]).astype(np.float64)


def without_last(count: int) -> Callable[[Run], F64]:
    return lambda r: r["ffn_swigl"][:, :-count] @ r.w(DOWN)[:, :-count].T


def product(x: str, weight: str) -> Callable[[Run], F64]:
    return lambda r: r[x] @ r.w(weight).T


PER_CHANNEL = np.random.default_rng(1).uniform(0.5, 1.9, E)
PER_TOKEN = np.random.default_rng(2).uniform(0.5, 1.9, (7, 1))
SPARSE = np.where(np.arange(E) % 100 == 3, 0.7, 0.0)


def words(values: F64) -> str:
    return f"{values.min():.5g} to {values.max():.5g}"


BLOCKS: dict[str, Wrong] = {
    # embedding
    "divided by sqrt(E)": wrong(
        "embedding",
        "factor",
        r"1/sqrt\(E\) = 0.0625.*family's scale sqrt\(E\) is miss",
        lambda r: r["embedding"] / 16,
    ),
    "the row before": wrong(
        "embedding",
        "other-row",
        "the rows of token id - 1",
        lambda r: r.w("model.embed_tokens.weight")[np.array(TOKENS) - 1],
    ),
    "a table in Fortran's order": wrong(
        "embedding",
        "transposed",
        r"the table read as \[E, V\]",
        lambda r: r.w("model.embed_tokens.weight").reshape(E, -1)[:, list(TOKENS)].T,
    ),
    # norms
    **{
        says: wrong(
            "ffn_norm",
            "norm-form",
            f"^{says} fits",
            lambda r, form=form: form(r["post_attn_residual"], r.w(FFN)),
        )
        for says, form in NORMS.items()
        if "outside" not in says
    },
    **{
        f"epsilon {eps:g}": wrong(
            "attn_norm",
            "epsilon",
            f"^epsilon {eps:.3g} fits .*the model declares 1e-06",
            lambda r, eps=eps: rms(r["layer_input"], r.w(ATTN), eps),
        )
        for eps in (1e-5, 1e-3)
    },
    "a large epsilon": wrong(
        "attn_norm", "epsilon", "^epsilon 0.37 fits", lambda r: rms(r["layer_input"], r.w(ATTN), 0.37)
    ),
    "an odd large epsilon": wrong(
        "attn_norm", "epsilon", "^epsilon 0.373 fits", lambda r: rms(r["layer_input"], r.w(ATTN), 0.37321)
    ),
    **{
        f"{norm} summed": wrong(
            norm,
            "factor",
            r"1/sqrt\(E\) = 0.0625 fits.*the sum of squares stands for their mean",
            lambda r, norm=norm: r[norm] / 16,
        )
        for norm in ("attn_norm", "ffn_norm", "final_norm")
    },
    "ffn_norm of the layer's input": wrong(
        "ffn_norm",
        "norm-input",
        "the norm of layer_input of layer 1",
        lambda r: rms(r["layer_input"], r.w(FFN)),
    ),
    "ffn_norm of the normed": wrong(
        "ffn_norm", "norm-input", "the norm of attn_norm of layer 1", lambda r: rms(r["attn_norm"], r.w(FFN))
    ),
    "attn_norm of the embedding": wrong(
        "attn_norm",
        "norm-input",
        "the norm of embedding of layer 1",
        lambda r: rms(r["embedding"], r.w(ATTN)),
    ),
    "attn_norm of the next residual": wrong(
        "attn_norm",
        "norm-input",
        "the norm of post_attn_residual of layer 1",
        lambda r: rms(r["post_attn_residual"], r.w(ATTN)),
    ),
    "final norm of an earlier layer": wrong(
        "final_norm",
        "norm-input",
        "the norm of post_ffn_residual of layer 1",
        lambda r: rms(r["post_ffn_residual"], r.w("model.norm.weight")),
    ),
    "another weight vector": wrong(
        "attn_norm",
        "other-weight-vector",
        f"another weight: each channel x {words(PER_CHANNEL)}",
        lambda r: r["attn_norm"] * PER_CHANNEL,
    ),
    "the final norm's weight": wrong(
        "attn_norm",
        "other-weights",
        "the weights of final_norm for attn_norm",
        lambda r: rms(r["layer_input"], r.w("model.norm.weight")),
    ),
    "the norm of layer 0": wrong(
        "ffn_norm",
        "neighbour-weights",
        "the weights of layer 0",
        lambda r: rms(r["post_attn_residual"], r.w(FFN, 0)),
    ),
    # projections
    "heads before tokens": wrong(
        "attn_out",
        "other-input",
        r"\[heads, tokens, D\] read as \[tokens, heads, D\]",
        lambda r: np.stack(split(r["attention"], H)).reshape(7, -1) @ r.w(WO).T,
    ),
    "o of rotated q": wrong(
        "attn_out", "other-input", "q_post_rope for attention", product("q_post_rope", WO)
    ),
    "gate of the stream": wrong(
        "ffn_gate", "other-input", "post_attn_residual for ffn_norm", product("post_attn_residual", GATE)
    ),
    "up of the other norm": wrong(
        "ffn_up", "other-input", "attn_norm for ffn_norm", product("attn_norm", UP)
    ),
    "up of attn_out": wrong("ffn_up", "other-input", "attn_out for ffn_norm", product("attn_out", UP)),
    "down of silu": wrong("ffn_out", "other-input", "ffn_silu for ffn_swigl", product("ffn_silu", DOWN)),
    "down of up": wrong("ffn_out", "other-input", "ffn_up for ffn_swigl", product("ffn_up", DOWN)),
    "down of gate": wrong("ffn_out", "other-input", "ffn_gate for ffn_swigl", product("ffn_gate", DOWN)),
    **{
        f"last {count} left out": wrong(
            "ffn_out",
            "truncated-sum",
            f"the last {count} channels of ffn_swigl left out",
            without_last(count),
        )
        for count in (8, 16, 64, 128)
    },
    "up is gate": wrong("ffn_up", "swapped-gate-up", "the weights of gate for up", product("ffn_norm", GATE)),
    "up of layer 0": wrong(
        "ffn_up", "neighbour-weights", "the weights of layer 0", lambda r: r["ffn_norm"] @ r.w(UP, 0).T
    ),
    **{
        f"up in {kind}": wrong(
            "ffn_up",
            "weight-type",
            f"weights stored as {kind} fits .*the model's weights are f16",
            lambda r, kind=kind: r["ffn_norm"] @ through(kind.upper(), r.w(UP)).T,
        )
        for kind in ("q4_1", "q5_0", "q5_1")
    },
    "up in bf16": wrong(
        "ffn_up",
        "weight-type",
        "weights stored as bf16 fits",
        lambda r: r["ffn_norm"] @ torch.from_numpy(r.w(UP)).bfloat16().double().numpy().T,
    ),
    "silu too early": wrong(
        "ffn_gate", "activation-included", "activation applied here already", lambda r: silu(r["ffn_gate"])
    ),
    "residual in ffn_out": wrong(
        "ffn_out",
        "residual-included",
        "the residual added here already",
        lambda r: r["ffn_out"] + r["post_attn_residual"],
    ),
    "each token by its own factor": wrong(
        "ffn_out",
        "factor-per-token",
        f"each token by a factor of its own, {words(PER_TOKEN)},",
        lambda r: r["ffn_out"] * PER_TOKEN,
    ),
    "a bias of few channels": wrong(
        "ffn_out",
        "constant-offset",
        r"one vector added to every token \(3 of 256 channels\).*a bias is other",
        lambda r: r["ffn_out"] + SPARSE,
    ),
    "an odd factor": wrong("ffn_out", "factor", "^x 1.37 fits", lambda r: 1.37 * r["ffn_out"]),
    "a factor that hardly shows": wrong(
        "ffn_out", "factor", "^x 1.0003 fits", lambda r: 1.0003 * r["ffn_out"]
    ),
}
"""Of the tiny checkpoint's second layer, on seven tokens."""
