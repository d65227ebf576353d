"""Wrong activations, residual sums, logits, and what is wrong in one place alone, worked out with torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from tests.unit.compare.wrong_stages import F64, H, Run, Wrong, changed, merged, split, wrong


def by_torch(function: Callable[[torch.Tensor], torch.Tensor], x: F64) -> F64:
    return function(torch.from_numpy(x)).numpy()


def silu(x: F64) -> F64:
    return by_torch(functional.silu, x)


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    r"gelu \(sigmoid of 1.702 x\)": lambda x: x * torch.sigmoid(1.702 * x),
    "hard silu": functional.hardswish,
    "relu squared": lambda x: functional.relu(x) ** 2,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": functional.softplus,
    "mish": functional.mish,
}


STREAMS: dict[str, Callable[[Run], F64]] = {
    "attn_out added to embedding for layer_input": lambda r: r["embedding"] + r["attn_out"],
    "attention added for attn_out": lambda r: r["layer_input"] + r["attention"],
    "ffn_out added for attn_out": lambda r: r["layer_input"] + r["ffn_out"],
    "ffn_norm added for attn_out": lambda r: r["layer_input"] + r["ffn_norm"],
    "attn_norm added for attn_out": lambda r: r["layer_input"] + r["attn_norm"],
    "attn_out added to ffn_norm for layer_input": lambda r: r["ffn_norm"] + r["attn_out"],
}


def in_bits(x: F64, bits: int) -> F64:
    """Round to ``bits`` bits of precision, by the definition of a floating-point number."""
    unit = 2.0 ** (np.floor(np.log2(np.abs(x))) - (bits - 1))
    return np.rint(x / unit) * unit


BLOCK_ENDS: dict[str, Wrong] = {
    # feed-forward
    **{
        f"activation {says}": wrong(
            "ffn_silu",
            "activation",
            f"^the activation {says}.* fits .*the model declares silu",
            lambda r, function=function: by_torch(function, r["ffn_gate"]),
        )
        for says, function in ACTIVATIONS.items()
    },
    "gelu in the product": wrong(
        "ffn_swigl",
        "activation",
        r"^the activation gelu \(exact\) fits",
        lambda r: by_torch(functional.gelu, r["ffn_gate"]) * r["ffn_up"],
    ),
    "up alone": wrong("ffn_swigl", "gate-product", "up alone, without the gate", lambda r: r["ffn_up"]),
    "up + 1": wrong(
        "ffn_swigl", "gate-product", r"\* \(up \+ 1\)", lambda r: r["ffn_silu"] * (r["ffn_up"] + 1)
    ),
    "silu twice": wrong(
        "ffn_swigl", "gate-product", "activation applied twice", lambda r: silu(r["ffn_silu"]) * r["ffn_up"]
    ),
    "silu of the product": wrong(
        "ffn_swigl",
        "gate-product",
        "activation after the product",
        lambda r: silu(r["ffn_silu"] * r["ffn_up"]),
    ),
    "both activated": wrong(
        "ffn_swigl", "gate-product", "both gate and up activated", lambda r: r["ffn_silu"] * silu(r["ffn_up"])
    ),
    # residual streams
    "subtracted": wrong(
        "post_attn_residual", "residual", "attn_out subtracted", lambda r: r["layer_input"] - r["attn_out"]
    ),
    "branch twice": wrong(
        "post_ffn_residual",
        "residual",
        "ffn_out added twice",
        lambda r: r["post_attn_residual"] + 2 * r["ffn_out"],
    ),
    "both scaled": wrong(
        "post_ffn_residual",
        "residual",
        r"post_attn_residual x 0\.9 and ffn_out x 1\.234",
        lambda r: 0.9 * r["post_attn_residual"] + 1.234 * r["ffn_out"],
    ),
    **{says: wrong("post_attn_residual", "residual-source", says, make) for says, make in STREAMS.items()},
    "attn_out once more": wrong(
        "post_ffn_residual",
        "residual-source",
        "attn_out added a second time",
        lambda r: r["post_ffn_residual"] + r["attn_out"],
    ),
    # values that are kept wrongly
    **{
        f"{bits} bits": wrong(
            "ffn_out",
            "precision",
            f"the right values stored as {says}",
            lambda r, bits=bits: in_bits(r["ffn_out"], bits),
        )
        for bits, says in {
            11: r"f16 \(11 bits of precision\)",
            6: "6 bits of precision",
            4: r"an 8-bit float \(4 bits of precision\)",
            3: r"an 8-bit float \(3 bits of precision\)",
            15: "15 bits of precision",
        }.items()
    },
    "clipped below": wrong(
        "post_ffn_residual",
        "clipped",
        r"values clipped to -0\.5 \.\.\. ",
        lambda r: np.maximum(r["post_ffn_residual"], -0.5),
    ),
    **{
        f"logits capped at {cap}": wrong(
            "lm_head",
            "soft-cap",
            f"soft-capped at {cap} fits",
            lambda r, cap=cap: cap * np.tanh(r["lm_head"] / cap),
        )
        for cap in (15, 20, 50, 100)
    },
    # head
    "probabilities": wrong(
        "lm_head",
        "softmax-included",
        "probabilities for logits",
        lambda r: torch.softmax(torch.from_numpy(r["lm_head"]), -1).numpy(),
    ),
    "not normed": wrong(
        "lm_head",
        "other-input",
        "the hidden state, not normed",
        lambda r: r.trace.stages[2, "post_ffn_residual"].data[-1].astype(float) @ r.w("lm_head.weight").T,
    ),
    "the first token": wrong(
        "lm_head",
        "other-input",
        "token 0 instead of the last",
        lambda r: r["final_norm"][0] @ r.w("lm_head.weight").T,
    ),
    # one place alone
    "one value": wrong(
        "ffn_up",
        "one-value",
        r"only token 3, channel 17: x 1\.5 there|only channel 17, token 3: x 1\.5 there",
        lambda r: changed(r["ffn_up"], np.s_[3, 17], 1.5),
    ),
    "a zeroed token": wrong(
        "ffn_out", "one-token", "only token 2: all zeros there", lambda r: changed(r["ffn_out"], 2, 0)
    ),
    "a channel of every head": wrong(
        "attention",
        "one-channel-of-every-head",
        r"only channel 5 of every head: x 1\.25 there",
        lambda r: changed(r["attention"], np.s_[:, 5::32], 1.25),
    ),
    "a key": wrong(
        "attn_scores",
        "one-key",
        r"only key 2: x 0\.7 there",
        lambda r: changed(r["attn_scores"], np.s_[:, :, 2], 0.7),
    ),
    "one logit": wrong(
        "lm_head",
        "one-value",
        r"only vocabulary entry 99: x 3 there",
        lambda r: changed(r["lm_head"], 99, 3),
    ),
    "a token for another": wrong(
        "ffn_out",
        "one-token",
        "only token 1: by no constant factor; everything else fits",
        lambda r: r["ffn_out"][[0, 4, 2, 3, 4, 5, 6]],
    ),
    "a head for another": wrong(
        "attention",
        "one-head",
        "only head 4: by no constant factor; everything else fits",
        lambda r: merged(
            np.where(
                np.arange(H)[:, None, None] == 4, np.cos(split(r["attention"], H)), split(r["attention"], H)
            )
        ),
    ),
}
"""Of the tiny checkpoint's second layer, on seven tokens."""
