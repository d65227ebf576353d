"""What goes wrong with a bias: missing, added twice, added to the wrong part, added too early."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from apr_falsify.compare.variations.case import F64, Case, Guess, factor_words, scalar
from apr_falsify.compare.variations.common import parts


class Bias(NamedTuple):
    """The bias that a stage may have.

    Attributes:
        roles: the roles of the weights beside which it stands.
        declared: the field of the geometry that says whether a model has it.

    """

    roles: tuple[str, ...]
    declared: str


BIASED: Mapping[str, Bias] = {
    "qkv_matmul": Bias(("q", "k", "v"), "qkv_bias"),
    "qkv_bias": Bias(("q", "k", "v"), "qkv_bias"),
    "attn_out": Bias(("o",), "output_bias"),
    "ffn_gate": Bias(("gate",), "mlp_bias"),
    "ffn_up": Bias(("up",), "mlp_bias"),
    "ffn_out": Bias(("down",), "mlp_bias"),
}
"""Stage -> its bias."""

_NEAR = 1e-2
_OF_RANKS = (3.0, 4.0, 6.0, 8.0, 16.0)
_COUNTS = (0.0, 2.0, -1.0, *_OF_RANKS)


def _times(case: Case) -> float:
    """Return how many times the stage has its bias by right."""
    return 0.0 if case.name == "qkv_matmul" else 1.0


def _columns(case: Case) -> dict[str, slice]:
    return parts(case) if case.name.startswith("qkv") else {BIASED[case.name].roles[0]: slice(None)}


def measured_bias(case: Case) -> Iterator[Guess]:
    """Yield the stage with each part's bias as many times as fits it best."""
    if not getattr(case.geometry, BIASED[case.name].declared):
        return
    right, columns = _times(case), _columns(case)
    biases = {role: case.vector(f"{role}_bias") for role in columns}
    counts = {role: right + _excess(case, columns[role], biases[role]) for role in columns}
    rounded = {role: _rounded(value, right) for role, value in counts.items()}
    for tried in (rounded, counts):
        if all(math.isfinite(value) for value in tried.values()):
            yield _with_counts(case, tried, biases)


def _excess(case: Case, columns: slice, bias: F64) -> float:
    e, sigma = (case.shaped(a)[..., columns] for a in (case.expected, case.sigma))
    added = np.broadcast_to(bias, e.shape)
    difference = case.subject[..., columns] - e
    used = np.isfinite(difference)
    return scalar(added[used], difference[used], sigma[used])


def _rounded(value: float, right: float) -> float:
    counts = (right, 1.0, *_COUNTS)
    return next((count for count in counts if abs(value - count) < _NEAR), value)


def _with_counts(case: Case, counts: Mapping[str, float], biases: Mapping[str, F64]) -> Guess:
    right = _times(case)
    values = case.expected.copy()
    for role, columns in _columns(case).items():
        values[..., columns] += (counts[role] - right) * biases[role]
    changed = {role: count for role, count in counts.items() if count != right}
    name, says = _words(changed, right)
    return case.guess(says, values, name=name)


def _words(changed: Mapping[str, float], right: float) -> tuple[str, str]:
    roles = " and ".join(changed)
    values = set(changed.values())
    if values == {0.0}:
        return "missing-bias", f"the bias of {roles} missing"
    if values == {2.0}:
        return "doubled-bias", f"the bias of {roles} added twice"
    if len(values) == 1 and values <= {*_OF_RANKS}:
        return (
            "doubled-bias",
            f"the bias of {roles} added {values.pop():.0f} times, as where each rank adds it,",
        )
    if values == {1.0} and right == 0:
        return "bias-included", f"the bias of {roles} added here already"
    if values == {-1.0}:
        return "bias-factor", f"the bias of {roles} subtracted"
    said = ", ".join(f"{role} x {factor_words(value)}" for role, value in changed.items())
    return "bias-factor", f"the bias of {said}"


def other_bias(case: Case) -> Iterator[Guess]:
    """Yield q|k|v with each other's biases, and with those of q and k in interleaved rotary order."""
    columns = parts(case)
    biases = {role: case.vector(f"{role}_bias") for role in "qkv"}
    bare = case.expected - np.concatenate(list(biases.values()))
    for order in list(itertools.permutations("qkv"))[1:]:
        sizes_fit = all(biases[a].shape == biases[b].shape for a, b in zip("qkv", order, strict=True))
        if sizes_fit:
            swapped = np.concatenate([biases[role] for role in order])
            yield case.guess(f"the biases of {'|'.join(order)} added to q|k|v", bare + swapped)
    fused = np.concatenate([biases[role] for role in "kqv"])
    yield case.guess("the biases k|q|v end to end added to q|k|v", bare + fused)
    for says, reordered in _reordered(biases, case.geometry.head_dim):
        values = bare.copy()
        for role, bias in reordered.items():
            values[..., columns[role]] += bias
        yield case.guess(says, values)


def _reordered(biases: Mapping[str, F64], head_dim: int) -> Iterator[tuple[str, dict[str, F64]]]:
    def order(bias: F64, to_interleaved: bool) -> F64:
        shape = (-1, 2, head_dim // 2) if to_interleaved else (-1, head_dim // 2, 2)
        return bias.reshape(shape).swapaxes(1, 2).reshape(-1)

    for to_interleaved, says in ((True, "interleaved"), (False, "half-split")):
        reordered = {role: order(biases[role], to_interleaved) for role in "qk"}
        yield f"the biases of q and k in {says} rotary order", {**reordered, "v": biases["v"]}


def composed_bias(case: Case) -> Iterator[Guess]:
    """Yield what uses q|k|v with the bias missing or doubled, where q|k|v with bias was not captured."""
    key = (case.layer, "qkv_bias")
    bare = case.captured("qkv_matmul")
    if "qkv_bias" not in case.known or not case.geometry.qkv_bias or bare is None:
        return
    if key in case.replayer.trace.stages:
        return
    added = case.inputs["qkv_bias"] - bare
    for count, name, says in ((0, "missing-bias", "missing"), (2, "doubled-bias", "added twice")):
        yield case.evaluated(f"the bias {says}", {"qkv_bias": bare + count * added}, name=name)
