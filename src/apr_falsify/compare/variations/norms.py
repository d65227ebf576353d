"""What goes wrong in a norm: epsilon, weight, mean, input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from apr_falsify.compare.variations.case import F64, Case, Guess
from apr_falsify.model.graph import Node
from apr_falsify.model.stages import LAYER_INPUT
from apr_falsify.operators.norms import eps_of
from apr_falsify.operators.roundoff import UNIT


def is_norm(case: Case) -> bool:
    """Whether the stage is a norm, over all channels, and nothing else."""
    (*before, node) = case.span
    return not before and _over_channels(node)


def is_norm_of_product(case: Case) -> bool:
    """Whether the stage is a norm of a product that was not captured by itself."""
    (*before, node) = case.span
    return len(before) == 1 and _over_channels(node)


def _over_channels(node: Node) -> bool:
    return node.operator in ("rms_norm", "layer_norm") and "part" not in node.constants


def _role(case: Case) -> str:
    role: str = case.span[-1]["role"]
    return role


def _declared(case: Case) -> float:
    """Return the epsilon of the norm."""
    return eps_of(case.span[-1], case.geometry)


EPSILONS = (1e-5, 1e-6, 0.0, 1e-12, 1e-8, 1e-7, 1e-4, 1e-3)
"""Those of published models and of libraries' defaults."""

_SMALLEST = 1e-12


def scaled(x: F64, eps: float) -> F64:
    """Return ``x`` divided by its root mean square over the last axis."""
    return np.asarray(x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + eps))


def _centred(x: F64) -> F64:
    return np.asarray(x - np.mean(x, axis=-1, keepdims=True))


_Form = Callable[[F64, F64, float], F64]

FORMS: Mapping[str, _Form] = {
    "the norm's weight ignored": lambda x, w, eps: scaled(x, eps),
    "1 + weight for the weight": lambda x, w, eps: scaled(x, eps) * (1 + w),
    "the weight for 1 + weight": lambda x, w, eps: scaled(x, eps) * w,
    "the weight - 1 for the weight": lambda x, w, eps: scaled(x, eps) * (w - 1),
    "the weight applied twice": lambda x, w, eps: scaled(x, eps) * w * w,
    "division by the weight": lambda x, w, eps: scaled(x, eps) / w,
    "LayerNorm for RMSNorm (the mean taken off)": lambda x, w, eps: scaled(_centred(x), eps) * w,
    "no normalisation, only the weight,": lambda x, w, eps: x * w,
    "the norm skipped": lambda x, w, eps: x,
    "epsilon added outside the root": lambda x, w, eps: (
        x / (np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True)) + eps) * w
    ),
    "the sum of squares for their mean": lambda x, w, eps: (
        scaled(x, eps / x.shape[-1]) * w / math.sqrt(x.shape[-1])
    ),
    "one scale for all tokens": lambda x, w, eps: x / np.sqrt(np.mean(np.square(x)) + eps) * w,
    "division by the mean square, without the root,": lambda x, w, eps: (
        x / (np.mean(np.square(x), axis=-1, keepdims=True) + eps) * w
    ),
    "division by the standard deviation, without taking the mean off,": lambda x, w, eps: (
        x / np.sqrt(np.var(x, axis=-1, keepdims=True) + eps) * w
    ),
}
"""A wrong norm -> its formula over input, weight and epsilon."""


_LayerForm = Callable[[F64, F64, F64 | float, float], F64]

_LAYER_FORMS: Mapping[str, _LayerForm] = {
    "RMSNorm for LayerNorm (the mean left in)": lambda x, w, b, eps: scaled(x, eps) * w + b,
    "the norm's bias left out": lambda x, w, b, eps: scaled(_centred(x), eps) * w,
    "the norm's weight ignored": lambda x, w, b, eps: scaled(_centred(x), eps) + b,
    "1 + weight for the weight": lambda x, w, b, eps: scaled(_centred(x), eps) * (1 + w) + b,
    "no normalisation, only weight and bias,": lambda x, w, b, eps: x * w + b,
    "the norm skipped": lambda x, w, b, eps: x,
}
"""A wrong LayerNorm -> its formula over input, weight, bias and epsilon."""


def _is_layer_norm(case: Case) -> bool:
    return case.span[-1].operator == "layer_norm"


def _bias(case: Case) -> F64 | float:
    """Return what the norm adds in the end, where it has a bias."""
    role = f"{_role(case)}_bias"
    return case.vector(role) if role in case.span[-1].roles else 0.0  # Cohere's LayerNorm has none either


def _still_to_scale(case: Case) -> F64:
    """Return the input as it is divided: without its mean in a LayerNorm."""
    return _centred(_input(case)) if _is_layer_norm(case) else _input(case)


def _input(case: Case) -> F64:
    (value,) = case.inputs.values()
    return value


def wrong_form(case: Case) -> Iterator[Guess]:
    """Yield each wrong formula of the norm."""
    x, weight, eps = _input(case), case.vector(_role(case)), _declared(case)
    if _is_layer_norm(case):
        bias = _bias(case)
        yield from (case.guess(says, form(x, weight, bias, eps)) for says, form in _LAYER_FORMS.items())
        return
    for says, form in FORMS.items():
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            values = form(x, weight, eps)
        guess = case.guess(says, values)
        if "mean taken off" in says and guess.sigma is not None:
            guess = replace(
                guess, sigma=np.hypot(guess.sigma, UNIT * np.abs(weight))
            )  # that of the mean itself
        yield guess


def usual_epsilon(case: Case) -> Iterator[Guess]:
    """Yield the norm with each epsilon that models commonly have."""
    for eps in EPSILONS:
        if eps != _declared(case):
            yield _with_epsilon(case, eps)


def measured_epsilon(case: Case) -> Iterator[Guess]:
    """Yield the norm with the epsilon that the subject's scale has: eps = 1 / r^2 - mean(x^2)."""
    x = case.shaped(_still_to_scale(case))
    bare, subject = x * case.vector(_role(case)), case.subject - _bias(case)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sum(subject * bare, axis=-1) / np.sum(np.square(bare), axis=-1)
        energy = np.mean(np.square(x), axis=-1)
        eps = 1 / np.square(scale) - energy
    if not np.isfinite(eps).any():
        return
    best = float(eps[np.nanargmin(np.where(np.isfinite(eps), energy, np.nan))])  # where it matters most
    if best > _SMALLEST:
        yield _with_epsilon(case, float(f"{best:.2g}"))
        yield _with_epsilon(case, best)


def of_product(case: Case) -> Iterator[Guess]:
    """Yield what may be wrong with a norm of a product, multiplied once again: its form, then its epsilon."""
    after = case.after(case.span[-2].stage)
    yield from wrong_form(after)
    for guess in (*usual_epsilon(after), *measured_epsilon(after)):
        yield replace(guess, name="epsilon")


def _with_epsilon(case: Case, eps: float) -> Guess:
    values = scaled(_still_to_scale(case), eps) * case.vector(_role(case)) + _bias(case)
    instead = f"the model declares {_declared(case):g}"
    return case.guess(f"epsilon {eps:.3g}", values, instead=instead)


_INPUTS: Mapping[str, tuple[str, ...]] = {
    "attn_norm": ("embedding", "post_attn_residual"),
    "ffn_norm": ("attn_out", LAYER_INPUT, "attn_norm"),
    "final_norm": ("post_attn_residual", "ffn_out", "ffn_norm"),
}
"""Norm -> the stages that it may take for its input by mistake."""


def wrong_input(case: Case) -> Iterator[Guess]:
    """Yield the norm of another stage than its input."""
    layer = case.geometry.layers - 1 if case.layer is None else case.layer
    (role,) = case.known
    sources = [(name, layer) for name in _INPUTS.get(case.name, ())]
    if case.layer is None:
        sources += [("post_ffn_residual", earlier) for earlier in range(layer)]
    for name, place in sources:
        value = (
            layer_input(case)
            if name == LAYER_INPUT
            else case.captured(name, 0 if name == "embedding" else place)
        )
        if value is not None:
            yield case.evaluated(f"the norm of {name} of layer {place}", {role: value})


def layer_input(case: Case) -> F64 | None:
    """Return what enters the case's layer, where that was captured."""
    if case.layer is None:
        return None
    return (
        case.captured("embedding", 0)
        if case.layer == 0
        else case.captured("post_ffn_residual", case.layer - 1)
    )
