"""Seeded faults of quantised weights: files that are read wrongly, and files that were written wrongly."""

from __future__ import annotations

from typing import Any

from apr_falsify.exam.fault import EVERY, Fault, fault
from apr_falsify.exam.quantised import AWQ_ORDER, FP8_BLOCK, NF4
from apr_falsify.exam.seeding import grids as g
from apr_falsify.exam.seeding import parts as p

_PRODUCTS = "qkv_matmul attn_out ffn_gate ffn_up ffn_out"
_GPTQ: Any = {"settings": ("gptq", "gptq act-order")}
_IN_GROUPS: Any = {"settings": ("gptq", "awq", "int4 groups")}
_ZEROS: Any = {"settings": ("gptq", "gptq act-order", "awq")}
_INTEGERS: Any = {"settings": ("gptq", "awq", "int4 groups", "int8 rows")}

_ZERO_POINTS = r"zero points?"
_GROUPS = r"of the group (before|after)|groups"
_FACTOR = r"\bx \d|factor|x 1/|scale"

_FP4_LEVELS = (0.0, 0.0052083, 0.6666667, 1.0, 0.3333333, 0.5, 0.1666667, 0.25)
_FP4 = (*_FP4_LEVELS, *(-level for level in _FP4_LEVELS))
"""What bitsandbytes' other four-bit table has for each code."""

_UNTAKEN = tuple(AWQ_ORDER.index(at) for at in range(8))
"""Where a reader that knows no order of AWQ finds each of eight neighbours."""

# fmt: off
OF_WEIGHTS: tuple[Fault, ...] = (
    # files that are read wrongly
    fault("zeros-one-larger", _PRODUCTS, "zero points that are stored less one get one more", _ZERO_POINTS,
          edit=g.misread(g.zeros_plus(1)), **_ZEROS, **EVERY),
    fault("zeros-one-smaller", _PRODUCTS, "zero points that are stored less one are taken as they are",
          _ZERO_POINTS, edit=g.misread(g.zeros_plus(-1)), **_ZEROS, **EVERY),
    fault("zeros-left-out", _PRODUCTS, "zero points are not subtracted", _ZERO_POINTS,
          edit=g.misread(g.zeros_left_out), **_ZEROS, **EVERY),
    fault("zeros-in-the-middle", _PRODUCTS, "every zero point is taken to be 8", _ZERO_POINTS,
          edit=g.misread(g.zeros_of(8)), **_ZEROS, **EVERY),
    fault("zeros-of-group-before", _PRODUCTS, "zero points are those of the group before", _GROUPS,
          edit=g.misread(g.zeros_shifted), settings=("gptq", "awq"), **EVERY),
    fault("codes-signed", _PRODUCTS, "codes are read as two's complement", r"two's complement",
          edit=g.misread(g.twos_complement), **_ZEROS, **EVERY),
    fault("scales-inverted", _PRODUCTS, "weights are divided by their scales", r"reciprocal",
          edit=g.misread(g.scales_inverted), **_INTEGERS, **EVERY),
    fault("scales-inverted-in-down", "ffn_out", "one matrix is divided by its scales", r"reciprocal",
          edit=g.misread(g.scales_inverted, "down"), **_INTEGERS),
    fault("groups-shifted", _PRODUCTS, "scales and zero points are those of the group before", _GROUPS,
          edit=g.misread(g.groups_shifted()), **_IN_GROUPS, **EVERY),
    fault("scales-shifted", _PRODUCTS, "scales are those of the group before", _GROUPS,
          edit=g.misread(g.groups_shifted(zeros=False)), **_IN_GROUPS, **EVERY),
    fault("scales-read-transposed", _PRODUCTS, "scales [groups, out] are read as [out, groups]", r"stored \[",
          edit=g.misread(g.scales_transposed), **_IN_GROUPS, **EVERY),
    fault("act-order-left-out", _PRODUCTS, "g_idx is not applied", r"g_idx|order",
          edit=g.misread(g.groups_in_order), settings=("gptq act-order",), **EVERY),
    fault("channels-as-quantised", _PRODUCTS, "channels stay as they were quantised", r"g_idx|order",
          edit=g.misread(g.channels_as_quantised), settings=("gptq act-order",), **EVERY),
    fault("nibbles-exchanged", _PRODUCTS, "the first code is looked for in the upper half of a byte",
          r"codes", edit=g.misread(g.neighbours_exchanged),
          settings=("gptq", "int4 groups", "nvfp4", "mxfp4", "nf4"), **EVERY),
    fault("nibbles-exchanged-in-up", "ffn_up", "one matrix has the codes of each byte exchanged",
          r"codes", edit=g.misread(g.neighbours_exchanged, "up"),
          settings=("gptq", "int4 groups", "nvfp4", "mxfp4", "nf4")),
    fault("awq-order-left-out", _PRODUCTS, "AWQ's order within a word is not known", r"codes",
          edit=g.misread(g.rows_in_places(AWQ_ORDER)), settings=("awq",), **EVERY),
    fault("awq-order-twice", _PRODUCTS, "AWQ's order within a word is undone the wrong way round",
          r"codes|rows|order", edit=g.misread(g.rows_in_places(_UNTAKEN)), settings=("awq",), **EVERY),
    fault("rows-scale-of-row-before", _PRODUCTS, "each row has the scale of the one before",
          r"row|channel|scale", edit=g.misread(g.rows_shifted), settings=("int8 rows", "llm.int8"), **EVERY),
    fault("scale-of-128", _PRODUCTS, "127 steps are taken to be 128", _FACTOR,
          edit=g.misread(g.scaled(127 / 128)), settings=("int8 rows", "llm.int8"), **EVERY),
    fault("fp8-blocks-transposed", _PRODUCTS, "the scales of blocks are read transposed",
          r"block|scales|group", edit=g.misread(g.blocks_transposed(FP8_BLOCK)),
          settings=("fp8 blocks",), **EVERY),
    fault("fp8-scale-inverted", _PRODUCTS, "weight_scale_inv is taken at its name", r"reciprocal",
          edit=g.misread(g.scales_inverted), settings=("fp8 blocks",), **EVERY),
    fault("fp8-other-bias", _PRODUCTS, "e4m3fn is read as e4m3fnuz, whose exponents are one less", _FACTOR,
          edit=g.misread(g.scaled(0.5)), settings=("fp8 blocks",), **EVERY),
    fault("nvfp4-second-scale-left-out", _PRODUCTS, "the scale of the whole tensor is left out", _FACTOR,
          edit=g.misread(g.second_scale(-1)), settings=("nvfp4",), **EVERY),
    fault("nvfp4-second-scale-inverted", _PRODUCTS, "scales are divided by the second one", _FACTOR,
          edit=g.misread(g.second_scale(-2)), settings=("nvfp4",), **EVERY),
    fault("blocks-shifted", _PRODUCTS, "scales are those of the block before", _GROUPS,
          edit=g.misread(g.groups_shifted()), settings=("nvfp4", "mxfp4", "nf4"), **EVERY),
    fault("mxfp4-exponent-one-more", _PRODUCTS, "powers of two have another bias", _FACTOR,
          edit=g.misread(g.scaled(2)), settings=("mxfp4",), **EVERY),
    fault("nf4-read-as-fp4", _PRODUCTS, "codes are looked up in the table of FP4", r"code|table|level|weight",
          edit=g.misread(g.other_table(NF4, _FP4)), settings=("nf4",), **EVERY),
    # files that were written wrongly
    fault("file-zeros-not-less-one", _PRODUCTS, "zero points were not stored less one", _ZERO_POINTS,
          parts=p.every("qzeros", p.fields_plus(1)), **_GPTQ, **EVERY),
    fault("file-zeros-less-two", _PRODUCTS, "one was taken off zero points twice", _ZERO_POINTS,
          parts=p.every("qzeros", p.fields_plus(-1)), **_GPTQ, **EVERY),
    fault("file-scales-inverted", _PRODUCTS, "reciprocals of scales were stored", r"reciprocal",
          parts=p.every("scales", p.reciprocal), settings=("gptq", "awq"), **EVERY),
    fault("file-groups-shifted", _PRODUCTS, "scales were stored one group too far", _GROUPS,
          parts=p.every("scales", p.rolled(0)), settings=("gptq", "awq"), **EVERY),
    fault("file-act-order-lost", _PRODUCTS, "g_idx was stored in order", r"rows differ",
          parts=p.every("g_idx", p.ordered), settings=("gptq act-order",), **EVERY),
    fault("file-nibbles-exchanged", _PRODUCTS, "the codes of each byte were exchanged", r"codes",
          parts=p.every("qweight", p.halves_exchanged), settings=("gptq",), **EVERY),
    fault("file-awq-order-of-gptq", _PRODUCTS, "words were packed in plain order", r"codes",
          parts=p.every("qweight", p.places_taken(_UNTAKEN)), settings=("awq",), **EVERY),
    fault("file-int4-scales-transposed", _PRODUCTS, "scales were stored transposed", r"stored \[|rows differ",
          parts=p.every("weight_scale", p.transposed), settings=("int4 groups",), **EVERY),
    fault("file-int8-scales-shifted", _PRODUCTS, "scales were stored one row too far", r"rows differ",
          parts=p.every("weight_scale", p.rolled(0)), settings=("int8 rows",), **EVERY),
    fault("file-fp8-blocks-transposed", _PRODUCTS, "the scales of blocks were stored transposed",
          r"rows differ", parts=p.every("weight_scale_inv", p.transposed), settings=("fp8 blocks",), **EVERY),
    fault("file-fp8-scale-inverted", _PRODUCTS, "weight_scale_inv was stored as its name says", r"reciprocal",
          parts=p.every("weight_scale_inv", p.reciprocal), settings=("fp8 blocks",), **EVERY),
    fault("file-nvfp4-second-scale-lost", _PRODUCTS, "the scale of the whole tensor was stored as 1",
          r"rows differ", parts=p.every("weight_scale_2", p.set_to(1)), settings=("nvfp4",), **EVERY),
    fault("file-mxfp4-exponent-one-more", _PRODUCTS, "powers of two were stored with another bias",
          r"rows differ", parts=p.every("weight_scale", p.plus(1)), settings=("mxfp4",), **EVERY),
    fault("file-nf4-blocks-shifted", _PRODUCTS, "scales were stored one block too far", r"rows differ|group",
          parts=p.every("weight.absmax", p.rolled(0)), settings=("nf4",), **EVERY),
    fault("file-one-scale-doubled", "ffn_gate", "one row has scales of twice their size", r"rows differ",
          parts=p.one_layer("gate_proj", "scales", p.multiplied(2, (slice(None), 11))),
          settings=("gptq", "awq")),
    fault("file-codes-of-one-row", "ffn_out", "one row's codes are those of the row before", r"rows differ",
          parts=p.one_layer("down_proj", "weight", p.row_before(5)), settings=("int8 rows", "llm.int8")),
)
# fmt: on
"""Faults of quantised weights."""
