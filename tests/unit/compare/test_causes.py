"""Each wrong stage gets its right name: in f32 and f16, on a trained checkpoint and on real recordings."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from apr_falsify.compare.axes import Axes, axes_of
from apr_falsify.compare.causes import TABLE, Cause, error_sits, explain
from apr_falsify.compare.judge import LIMIT, store_of
from apr_falsify.compare.replay import Replayer
from apr_falsify.ops import stages_of
from apr_falsify.rules import PLAIN, RULES, Operation, Rule
from apr_falsify.stages import STAGES
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.llama_cpp import open_llama_cpp
from apr_falsify.subjects.recorded import open_recorded
from apr_falsify.trace import Key, StageArray, Trace
from apr_falsify.weights import Model, open_model
from tests.real_model import smollm2_or_skip
from tests.support import DATA
from tests.unit.compare.wrong_stages import (
    F64,
    MODULO,
    OWN,
    ROUND,
    TOKENS,
    D,
    E,
    H,
    K,
    Run,
    back,
    biases,
    explained,
    k_of,
    merged,
    mixed,
    q_of,
    rms,
    rotated,
    rotated_pairs,
    scores,
    small_run,
    softmax,
    split,
    tiny_run,
    v_of,
    with_biases,
)
from tests.unit.helpers import KNOBS, TINY


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


@cache
def run_in(dtype: str) -> Run:
    return tiny_run(dtype)


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("dtype", ROUND)
def test_a_fault_gets_its_name(name: str, dtype: str) -> None:
    fault = FAULTS[name]
    if dtype == "f16" and not fault.f16:
        return
    run = run_in(dtype)
    cause = explained(run, fault.stage, ROUND[dtype](fault.make(run)))
    assert cause is not None
    assert (cause.name, cause.fits) == (fault.cause, True), cause
    assert re.search(fault.says, cause.sentence), cause.sentence


@pytest.mark.parametrize("dtype", ROUND)
@pytest.mark.parametrize("stage", list(stages_of(run_in("f32").trace.geometry)))
def test_a_correct_stage_has_no_cause(stage: str, dtype: str) -> None:
    run = run_in(dtype)
    assert explained(run, stage, run[stage]) is None


@pytest.mark.parametrize("stage", list(stages_of(run_in("f32").trace.geometry)))
def test_noise_has_no_cause(stage: str) -> None:
    run = run_in("f32")
    noise = np.random.default_rng(1).normal(1, 0.01, run[stage].shape)
    cause = explained(run, stage, (run[stage] * noise).astype(np.float32))
    assert cause is None or not cause.fits, cause


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


@pytest.mark.parametrize("name", SMALL_FAULTS)
def test_faults_that_only_some_families_can_have(name: str) -> None:
    knobs, fault = SMALL_FAULTS[name]
    run = small_run(**knobs)
    cause = explained(run, fault.stage, fault.make(run).astype(np.float32))
    assert cause is not None
    assert (cause.name, cause.fits) == (fault.cause, True), cause
    assert re.search(fault.says, cause.sentence), cause.sentence


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_correct_stages_of_other_families_have_no_cause(family: str) -> None:
    run = small_run(**KNOBS[family])
    for stage in stages_of(run.trace.geometry):
        assert explained(run, stage, run[stage]) is None, stage


def test_a_missing_bias_shows_where_q_k_v_with_bias_was_not_captured() -> None:
    run = run_in("f32")
    bare = rotated(run["qkv_matmul"][:, H * D : (H + K) * D], THETA).astype(np.float32)
    cause = explained(run, "k_post_rope", bare, without=("qkv_bias",))
    assert cause is not None
    assert (cause.name, cause.fits) == ("missing-bias", True)


def test_one_token_names_what_it_cannot_tell_apart() -> None:
    run = tiny_run(tokens=(274,))
    x, w = run["layer_input"], run.w("input_layernorm.weight")
    cause = explained(run, "attn_norm", rms(x, w, 0.5).astype(np.float32))
    assert cause is not None
    assert cause.fits
    assert cause.name == "factor"
    assert "one token cannot tell it from: epsilon" in cause.sentence


def test_values_that_are_not_finite_are_counted_and_the_rest_is_explained() -> None:
    run = run_in("f32")
    values = with_biases(run, k=0).astype(np.float32)
    values[2, 5], values[3, 7] = np.nan, np.inf
    cause = explained(run, "qkv_bias", values)
    assert cause is not None
    assert (cause.name, cause.fits) == ("missing-bias", True)
    assert cause.sentence.startswith("2 of 2688 values are not finite; ")


def test_values_that_are_not_finite_in_a_stage_that_fits_otherwise_are_the_cause() -> None:
    run = run_in("f32")
    values = run["ffn_out"].astype(np.float32)
    values[0, 0] = np.nan
    cause = explained(run, "ffn_out", values)
    assert cause is not None
    assert cause.name == "not-finite"


def test_without_weights_causes_that_need_none_are_still_found() -> None:
    run = run_in("f32")
    wrong_base = rotated(q_of(run), 1e4).astype(np.float32)
    cause = explained(replace(run, model=None), "q_post_rope", wrong_base)
    assert cause is not None
    assert cause.name == "rope-base"


def test_two_causes_in_one_stage_fit_none_but_the_nearest_is_named() -> None:
    run = run_in("f32")
    twice = changed(2 * run["ffn_out"], np.s_[3, 5], 1.001)
    cause = explained(run, "ffn_out", twice.astype(np.float32))
    assert cause is not None
    assert (cause.name, cause.fits) == ("factor", False)
    assert "without fitting" in cause.sentence


def test_what_multiplies_again_stands_behind_what_does_not() -> None:
    multiplying = [index for index, row in enumerate(TABLE) if row.multiplies]
    cheap = [
        index for index, row in enumerate(TABLE) if not row.multiplies and row.name in ("factor", "mask")
    ]
    assert max(cheap) < min(multiplying)
    assert all(set(row.stages) <= set(STAGES) for row in TABLE)


# real recordings


def recorded(
    folder: str, model: Path, tokens: tuple[int, ...] = (274, 272, 332, 13, 20, 33)
) -> tuple[Trace, Model]:
    opened = open_model(model)
    target = Target(path=DATA / folder, model=opened, tokens=tokens)
    return open_recorded(target).trace, opened


def cause_in(trace: Trace, model: Model, key: Key, rule: Rule = PLAIN) -> Cause | None:
    replayer = Replayer(trace, model.weights, store_of(trace))
    subject = replayer.captured(key)
    assert subject is not None
    return explain(replayer, key, rule, subject, LIMIT)


def test_a_norm_weight_scaled_and_kept_as_f16_in_a_real_apr_is_a_factor() -> None:
    cause = cause_in(*recorded("apr-tiny-qwen2/norm-scaled", TINY), (0, "attn_norm"))
    assert cause is not None
    assert (cause.name, cause.fits) == ("factor", True)
    assert "x 1.01," in cause.sentence


def test_the_zeroed_k_bias_of_a_real_apr_is_missing() -> None:
    cause = cause_in(*recorded("apr-tiny-qwen2/k-bias-zero", TINY), (0, "qkv_bias"))
    assert cause is not None
    assert (cause.name, cause.fits) == ("missing-bias", True)
    assert "bias of k missing" in cause.sentence


def test_the_pairs_that_a_real_apr_rotates_on_a_huggingface_llama_are_named() -> None:
    folder = "apr-tiny-llama-hf"
    trace, model = recorded(f"{folder}/trace", DATA / folder / "model")
    for stage in ("q_post_rope", "k_post_rope"):
        cause = cause_in(trace, model, (0, stage))
        assert cause is not None
        assert (cause.name, cause.fits) == ("rope-pairing", True)
    assert cause_in(trace, model, (0, "attn_scores")) is None


@pytest.mark.real_model
@pytest.mark.parametrize("stage", ["q_post_rope", "k_post_rope"])
def test_the_rotary_base_of_a_real_llama_cpp_is_named(stage: str) -> None:
    model = open_model(smollm2_or_skip())
    path = DATA / "llama-cpp-smollm2-135m" / "rope-base-50000.npz"
    trace = open_llama_cpp(Target(path=path, model=model)).trace
    cause = cause_in(trace, model, (29, stage))
    assert cause is not None
    assert (cause.name, cause.fits) == ("rope-base", True)
    assert "50000" in cause.sentence


Q4K = next(rule for rule in RULES[Operation.PROJECTION] if rule.name == "q8 blocks of 256")
Q4K_FAULTS: dict[str, tuple[str, Rule, str, str, Callable[[F64], F64]]] = {
    "halved": ("attn_out", Q4K, "factor", "1/2", lambda y: y / 2),
    "a row": ("ffn_gate", Q4K, "one-channel", "channel 17: x 1.02", lambda y: changed(y, np.s_[:, 17], 1.02)),
    "a head of q": ("qkv_matmul", Q4K, "one-head", "q head 2", lambda y: changed(y, np.s_[:, 64:96], 1.05)),
    "k scaled": ("qkv_matmul", Q4K, "factor", "k x ", lambda y: changed(y, np.s_[:, 256:320], 3)),
    "order": ("qkv_matmul", Q4K, "qkv-order", r"q\|v\|k", lambda y: y[:, np.r_[:256, 320:384, 256:320]]),
    "a token": ("ffn_out", Q4K, "one-token", "token 3", lambda y: np.vstack((y[:3], y[1:2], y[4:]))),
    "logits": ("lm_head", PLAIN, "factor", "x 0.7", lambda y: 0.7 * y),
    "channel of the stream": (
        "post_ffn_residual",
        PLAIN,
        "one-channel",
        "x 1.01",
        lambda y: changed(y, np.s_[:, 9], 1.01),
    ),
}


@pytest.mark.parametrize("name", Q4K_FAULTS)
def test_a_fault_in_a_real_4_bit_run_gets_its_name(name: str) -> None:
    stage, rule, expected, says, change = Q4K_FAULTS[name]
    trace, model = recorded("apr-tiny-qwen2/base-q4k", DATA / "apr-tiny-qwen2" / "base-q4k.gguf")
    key = (None if stage == "lm_head" else 0, stage)
    array = trace.stages[key]
    wrong_values = change(array.data.astype(np.float64)).astype(np.float32)
    stages = {**trace.stages, key: StageArray(data=wrong_values, layout=array.layout)}
    cause = cause_in(replace(trace, stages=stages), model, key, rule)
    assert cause is not None
    assert (cause.name, cause.fits) == (expected, True), cause
    assert re.search(says, cause.sentence), cause.sentence


# where an error sits

TOKEN_CHANNEL = Axes(names=("token", "channel"))
HEADED = axes_of("q_post_rope", run_in("f32").trace.geometry)
SITES: dict[str, tuple[Axes, tuple[int, ...], object, str]] = {
    "one channel": (
        TOKEN_CHANNEL,
        (7, 256),
        np.s_[:, 17],
        "channel 17 of 256, every token (7 of 1792 values)",
    ),
    "tokens": (TOKEN_CHANNEL, (7, 256), np.s_[4:], "tokens 4 to 6, every channel (768 of 1792 values)"),
    "one head": (
        HEADED,
        (7, 256),
        np.s_[:, 96:128],
        "head 3, every token, every channel (224 of 1792 values)",
    ),
    "one channel of a head": (
        HEADED,
        (7, 256),
        np.s_[:, 101],
        "head 3, channel 5 of 32 of the head, every token (7 of 1792 values)",
    ),
    "everything": (TOKEN_CHANNEL, (7, 256), np.s_[:], "every token, every channel (1792 of 1792 values)"),
    "keys": (
        Axes(names=("head", "token", "key")),
        (8, 7, 7),
        np.s_[2, :, [1, 3, 6]],
        "head 2 only, keys 1, 3, 6, every token (21 of 392 values)",
    ),
    "nothing": (TOKEN_CHANNEL, (7, 256), np.s_[:0], "nowhere"),
}


@pytest.mark.parametrize("name", SITES)
def test_an_error_is_said_to_sit_where_it_does(name: str) -> None:
    axes, shape, at, said = SITES[name]
    expected = np.random.default_rng(0).normal(size=shape)
    subject = expected.copy()
    subject[at] += 1  # type: ignore[index]
    assert error_sits(subject, expected, np.full(shape, 1e-7), LIMIT, axes) == said


def test_values_that_are_not_finite_sit_somewhere_too() -> None:
    expected = np.zeros((3, 4))
    subject = expected.copy()
    subject[1, 2] = np.nan
    said = error_sits(subject, expected, np.full((3, 4), 1e-7), LIMIT, TOKEN_CHANNEL)
    assert said == "token 1 only, channel 2 of 4 (1 of 12 values)"
