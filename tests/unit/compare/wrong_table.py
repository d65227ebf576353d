"""The wrong stages that tests of explanations go through: what is made of a stage, and its right name."""

from __future__ import annotations

import math

import gguf
import numpy as np
import torch

from apr_falsify.model.wiring import has_stage
from tests.unit.compare.wrong_attention import ATTENTION
from tests.unit.compare.wrong_stages import (
    F64,
    TOKENS,
    D,
    E,
    H,
    K,
    Run,
    Wrong,
    back,
    changed,
    merged,
    rms,
    softmax,
    split,
    wrong,
)

WO, GATE, UP, DOWN = (
    "self_attn.o_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
)


def through(kind: str, weight: F64) -> F64:
    blocks = gguf.quants.quantize(weight.astype(np.float32), gguf.GGMLQuantizationType[kind])
    return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind]).astype(np.float64)


def layer_norm(run: Run) -> F64:
    x = torch.from_numpy(run["layer_input"])
    weight = torch.from_numpy(run.w("input_layernorm.weight"))
    return torch.nn.functional.layer_norm(x, (E,), weight, eps=1e-6).numpy()


FAULTS: dict[str, Wrong] = {
    # any stage
    "doubled": wrong("attn_out", "factor", "x 2 ", lambda r: 2 * r["attn_out"]),
    "halved": wrong("ffn_out", "factor", "x 1/2", lambda r: 0.5 * r["ffn_out"]),
    "negated": wrong("ffn_up", "factor", "x -1", lambda r: -r["ffn_up"]),
    "all zero": wrong("ffn_gate", "factor", "all zeros", lambda r: 0 * r["ffn_gate"]),
    "1.01": wrong("ffn_norm", "factor", "x <1.01> ", lambda r: 1.01 * r["ffn_norm"], f16=False),
    "k alone scaled": wrong(
        "qkv_matmul",
        "factor",
        "k x <1.5>",
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
        "epsilon <0.0023>",
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
        "channel 17: x <1.15>",
        lambda r: changed(r["attn_norm"], np.s_[:, 17], 1.15),
    ),
    **ATTENTION,
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
        "ffn_up", "weight-type", "stored as q4_0", lambda r: r["ffn_norm"] @ through("Q4_0", r.w(UP)).T
    ),
    "down in 8 bits": wrong(
        "ffn_out", "weight-type", "stored as q8_0", lambda r: r["ffn_swigl"] @ through("Q8_0", r.w(DOWN)).T
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
    "a control vector": wrong(
        "post_ffn_residual",
        "constant-offset",
        "one vector.*a control vector",
        lambda r: r["post_ffn_residual"] + np.random.default_rng(0).normal(0, 0.1, E),
    ),
    # feed-forward
    "one row's block": wrong(
        "ffn_gate",
        "one-channel",
        "channel 9: by no constant factor",
        lambda r: (
            r["ffn_gate"]
            + np.eye(r["ffn_gate"].shape[1])[9] * (r["ffn_norm"][:, :32] @ r.w(GATE)[9, :32])[:, None]
        ),
    ),
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
        "ffn_out x <0.22>",
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
        "channel 9: x <1.01>",
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
    if has_stage("q_norm", geometry, 0) and normed:
        heads = rms(heads, run.w("self_attn.q_norm.weight"), geometry.norm_eps)
    angles = np.outer(np.arange(len(fused)), theta ** (-np.arange(0, size, 2) / size))
    z = (heads[..., : size // 2] + 1j * heads[..., size // 2 :]) * np.exp(1j * angles)[:, None]
    return np.concatenate((z.real, z.imag), -1).reshape(len(fused), -1)


def late_norm(run: Run) -> F64:
    bare = turned_small(run, normed=False)
    heads = bare.reshape(len(bare), -1, run.trace.geometry.head_dim)
    return rms(heads, run.w("self_attn.q_norm.weight"), run.trace.geometry.norm_eps).reshape(bare.shape)
