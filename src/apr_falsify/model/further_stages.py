"""Stages that some kinds of layers have, which ``apr`` does not: rows of the table of ``stages.py``.

A row is name, axes, whether it is a product, and what it is.
"""

from __future__ import annotations

Row = tuple[str, tuple[str, ...], bool, str]

_CONV, _SCAN, _HEADS = ("tokens", "conv"), ("tokens", "scan"), ("tokens", "scan_heads")

OF_MIXERS: tuple[Row, ...] = (
    ("scan_qkv", _CONV, True, "q|k|v of linear attention, before their convolution"),
    ("scan_xbc", _CONV, True, "x|B|C of a state space, before their convolution"),
    ("dt_logits", _HEADS, True, "the step of each head of a state space, as projected"),
    (
        "conv_proj",
        ("tokens", "conv_parts"),
        True,
        "gates before and after a short convolution, and its input",
    ),
    ("conv_in", _CONV, False, "gated input of a short convolution"),
    ("conv_out", _CONV, False, "what the short convolution makes, past its activation where it has one"),
    ("conv_gated", _CONV, False, "the convolution's output times its second gate"),
    ("scan_gate", _SCAN, True, "the gate z of linear attention's output"),
    ("beta_logits", _HEADS, True, "how far each head learns a token, before the sigmoid"),
    ("beta", _HEADS, False, "how far each head learns a token, from 0 to 1"),
    ("decay_logits", _HEADS, True, "the decay of each head's state, as projected"),
    ("dt", _HEADS, False, "the step of each head, past softplus and within its bounds"),
    ("decay", _HEADS, False, "the logarithm of what each head's state keeps, at most 0"),
    ("scan_out", _SCAN, False, "what each token reads from the states, with D x in a state space"),
    ("scan_norm", _SCAN, False, "the same normed and gated, before the output projection"),
)
"""What stands in the place of attention in recurrent layers and in convolutions."""

AFTER_ROPE: tuple[Row, ...] = (
    ("q_l2_norm", ("tokens", "q"), False, "queries after the norm that follows RoPE"),
    ("k_l2_norm", ("tokens", "kv"), False, "keys after the norm that follows RoPE"),
    ("q_tempered", ("tokens", "q"), False, "queries times the attention temperature of their position"),
)

OF_GATED_ATTENTION: tuple[Row, ...] = (
    ("attn_gate", ("tokens", "q"), True, "the gate of attention's output, before the sigmoid"),
    ("attn_gated", ("tokens", "q"), False, "attention's output times its gate, before the output projection"),
)

OF_LATENTS: tuple[Row, ...] = (
    ("q_latent", ("tokens", "q_latent"), True, "the latent that q is made of"),
    ("q_latent_norm", ("tokens", "q_latent"), False, "that latent after its norm"),
    ("q_up", ("tokens", "q"), True, "queries made of it, before RoPE"),
    ("kv_latent", ("tokens", "kv_latent"), True, "the latent that k and v are made of"),
    ("kv_latent_norm", ("tokens", "kv_latent"), False, "that latent after its norm, as a cache keeps it"),
    ("kv_up", ("tokens", "kv_up"), True, "k without its rotated part, and v, made of it: head by head"),
    ("k_shared", ("tokens", "rotary"), True, "the part of k that all heads share, before RoPE"),
    ("k_rope", ("tokens", "rotary"), False, "that part after RoPE, as a cache keeps it"),
)
"""What q, k and v of latent attention are made of."""
