"""The closed table of arithmetics: what a runtime does to the operands of a product before it sums.

A rule changes operands, never sums: products of what it leaves are summed in f64, and what then remains
between that and a runtime is the rounding of its own sums (``compare.floor``). Which rule each runtime
uses was measured on its output or is published in its sources, as each row says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import UsageError, nearest
from apr_falsify.numerics import grains, quantise
from apr_falsify.numerics.arithmetic import FORMATS

F64 = npt.NDArray[np.float64]
Values = npt.NDArray[np.floating[Any]]
Operand = Callable[[Values], F64]


class Operation(StrEnum):
    """The kinds of stage that differ in how their operands are stored."""

    PROJECTION = "projection"
    SCORES = "scores"
    MIX = "mix"
    ATTENTION = "attention"
    """Scores, softmax and mix as one, where a runtime shows nothing in between."""
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
        parts: weight type -> rule, where one stage multiplies with weights of several types; of attention as
            one: operation -> rule.
        by_head: whether ``right`` takes heads apart: [tokens, kv_heads, head_dim].
        over_tokens: whether ``left`` depends on the other tokens' rows too.
        rounds_steps: of attention as one: whether each step is rounded to the format of the run.

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
    by_head: bool = False
    over_tokens: bool = False
    rounds_steps: bool = False

    def of(self, part: str) -> Rule:
        """Return what it says of weights of one type, or of one operation of attention."""
        return dict(self.parts).get(part, self)

    def held_right(self, values: Values, kv_heads: int, head_dim: int) -> F64:
        """Return the second operand [tokens, channels] as held; heads apart are those of its last columns."""
        if not self.by_head:
            return self.right(values)
        width = kv_heads * head_dim
        held = np.array(values, dtype=np.float64)
        heads = values[:, -width:].reshape(len(values), kv_heads, head_dim)
        held[:, -width:] = self.right(heads).reshape(len(values), width)
        return held


@cache
def by_pass(rule: Rule, sizes: tuple[int, ...]) -> Rule:
    """Return ``rule`` in a run of passes of so many tokens: each has scales of its own.

    A scale that spans tokens is known once they are there: a pass has one for what it computes, and one for
    what it adds to a cache.
    """
    if len(sizes) < 2:
        return rule
    left, right = (
        replace(side, spans=sizes) if isinstance(side, grains.Grain) and side.over_tokens else side
        for side in (rule.left, rule.right)
    )
    parts = tuple((name, by_pass(part, sizes)) for name, part in rule.parts)
    same = left is rule.left and right is rule.right and parts == rule.parts
    return rule if same else replace(rule, left=left, right=right, parts=parts)


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


GRAINS: Mapping[str, grains.Grain] = grains.caches()
"""Name of an 8-bit cache, with ``{}`` for k or v -> what is left of heads."""


def _grained(part: str) -> Iterator[Rule]:
    for name, kept in GRAINS.items():
        yield Rule(name=name.format(part), left=exact, right=kept, by_head=True)


@cache
def together(scores: Rule, mix: Rule) -> Rule:
    """Return the rule of attention as one whose scores and mix hold their operands so."""
    if scores is PLAIN and mix is PLAIN:
        return PLAIN
    named = [rule.name for rule in (scores, mix) if rule is not PLAIN]
    return Rule(
        name=SEPARATOR.join(named),
        left=exact,
        block=max(scores.block, mix.block),
        parts=((Operation.SCORES, scores), (Operation.MIX, mix)),
    )


SEPARATOR = "; "
"""Between the parts of a stated arithmetic: rule names have commas of their own."""

ROUNDED_STEPS = Rule(name="each step rounded", left=exact, rounds_steps=True)
"""Attention of 16 bits that is not done in one kernel: scores and softmax are rounded to them as well."""

_OF_SCORES_AND_MIX: Mapping[Operation, tuple[Rule, ...]] = {
    Operation.PROJECTION: (
        PLAIN,
        Rule(name="f16", left=quantise.f16),
        Rule(name="bf16", left=quantise.bf16),
        Rule(name="q8 blocks of 256", left=quantise.q8_256, block=256),
        Rule(name="q8_k blocks of 256", left=quantise.q8_k, block=256),
        Rule(name="q8_0 blocks of 32", left=quantise.q8_0, block=32),
        Rule(name="q8_1 blocks of 32", left=quantise.q8_0, block=32, block_sums=True),
        *(
            Rule(name=name, left=kept, over_tokens=kept.over_tokens)
            for name, kept in grains.ACTIVATIONS.items()
        ),
    ),
    Operation.SCORES: (
        PLAIN,
        Rule(name="f16 q and k", left=quantise.f16, right=quantise.f16),
        Rule(name="f16 k", left=exact, right=quantise.f16),
        Rule(name="bf16 q and k", left=quantise.bf16, right=quantise.bf16),
        Rule(name="bf16 k", left=exact, right=quantise.bf16),
        *_k_caches(),
        *_grained("k"),
    ),
    Operation.MIX: (
        PLAIN,
        Rule(name="f16 weights and v", left=quantise.f16, right=quantise.f16),
        Rule(name="f16 v", left=exact, right=quantise.f16),
        Rule(name="bf16 weights and v", left=quantise.bf16, right=quantise.bf16),
        Rule(name="bf16 v", left=exact, right=quantise.bf16),
        *_v_caches(),
        *_grained("v"),
    ),
    Operation.ELEMENTWISE: (PLAIN,),
}


def _attention() -> Iterator[Rule]:
    """Yield the rules of attention as one: k and v held alike, then one of them alone."""
    of_k, of_v = (_OF_SCORES_AND_MIX[each][1:] for each in (Operation.SCORES, Operation.MIX))
    by_name = {rule.name: rule for rule in of_v}
    for scores in of_k:
        alike = scores.name.replace("q and k", "weights and v").replace(" k cache", " v cache")
        alike = alike.removesuffix(" k") + " v" if alike.endswith(" k") else alike
        yield together(scores, by_name[alike])
    yield from (together(scores, PLAIN) for scores in of_k)
    yield from (together(PLAIN, mix) for mix in of_v)


RULES: Mapping[Operation, tuple[Rule, ...]] = {
    **_OF_SCORES_AND_MIX,
    Operation.ATTENTION: (PLAIN, ROUNDED_STEPS, *_attention()),
}
"""Operation -> the rules that are tried, the plain one first."""


def beside(expected: Rule) -> tuple[Rule, ...]:
    """Return the rules of attention as one in which one part is as in ``expected``, and the other is not."""
    if not expected.parts:
        return ()
    scores, mix = expected.of(Operation.SCORES), expected.of(Operation.MIX)
    return (
        *(together(scores, other) for other in RULES[Operation.MIX] if other is not mix),
        *(together(other, mix) for other in RULES[Operation.SCORES] if other is not scores),
    )


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


def _of_k_and_v(part: str) -> tuple[str, ...]:
    """Return the parts that a cache of both stands for: ``f16 cache``, ``int8 cache, a scale per head``."""
    if " cache" not in part or " k cache" in part or " v cache" in part:
        return ()
    short = part.removesuffix(" cache")
    caches = (part.replace(" cache", f" {each} cache") for each in "kv")
    return (*caches, f"{short} k", f"{short} v")


def _rows_named(name: str) -> list[tuple[Operation, Rule]]:
    return [
        (operation, rule)
        for operation, rules in _OF_SCORES_AND_MIX.items()
        for rule in rules
        if rule.name == name
    ][:1]


def stated_rules(text: str) -> dict[Operation, Rule]:
    """Read a stated arithmetic, e.g. ``f32; q8_0 blocks of 32``: what is stated for each operation.

    A number format alone (``f16``) states the format that stages are stored in and no rule. ``int8 cache, a
    scale per head`` states what ``int8 k cache, a scale per head; int8 v cache, a scale per head`` does.

    Raises:
        UsageError: a part that is neither a format nor a rule of the table.

    """
    found: dict[Operation, Rule] = {}
    for part in (part.strip() for part in text.split(SEPARATOR.strip())):
        rows = [row for words in (part, *_of_k_and_v(part)) for row in _rows_named(words)]
        if rows and part not in FORMATS:
            found.update(rows)
        elif part not in FORMATS and part != "unknown":
            names = [*FORMATS, *(rule.name for rules in _OF_SCORES_AND_MIX.values() for rule in rules)]
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
    if operation is Operation.ATTENTION:
        scores, mix = (expected_rule(runtime, part, "", stated) for part in (Operation.SCORES, Operation.MIX))
        return together(scores, mix)
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
