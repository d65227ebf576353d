"""Stages that some kinds of layers have, which ``apr`` does not: rows of the table of ``stages.py``.

A row is name, axes, whether it is a product, and what it is.
"""

from __future__ import annotations

Row = tuple[str, tuple[str, ...], bool, str]

_CONV, _SCAN, _HEADS = ("tokens", "conv"), ("tokens", "scan"), ("tokens", "scan_heads")

OF_MIXERS: tuple[Row, ...] = (
    ("scan_qkv", _CONV, True, "q|k|v of linear attention, before their convolution"),
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
    ("decay", _HEADS, False, "the logarithm of what each head's state keeps, at most 0"),
    ("scan_out", _SCAN, False, "what each token's query reads from the states"),
    ("scan_norm", _SCAN, False, "the same normed by head and gated, before the output projection"),
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
