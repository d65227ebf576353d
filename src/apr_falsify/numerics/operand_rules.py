"""The closed table of arithmetics: what a runtime does to the operands of a product before it sums.

A rule changes operands, never sums: products of what it leaves are summed in f64, and what then remains
between that and a runtime is the rounding of its own sums (``compare.floor``). Which rule each runtime
uses was measured on its output or is published in its sources, as each row says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import UsageError, nearest
from apr_falsify.numerics import quantise
from apr_falsify.numerics.arithmetic import FORMATS

F64 = npt.NDArray[np.float64]
Values = npt.NDArray[np.floating[Any]]
Operand = Callable[[Values], F64]


class Operation(StrEnum):
    """The kinds of stage that differ in how their operands are stored."""

    PROJECTION = "projection"
    SCORES = "scores"
    MIX = "mix"
    ELEMENTWISE = "elementwise"


def exact(values: Values) -> F64:
    """Return ``values`` as they are."""
    return values.astype(np.float64, copy=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One row of the table.

    Attributes:
        name: what reports call it.
        left: what becomes of the first operand: activations, queries, attention weights.
        right: what becomes of the second, where that is no weight: keys, values.
        block: the number of channels that left and right work on together; heads must be a multiple.
        rotated: whether a Hadamard matrix turns them first: of scores both operands, by the largest power of
            two in head_dim, of a mix the values in blocks, and its result back.
        block_sums: whether a weight's minimum is multiplied with a separately rounded block sum.
        kept: where values are rotated within ``right`` and back: what is left of them in between.
        edges: how far ``right`` may be off where values are rotated within it, ``None`` where they are not.
        parts: weight type -> rule, where one stage multiplies with weights of several types.

    """

    name: str
    left: Operand
    right: Operand = exact
    block: int = 1
    rotated: bool = False
    block_sums: bool = False
    kept: Operand | None = None
    edges: Operand | None = None
    parts: tuple[tuple[str, Rule], ...] = ()

    def of(self, weight_type: str) -> Rule:
        """Return what it says of weights of one type."""
        return dict(self.parts).get(weight_type, self)


PLAIN = Rule(name="f32", left=exact)
"""Operands as they are."""

CACHES: Mapping[str, Operand] = {
    "q8_0": quantise.q8_0,
    "q4_0": quantise.q4_0,
    "q4_1": quantise.q4_1,
    "q5_0": quantise.q5_0,
    "q5_1": quantise.q5_1,
    "iq4_nl": quantise.iq4_nl,
}
"""Type of a quantised KV cache -> what is left of keys or values."""

MINIMA: Mapping[Operand, Operand] = {
    quantise.q4_1: quantise.minima,
    quantise.q5_1: quantise.minima,
}
"""What is left of keys -> the minima of their blocks, which are multiplied with rounded block sums of q."""

ROTATED = ", Hadamard-rotated"
"""Behind the name of a cache that llama.cpp keeps so where head_dim is a multiple of 64."""


def _k_caches() -> Iterator[Rule]:
    """Yield the rules of a quantised K cache: q is stored in 8-bit blocks (ggml's ``vec_dot_type``)."""
    for name, kept in CACHES.items():
        for rotated in (False, True):
            yield Rule(
                name=f"{name} k cache{ROTATED if rotated else ''}",
                left=quantise.q8_0,
                right=kept,
                block=32,
                rotated=rotated,
                block_sums=kept in MINIMA,
            )


def _v_caches() -> Iterator[Rule]:
    """Yield the rules of a quantised V cache: flash attention widens it to f32."""
    for name, kept in CACHES.items():
        yield Rule(name=f"{name} v cache", left=exact, right=kept, block=32)
        turned = quantise.rotated_back(kept)
        yield Rule(
            name=f"{name} v cache{ROTATED}",
            left=exact,
            right=turned,
            block=quantise.ROTATED_BLOCK,
            rotated=True,
            kept=kept,
            edges=quantise.rotated_edges(kept),
        )


RULES: Mapping[Operation, tuple[Rule, ...]] = {
    Operation.PROJECTION: (
        PLAIN,
        Rule(name="f16", left=quantise.f16),
        Rule(name="bf16", left=quantise.bf16),
        Rule(name="q8 blocks of 256", left=quantise.q8_256, block=256),
        Rule(name="q8_k blocks of 256", left=quantise.q8_k, block=256),
        Rule(name="q8_0 blocks of 32", left=quantise.q8_0, block=32),
        Rule(name="q8_1 blocks of 32", left=quantise.q8_0, block=32, block_sums=True),
    ),
    Operation.SCORES: (
        PLAIN,
        Rule(name="f16 q and k", left=quantise.f16, right=quantise.f16),
        Rule(name="f16 k", left=exact, right=quantise.f16),
        Rule(name="bf16 q and k", left=quantise.bf16, right=quantise.bf16),
        *_k_caches(),
    ),
    Operation.MIX: (
        PLAIN,
        Rule(name="f16 weights and v", left=quantise.f16, right=quantise.f16),
        Rule(name="f16 v", left=exact, right=quantise.f16),
        Rule(name="bf16 weights and v", left=quantise.bf16, right=quantise.bf16),
        *_v_caches(),
    ),
    Operation.ELEMENTWISE: (PLAIN,),
}
"""Operation -> the rules that are tried, the plain one first."""

_LLAMA_CPP_PROJECTIONS: Mapping[str, str] = {
    "f16": "f16",
    "bf16": "bf16",
    "q4_1": "q8_1 blocks of 32",
    "q5_1": "q8_1 blocks of 32",
    **dict.fromkeys(("q4_0", "q5_0", "q8_0", "iq4_nl", "mxfp4"), "q8_0 blocks of 32"),
    **dict.fromkeys(("q2_k", "q3_k", "q4_k", "q5_k", "q6_k"), "q8_k blocks of 256"),
    **dict.fromkeys(("iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "q8_k blocks of 256"),
    **dict.fromkeys(("iq1_s", "iq1_m", "tq1_0", "tq2_0"), "q8_k blocks of 256"),
}
"""Weight type -> activations, the ``vec_dot_type`` of ggml's CPU back end."""

_APR_PROJECTIONS: Mapping[str, str] = {"q4_k": "q8 blocks of 256"}
"""Weight type -> activations, measured on apr 0.72.3: weights in q6_k meet them as they are."""

_EXPECTED: Mapping[str, Mapping[Operation, Mapping[str, str]]] = {
    "apr": {Operation.PROJECTION: _APR_PROJECTIONS},
    "llama-cpp": {
        Operation.PROJECTION: _LLAMA_CPP_PROJECTIONS,
        Operation.SCORES: {"": "f16 q and k"},
        Operation.MIX: {"": "f16 weights and v"},
    },
}
"""Runtime -> operation -> weight type ("" where there is none) -> the rule its defaults use."""


AND = " and "
"""Between the number formats of a stage that multiplies with several tensors."""

SEPARATOR = "; "
"""Between the parts of a stated arithmetic: rule names have commas of their own."""


def stated_rules(text: str) -> dict[Operation, Rule]:
    """Read a stated arithmetic, e.g. ``f32; q8_0 blocks of 32``: what is stated for each operation.

    A number format alone (``f16``) states the format that stages are stored in and no rule.

    Raises:
        UsageError: a part that is neither a format nor a rule of the table.

    """
    found: dict[Operation, Rule] = {}
    for part in (part.strip() for part in text.split(SEPARATOR.strip())):
        rows = [
            (operation, rule) for operation, rules in RULES.items() for rule in rules if rule.name == part
        ]
        if rows and part not in FORMATS:
            found[rows[0][0]] = rows[0][1]
        elif part not in FORMATS and part != "unknown":
            names = [*FORMATS, *(rule.name for rules in RULES.values() for rule in rules)]
            raise UsageError(
                f"unknown arithmetic {part!r}",
                expected="parts separated by ';': " + ", ".join(dict.fromkeys(names)),
                remedy=nearest(part, names),
            )
    return found


def expected_rule(
    runtime: str, operation: Operation, weight_type: str, stated: Mapping[Operation, Rule] | None = None
) -> Rule:
    """Return the rule that is stated, else the one that ``runtime``'s defaults use, else the plain one."""
    if stated and operation in stated:
        return stated[operation]
    known = _EXPECTED.get(runtime, {}).get(operation, {})
    names = {kind: known.get(kind, PLAIN.name) for kind in weight_type.split(AND)}
    if len(set(names.values())) == 1:
        return _named(operation, names[weight_type.split(AND)[0]])
    return _joined(operation, tuple(names.items()))


def _named(operation: Operation, name: str) -> Rule:
    return next(rule for rule in RULES[operation] if rule.name == name)


@cache
def _joined(operation: Operation, names: tuple[tuple[str, str], ...]) -> Rule:
    """Return the rule of a stage whose weights are of several types, each multiplied in its own way."""
    parts = tuple((kind, _named(operation, name)) for kind, name in names)
    return Rule(
        name=AND.join(dict.fromkeys(name for _, name in names)),
        left=exact,
        block=max(rule.block for _, rule in parts),
        parts=parts,
    )
