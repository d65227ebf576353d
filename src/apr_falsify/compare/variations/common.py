"""Variations that any stage can have: factors, moved tokens and heads, offsets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.variations.case import F64, Case, Guess, factor_words, scalar
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import STAGES
from apr_falsify.numerics.arithmetic import FORMATS
from apr_falsify.operators.heads import head_size
from apr_falsify.operators.heads import parts as columns_of
from apr_falsify.operators.roundoff import Known

Indices = npt.NDArray[np.intp]

_NEAR = 1e-3
"""How near a measured factor must be to a named one for that to be tried."""

_SAME = 1e-4
"""How near a measured factor must be to a named one to be called by its name."""

_SCALES: Mapping[str, Callable[[Geometry], float]] = {
    "0": lambda g: 0.0,
    "-1": lambda g: -1.0,
    "2": lambda g: 2.0,
    "1/2": lambda g: 0.5,
    "sqrt(D)": lambda g: math.sqrt(g.head_dim),
    "1/sqrt(D)": lambda g: 1 / math.sqrt(g.head_dim),
    "D": lambda g: float(g.head_dim),
    "1/D": lambda g: 1.0 / g.head_dim,
    "sqrt(E)": lambda g: math.sqrt(g.hidden),
    "1/sqrt(E)": lambda g: 1 / math.sqrt(g.hidden),
    "sqrt(D)/sqrt(E/H)": lambda g: math.sqrt(g.head_dim * g.heads / g.hidden),
    "sqrt(D)/sqrt(E)": lambda g: math.sqrt(g.head_dim / g.hidden),
}
"""Name of a factor -> its value; D head_dim, E hidden, H heads."""

_MEANS: Mapping[tuple[str, str], str] = {
    ("attn_scores", "sqrt(D)"): "the scale 1/sqrt(D) is missing",
    ("attn_scores", "1/sqrt(D)"): "the scale 1/sqrt(D) is applied twice, or 1/D instead",
    ("attn_scores", "sqrt(D)/sqrt(E/H)"): "the scale takes E/H for head_dim",
    ("attn_scores", "sqrt(D)/sqrt(E)"): "the scale takes the hidden size for head_dim",
    ("attn_norm", "1/sqrt(E)"): "the sum of squares stands for their mean",
    ("ffn_norm", "1/sqrt(E)"): "the sum of squares stands for their mean",
    ("final_norm", "1/sqrt(E)"): "the sum of squares stands for their mean",
    ("embedding", "sqrt(E)"): "the family does not scale its embedding",
    ("embedding", "1/sqrt(E)"): "the family's scale sqrt(E) is missing",
}
"""Stage and factor -> what that means."""


def named_factor(case: Case) -> Iterator[Guess]:
    """Yield the replay times the named factor that is nearest to the measured one."""
    measured = case.scalar(case.expected)
    for label, value_of in _SCALES.items():
        value = value_of(case.geometry)
        if value != 1 and abs(measured - value) <= _NEAR * max(abs(value), _NEAR):
            shown = label if "(" not in label else f"{label} = {value:.6g}"
            says = "all zeros" if value == 0 else f"x {shown}"
            yield _scaled(case, value, says, _MEANS.get((case.name, label), ""))


def any_factor(case: Case) -> Iterator[Guess]:
    """Yield the replay times the measured factor."""
    value = case.scalar(case.expected)
    if math.isfinite(value):
        yield _scaled(case, value, f"x {factor_words(value)}")


def _scaled(case: Case, value: float, says: str, instead: str = "") -> Guess:
    sigma = case.sigma * abs(value)
    return Guess(says=says, values=case.expected * value, sigma=sigma, instead=instead)


def parts(case: Case) -> dict[str, slice]:
    """Return the columns of q, k and v in a stage that holds all three."""
    return columns_of(case.geometry)


def part_factor(case: Case) -> Iterator[Guess]:
    """Yield the replay with q, k or v alone times its measured factor."""
    for part, columns in parts(case).items():
        e, s, sigma = (a[..., columns].reshape(-1) for a in (case.expected, case.subject, case.sigma))
        value = scalar(e, s, sigma)
        label = next(
            (n for n, f in _SCALES.items() if abs(f(case.geometry) - value) <= _SAME * abs(value)), ""
        )
        values, spread = case.expected.copy(), case.sigma.copy()
        values[..., columns] *= value
        spread[..., columns] *= abs(value)
        yield Guess(says=f"{part} x {label or factor_words(value)}", values=values, sigma=spread)


_MOVES: Mapping[str, Callable[[int], Indices]] = {
    "every token with the values of the token before": lambda s: np.maximum(np.arange(s) - 1, 0),
    "every token with the values of the token after": lambda s: np.minimum(np.arange(s) + 1, s - 1),
    "tokens moved on by one, the last one first": lambda s: np.roll(np.arange(s), 1),
    "tokens moved back by one, the first one last": lambda s: np.roll(np.arange(s), -1),
    "tokens in reverse order": lambda s: np.arange(s)[::-1],
    "every token with the values of the first": lambda s: np.zeros(s, np.intp),
    "every token with the values of the last": lambda s: np.full(s, s - 1),
    "the last token with the values of the one before": lambda s: np.append(np.arange(s - 1), s - 2),
}
"""What happened to the tokens -> for each token, whose values it has."""


def moved_tokens(case: Case) -> Iterator[Guess]:
    """Yield the replay with tokens in each other's places."""
    axes = STAGES[case.name].axes
    if "tokens" not in axes or case.shaped(case.expected).shape != case.expected.shape:
        return
    axis = axes.index("tokens")
    for says, order in moves(case.expected.shape[axis]):
        yield Guess(
            says=says,
            values=np.take(case.expected, order, axis),
            sigma=np.take(case.sigma, order, axis),
        )


def moves(tokens: int) -> Iterator[tuple[str, Indices]]:
    """Yield each move of ``tokens`` tokens that moves anything, once."""
    seen = [np.arange(tokens)]
    for says, order_of in _MOVES.items():
        order = order_of(tokens)
        if tokens > 1 and not any(np.array_equal(order, other) for other in seen):
            seen.append(order)
            yield says, order


def stale_inputs(case: Case) -> Iterator[Guess]:
    """Yield the stage with one of its inputs taken from another token, as a stale cache has it."""
    for role, value in case.inputs.items():
        if not role.endswith("_post_rope"):
            continue  # scores before their cap, which have no cache
        for says, order in moves(len(value)):
            if not _likely(case, {role: value[order]}):
                continue
            yield case.evaluated(f"{role} of other tokens: {says}", {role: value[order]})


_LOOK = 16
"""As many tokens are looked at before a whole square of scores is computed."""


def _likely(case: Case, inputs: Mapping[str, F64]) -> bool:
    """Whether the scores of the first tokens come nearer to the subject's with other ``inputs``."""
    first = {role: Known(value=value[:_LOOK]) for role, value in {**case.inputs, **inputs}.items()}
    values = case.replayer.evaluate(case.key, first, (case.rule,)).values[0]
    kept = np.tri(values.shape[-1])  # above it, some runtimes store zeros
    subject, right = (x[:, :_LOOK, :_LOOK] for x in (case.subject, case.expected))
    left, before = (float(np.sum(np.square((subject - x) * kept))) for x in (values, right))
    return not left > before


def moved_heads(case: Case) -> Iterator[Guess]:
    """Yield the replay with each head's values taken from the head that they fit best."""
    for label, columns, size in _head_groups(case):
        e, s = (_heads_first(case, a[..., columns], size) for a in (case.shaped(case.expected), case.subject))
        order = nearest_heads(e, s)
        if len(order) > 1 and not np.array_equal(order, np.arange(len(order))):
            yield Guess(
                says=f"{label}{mapping_words(order)}",
                values=_reordered(case, case.expected, columns, order, size),
                sigma=_reordered(case, case.sigma, columns, order, size),
            )


def _head_groups(case: Case) -> Iterator[tuple[str, slice, int]]:
    """Yield the heads that may stand in each other's places: their label, their columns, how wide each is."""
    if case.name in ("qkv_matmul", "qkv_bias"):
        for part, columns in parts(case).items():
            yield f"{part}: ", columns, head_size(part, case.geometry)
    else:
        yield "", slice(None), width_of_heads(case)


def width_of_heads(case: Case) -> int:
    """Return how wide a head is in the case's stage."""
    return head_size("v" if case.name in ("attention", "attn_out") else "q", case.geometry)


def _heads_first(case: Case, x: F64, size: int) -> F64:
    """Return [heads, everything else]."""
    if STAGES[case.name].axes[0] == "heads":
        return x.reshape(len(x), -1)
    heads = x.reshape(len(x), -1, size).swapaxes(0, 1)
    return heads.reshape(len(heads), -1)


def _reordered(case: Case, x: F64, columns: slice, order: Indices, size: int) -> F64:
    if STAGES[case.name].axes[0] == "heads":
        return x[order]
    result = x.copy()
    heads = x[..., columns].reshape(len(x), -1, size)
    result[..., columns] = heads[:, order].reshape(len(x), -1)
    return result


def nearest_heads(e: F64, s: F64) -> Indices:
    """Return for each row of ``s`` [heads, values] the row of ``e`` that is nearest."""
    distance = np.sum(np.square(e), axis=1)[None, :] - 2 * (np.nan_to_num(s) @ np.nan_to_num(e).T)
    nearest: Indices = np.argmin(distance, axis=1)
    return nearest


def mapping_words(order: Indices) -> str:
    """Say what a mapping of heads does."""
    own = np.arange(len(order))
    moved = np.flatnonzero(order != own)
    if np.array_equal(order, own[::-1]):
        return "heads in reverse order"
    if len(moved) == 2 and order[moved[0]] == moved[1] and order[moved[1]] == moved[0]:
        return f"heads {moved[0]} and {moved[1]} swapped"
    return f"heads in the order {', '.join(map(str, order))}"


def moved_channels(case: Case) -> Iterator[Guess]:
    """Yield the replay with its last axis moved by one: rows of a weight that are off by one."""
    for says, by in (
        ("each channel with the values of the next", -1),
        ("each channel with those before it", 1),
    ):
        values, sigma = (np.roll(a, by, axis=-1) for a in (case.expected, case.sigma))
        yield Guess(says=says, values=values, sigma=sigma, instead="rows of the weight are off by one")


def heads_before_tokens(case: Case) -> Iterator[Guess]:
    """Yield [heads, S, D] read as [S, heads * D], and queries and keys exchanged."""
    if STAGES[case.name].axes[0] == "heads":
        says = "queries and keys exchanged"
        yield Guess(says=says, values=case.expected.swapaxes(1, 2), sigma=case.sigma.swapaxes(1, 2))
        return
    shape = (len(case.expected), -1, width_of_heads(case))
    values, sigma = (a.reshape(shape).swapaxes(0, 1).reshape(a.shape) for a in (case.expected, case.sigma))
    yield Guess(says="[heads, tokens, D] read as [tokens, heads, D]", values=values, sigma=sigma)


def own_factor_per_channel(case: Case) -> Iterator[Guess]:
    """Yield the replay with each channel times a factor of its own: another weight vector.

    Where these factors are one, but for the rounding of the weights' own format, that one is named.
    """
    if len(case.subject) < 2:
        return
    factors = _factors(case, axis=0)
    low, high = float(factors.min()), float(factors.max())
    tensor = case.weights.find(case.name, case.layer)
    held = FORMATS.get(tensor.type) if tensor is not None else None
    middle, spread = (low + high) / 2, (high - low) / 2
    if held is not None and spread <= _ROUNDINGS * held.unit_roundoff * abs(middle):
        says = f"the weight x {middle:.3g}, stored as {held.name},"
        yield _multiplied(case, factors, says, name="factor")
    yield _multiplied(
        case, factors, f"another weight: each channel x {factor_words(low)} to {factor_words(high)}"
    )


def own_factor_per_token(case: Case) -> Iterator[Guess]:
    """Yield the replay with each row of its last axis times a factor of its own."""
    if case.subject.shape[-1] > 2:
        factors = _factors(case, axis=-1)
        low, high = (factor_words(float(each)) for each in (factors.min(), factors.max()))
        says = f"each token by a factor of its own, {low} to {high},"
        yield _multiplied(case, factors, says)


_ROUNDINGS = 2.2
"""How many roundings a scaled weight and the sound one have between them, and a little more."""


def _factors(case: Case, axis: int) -> F64:
    e, sigma = case.shaped(case.expected), case.shaped_sigma
    energy = np.sum(np.square(e / sigma), axis=axis, keepdims=True)
    product = np.sum((e / sigma) * (case.subject / sigma), axis=axis, keepdims=True)
    return np.where(energy > 0, product / np.where(energy > 0, energy, 1.0), 1.0)


def _multiplied(case: Case, factors: F64, says: str, name: str = "") -> Guess:
    e, sigma = case.shaped(case.expected), case.shaped_sigma
    return Guess(says=says, values=e * factors, sigma=sigma * np.abs(factors), name=name)


def constant_offset(case: Case) -> Iterator[Guess]:
    """Yield the replay plus one vector for all tokens: a bias or a control vector that is not the model's."""
    e, sigma = case.shaped(case.expected), case.shaped_sigma
    if e.ndim != 2 or len(e) < 2:
        return
    share = 1 / np.square(sigma)
    offset = np.sum((case.subject - e) * share, axis=0) / np.sum(share, axis=0)
    changed = int(np.count_nonzero(np.abs(offset) * np.sqrt(np.sum(share, axis=0)) > case.limit))
    says = f"one vector added to every token ({changed} of {len(offset)} channels)"
    residual = case.name in ("post_attn_residual", "post_ffn_residual")
    instead = "the model adds none here: a control vector" if residual else "a bias is other than the model's"
    yield Guess(says=says, values=e + offset, sigma=sigma, instead=instead)
