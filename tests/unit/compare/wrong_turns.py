"""Rotations and norms that are one number off, worked out with torch from the file's own tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from apr_falsify.model.stages import Key
from tests.unit.compare.family_runs import Run
from tests.unit.compare.solved import EMBEDDED, TOKENS, Tensor, Wrong, wrong

Q: Key = Key(1, "q_post_rope")
K: Key = Key(1, "k_post_rope")
PHI3 = "phi3-longrope-partial-window"
IN_TURN = range(TOKENS)
LONG, SHORT = [1.5, 2.0, 3.0, 5.0, 8.0, 9.0], [1.0, 1.1, 1.3, 1.7, 2.0, 2.5]
"""The recipe's divisors of each pair."""


def steps(width: int, theta: float = 1e4, divisors: Sequence[float] | None = None) -> Tensor:
    """The frequencies of ``width`` rotated channels."""
    pairs = width // 2
    plain = torch.tensor([theta ** (-2 * pair / width) for pair in range(pairs)], dtype=torch.float64)
    return plain / torch.tensor(divisors or [1.0] * pairs, dtype=torch.float64)


def longrope(factor: float) -> float:
    """The attention factor of the recipe's original context of 16 tokens."""
    return math.sqrt(1 + math.log(factor) / math.log(16))


def turned(
    run: Run, key: Key, frequencies: Tensor, positions: Sequence[int] = IN_TURN, factor: float = 1.0
) -> Tensor:
    """RoPE as HuggingFace writes it, x * cos + rotate_half(x) * sin, on each head's first channels."""
    g = run.trace.geometry
    sizes = [g.heads * g.head_dim, g.kv_heads * g.head_dim, g.kv_heads * g.head_dim]
    fused = run[1, "qkv_bias" if g.qkv_bias else "qkv_matmul"]
    heads = fused.split(sizes, dim=-1)["qk".index(key[1][0])].reshape(len(fused), -1, g.head_dim)
    angles = torch.outer(torch.tensor(list(positions)).double(), frequencies).repeat(1, 2)[:, None]
    first, rest = heads.split([angles.shape[-1], g.head_dim - angles.shape[-1]], dim=-1)
    low, high = first.chunk(2, dim=-1)
    half = torch.cat((-high, low), dim=-1)
    made = factor * (first * torch.cos(angles) + half * torch.sin(angles))
    return torch.cat((made, rest), dim=-1).reshape(len(fused), -1)


def turn(
    recipe: str,
    key: Key,
    cause: str,
    says: str,
    frequencies: Tensor,
    positions: Sequence[int] = IN_TURN,
    factor: float = 1.0,
) -> Wrong:
    return wrong(recipe, key, cause, says, lambda run: turned(run, key, frequencies, positions, factor))


ROTATIONS: dict[str, Wrong] = {
    "the long factors": turn(
        PHI3,
        Q,
        "rope-scaling",
        "^the long factors for the short ones fits.*9 tokens are within the original context of 16",
        steps(12, divisors=LONG),
        factor=longrope(8),
    ),
    "the long factors, and no attention factor": turn(
        PHI3,
        K,
        "rope-scaling",
        "^the long factors for the short ones and no attention factor fits",
        steps(12, divisors=LONG),
    ),
    "no attention factor": turn(
        PHI3, K, "rope-scaling", "without the attention factor 1.3229 fits", steps(12, divisors=SHORT)
    ),
    "another longrope factor": turn(
        PHI3,
        K,
        "rope-scaling",
        r"^the attention factor 1.5 for 1.3229 \(that of longrope with factor 32\) fits",
        steps(12, divisors=SHORT),
        factor=longrope(32),
    ),
    "any attention factor": turn(
        PHI3,
        K,
        "rope-scaling",
        "^the attention factor 1.1 for 1.3229 fits",
        steps(12, divisors=SHORT),
        factor=1.1,
    ),
    "no longrope": turn(PHI3, K, "rope-scaling", "^RoPE without scaling fits.*declares longrope", steps(12)),
    "another base of longrope": turn(
        PHI3,
        K,
        "rope-base",
        "^RoPE base 500000 fits.*declares 10000",
        steps(12, 5e5, SHORT),
        factor=longrope(8),
    ),
    "longrope the other way": turn(
        PHI3,
        K,
        "rope-direction",
        "rotation in the other direction",
        -steps(12, divisors=SHORT),
        factor=longrope(8),
    ),
    "longrope from one": turn(
        PHI3,
        K,
        "rope-position",
        "start at 1 instead",
        steps(12, divisors=SHORT),
        range(1, 10),
        longrope(8),
    ),
    "the whole head": turn(
        PHI3,
        Q,
        "rope-partial",
        "^each head rotated as a whole fits.*the model rotates the first 12 of 24",
        steps(24),
    ),
    "another share": turn(
        PHI3,
        Q,
        "rope-partial",
        "^the first 8 of 24 channels of each head rotated fits.*the first 12 of 24",
        steps(8),
    ),
    "an odd share": turn(
        "llama", Q, "rope-partial", "^only the first 10 of 24 channels of each head rotated fits", steps(10)
    ),
    "an odd share at the head's own pace": turn(
        "llama",
        Q,
        "rope-partial",
        "^only the first 10 of 24 channels of each head rotated, by the frequencies of a whole head, fits",
        steps(24)[:5],
    ),
    "some pairs": turn(
        "llama",
        K,
        "rope-partial",
        "^only the first 5 of 12 pairs rotated fits",
        torch.where(torch.arange(12) < 5, steps(24), 0.0),
    ),
    "a position twice": turn(
        "llama",
        Q,
        "rope-position",
        "^tokens 3 to 8 at positions 2 to 7 fits.*token t stands at position t",
        steps(24),
        (0, 1, 2, 2, 3, 4, 5, 6, 7),
    ),
    "one token elsewhere": turn(
        "granite",
        K,
        "rope-position",
        "^token 4 at position 700 fits",
        steps(24),
        (0, 1, 2, 3, 700, 5, 6, 7, 8),
    ),
    "left padding": turn(
        "llama",
        Q,
        "rope-position",
        "^token 0 at position 1, token 2 at position 1, tokens 3 to 8 at positions 0 to 5 fits",
        steps(24),
        (1, 1, 1, 0, 1, 2, 3, 4, 5),
    ),
    "gaps": turn(
        "llama",
        K,
        "rope-position",
        "^tokens 3 to 6 at positions 10 to 13, tokens 7 to 8 at positions 20 to 21 fits",
        steps(24),
        (0, 1, 2, 10, 11, 12, 13, 20, 21),
    ),
    "positions of longrope": turn(
        PHI3,
        K,
        "rope-position",
        "^tokens 3 to 8 at positions 2 to 7 fits",
        steps(12, divisors=SHORT),
        (0, 1, 2, 2, 3, 4, 5, 6, 7),
        longrope(8),
    ),
    "each pair at its own pace": turn(
        "llama",
        Q,
        "rope-scaling",
        r"the model's divided by 1, 1.273, 1.545, 1.818 \.\.\. 4, fits",
        steps(24) / torch.linspace(1, 4, 12).double(),
    ),
    "RoPE beside learned positions": turn(
        "gpt2", Q, "rope-applied", "^RoPE with base 10000 fits.*learns its positions", steps(24)
    ),
}


def layer_norm(run: Run, eps: float) -> Tensor:
    weight, bias = (run.w(f"transformer.h.0.ln_1.{part}") for part in ("weight", "bias"))
    return functional.layer_norm(run[EMBEDDED], (96,), weight, bias, eps)


G = "model.layers.1."


def projected(run: Run, stage: str) -> Tensor:
    source, weight = {
        "attn_out": ("attention", "self_attn.o_proj"),
        "ffn_out": ("ffn_swigl", "mlp.down_proj"),
    }[stage]
    return run[1, source] @ run.w(f"{G}{weight}.weight").T


def post_norm(stage: str, eps: float, offset: float = 0.0) -> Callable[[Run], Tensor]:
    name = {"attn_out": "post_attention_layernorm", "ffn_out": "post_feedforward_layernorm"}[stage]
    return lambda run: functional.rms_norm(
        projected(run, stage), (64,), offset + run.w(f"{G}{name}.weight"), eps
    )


FIRST: Key = Key(0, "attn_norm")
OUT: Key = Key(1, "attn_out")
DOWN: Key = Key(1, "ffn_out")

NORMS: dict[str, Wrong] = {
    "epsilon of a LayerNorm": wrong(
        "gpt2", FIRST, "epsilon", "^epsilon 1e-06 fits", lambda r: layer_norm(r, 1e-6)
    ),
    "odd epsilon of a LayerNorm": wrong(
        "gpt2", FIRST, "epsilon", "^epsilon 0.00023 fits", lambda r: layer_norm(r, 2.3e-4)
    ),
    "epsilon of a norm after attention": wrong(
        "olmo2", OUT, "epsilon", "^epsilon 0.001 fits.*declares 1e-05", post_norm("attn_out", 1e-3)
    ),
    "odd epsilon of a norm after the block": wrong(
        "olmo2", DOWN, "epsilon", "^epsilon 0.037 fits", post_norm("ffn_out", 0.037)
    ),
    "epsilon of Gemma's norm after attention": wrong(
        "gemma2", OUT, "epsilon", "^epsilon 0.001 fits", post_norm("attn_out", 1e-3, 1.0)
    ),
    "Gemma's norm without its offset": wrong(
        "gemma3", DOWN, "norm-form", "the weight - 1 for the weight", post_norm("ffn_out", 1e-5)
    ),
    "no norm after the block": wrong(
        "olmo2", DOWN, "norm-form", "the norm skipped", lambda r: projected(r, "ffn_out")
    ),
    "exact gelu without a gate": wrong(
        "gpt2",
        Key(1, "ffn_silu"),
        "activation",
        r"gelu \(exact\) fits.*gelu_new",
        lambda r: functional.gelu(r[1, "ffn_up"]),
    ),
    "exact gelu of a gate": wrong(
        "gemma2",
        Key(1, "ffn_silu"),
        "activation",
        r"gelu \(exact\) fits.*gelu_pytorch_tanh",
        lambda r: functional.gelu(r[1, "ffn_gate"]),
    ),
    "exact gelu in the product": wrong(
        "gemma3",
        Key(1, "ffn_swigl"),
        "activation",
        r"gelu \(exact\) fits.*gelu_pytorch_tanh",
        lambda r: functional.gelu(r[1, "ffn_gate"]) * r[1, "ffn_up"],
    ),
}
"""Of the first or second layer of each recipe's checkpoint, on nine tokens."""
