"""A selective state space, Mamba-2 (Dao & Gu 2024): a state per head that decays, and takes in each token.

With a step ``dt = softplus(d + bias)`` of each head and token, within bounds, and ``a = -exp(A) dt``:
``S = exp(a) S + dt x B``, and each token reads ``y = S C + D x``. B and C are shared by the heads of a group.
Runtimes go token by token, or in chunks by sums of a, which comes to the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from apr_falsify.model.graph import Node
from apr_falsify.model.mixers import StateSpace
from apr_falsify.model.shape import Geometry
from apr_falsify.operators.choices import f64
from apr_falsify.operators.decay import softplus
from apr_falsify.operators.operator import Array, Inputs, Lines, Operator, argument, only
from apr_falsify.operators.roundoff import F64, FEW, UNIT, Ins, Known, NoisySite, lost, squared, stored
from apr_falsify.operators.routing import sigmoid
from apr_falsify.operators.short_conv import without_padding
from apr_falsify.operators.site import Site

CHUNK = 256
"""The tokens of the largest usual chunk, whose decays are summed."""

_ALIGNED = 4.0
"""How much more of a state's error C reads than one of a random direction at most, as in ``gated_delta``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanForm:
    """The scan, and what ports make of it.

    Attributes:
        decays: whether states decay.
        stepped: whether what a state takes in is multiplied with the step.
        skips: whether D x is added to what is read.
        reads_first: whether a token reads a state before it takes that token in.
        exchanged: whether B and C are taken for each other.
        shared_by_turns: whether head h uses group h % G, not h // (heads / G).
        begins: tokens at which the states begin anew.

    """

    decays: bool = True
    stepped: bool = True
    skips: bool = True
    reads_first: bool = False
    exchanged: bool = False
    shared_by_turns: bool = False
    begins: frozenset[int] = frozenset()


SCAN = ScanForm()


def sizes_of(geometry: Geometry) -> StateSpace:
    """Return the sizes of a model's state space."""
    assert isinstance(geometry.mixer, StateSpace)
    return geometry.mixer


def parts_of(values: Array, sizes: StateSpace, form: ScanForm = SCAN) -> tuple[Array, Array, Array]:
    """Return x [S, H, P], B and C of each head [S, H, N], from what the convolution makes [S, conv]."""
    width = sizes.groups * sizes.state
    x, b, c = np.split(values, (sizes.channels, sizes.channels + width), axis=-1)
    heads = np.arange(sizes.heads)
    group = heads % sizes.groups if form.shared_by_turns else heads // (sizes.heads // sizes.groups)
    b, c = (each.reshape(len(values), sizes.groups, sizes.state)[:, group] for each in (b, c))
    if form.exchanged:
        b, c = c, b
    return x.reshape(len(values), sizes.heads, sizes.head_dim), b, c


def stepped(logits: Array, shift: Array, sizes: StateSpace) -> Array:
    """Return the steps dt [S, H] of ``logits`` [S, H] and a bias [H], within the bounds of ``sizes``."""
    found = softplus(logits + shift.astype(logits.dtype, copy=False))
    return np.asarray(np.clip(found, logits.dtype.type(sizes.least_step), sizes.largest_step))


def scanned(
    values: Array, dt: Array, decay: Array, skip: Array, sizes: StateSpace, form: ScanForm = SCAN
) -> Array:
    """Return what each token reads: [S, H * P].

    Args:
        values: what the convolution makes, x|B|C [S, conv].
        dt: the steps [S, H].
        decay: the logarithm of what each head's state keeps [S, H].
        skip: D [H].
        sizes: the sizes of the state space.
        form: the scan, or another.

    """
    x, b, c = parts_of(values, sizes, form)
    dt, decay, skip = (each.astype(values.dtype, copy=False) for each in (dt, decay, skip))
    state = np.zeros((sizes.heads, sizes.head_dim, sizes.state), dtype=values.dtype)
    read = np.empty_like(x)
    for t in range(len(x)):
        if t in form.begins:
            state = np.zeros_like(state)
        kept = state * np.exp(decay[t])[:, None, None] if form.decays else state
        taken = x[t] * dt[t][:, None] if form.stepped else x[t]
        state = kept + taken[:, :, None] * b[t][:, None, :]
        read[t] = np.matmul(kept if form.reads_first else state, c[t][:, :, None])[..., 0]
    if form.skips:
        read = read + x * skip[:, None]
    return np.asarray(read.reshape(len(x), -1))


def _values(node: Node, inputs: Inputs, site: Site) -> Array:
    values = without_padding(inputs["conv_out"], site.passes)
    skip = site.vector("scan_skip")
    found = scanned(values, inputs["dt"], inputs["decay"], skip, sizes_of(site.geometry))
    return found[-site.passes.rows :]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Token:
    """One token: x [H, P], B and C [H, N], dt and what is kept [H], and the variance that each carries."""

    x: F64
    b: F64
    c: F64
    dt: F64
    keeps: F64
    doubt_x: F64
    doubt_b: F64
    doubt_c: F64
    doubt_dt: F64
    doubt_decay: F64


def _tokens(ins: Ins, values: F64, sizes: StateSpace) -> Iterator[_Token]:
    def spread(known: Known) -> F64:
        return np.array(np.broadcast_to(np.asarray(known.variance, dtype=np.float64), known.value.shape))

    x, b, c = (f64(part) for part in parts_of(values, sizes))
    doubts = [f64(part) for part in parts_of(spread(ins["conv_out"]), sizes)]
    dt, decay = f64(ins["dt"].value), f64(ins["decay"].value)
    of_dt, of_decay = spread(ins["dt"]), spread(ins["decay"])
    # A chunk's decays are summed: what is exp of such a sum carries the rounding of the sum.
    summed = np.cumsum(np.abs(decay), axis=0)
    within = summed - np.concatenate((np.zeros_like(summed[:CHUNK]), summed))[: len(summed)]
    for t in range(len(x)):
        yield _Token(
            x=x[t],
            b=b[t],
            c=c[t],
            dt=dt[t][:, None],
            keeps=np.exp(decay[t])[:, None, None],
            doubt_x=doubts[0][t],
            doubt_b=doubts[1][t],
            doubt_c=doubts[2][t],
            doubt_dt=of_dt[t][:, None],
            doubt_decay=(of_decay[t] + squared(UNIT * (within[t] + FEW)))[:, None, None],
        )


def _variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    """Count what each token rounds, and carry it in the states, number by number.

    A runtime that goes token by token may keep dt B and dt B x, read its states and add D x in the format of
    its stages, as transformers does; one that goes in chunks has the products of C and B by themselves, whose
    sums do not cancel where those over the tokens do: so the squares of all that a state took in count.
    """
    sizes, rows, unit = sizes_of(site.geometry), len(y), max(store, UNIT)
    values = f64(without_padding(ins["conv_out"].value, site.passes))
    skip = f64(site.vector("scan_skip"))[:, None]
    state = np.zeros((sizes.heads, sizes.head_dim, sizes.state))
    error, energy, found = np.zeros_like(state), np.zeros_like(state), []
    for t in _tokens(ins, values, sizes):
        kept, taken = state * t.keeps, t.dt * t.x
        term = taken[:, :, None] * t.b[:, None, :]
        known = squared(t.dt) * t.doubt_x + squared(t.x) * t.doubt_dt
        carried = known[:, :, None] * squared(t.b)[:, None, :]
        carried = carried + squared(taken)[:, :, None] * t.doubt_b[:, None, :]
        energy = energy * squared(t.keeps) + squared(term)
        error = error * squared(t.keeps) + squared(kept) * t.doubt_decay + carried
        state = kept + term
        error += squared(term) * (UNIT**2 + 2 * unit * unit / 3) + squared(state) * UNIT**2
        sums = (squared(state) + energy) * (UNIT**2 * sizes.state / 6 + unit * unit / 3)
        read = np.matmul(_ALIGNED * error + sums, squared(t.c)[:, :, None])[..., 0]
        read += np.matmul(squared(state), t.doubt_c[:, :, None])[..., 0] + squared(skip) * t.doubt_x
        skipped = skip * t.x
        whole = np.matmul(state, t.c[:, :, None])[..., 0]
        found.append(read + stored(skipped, unit) + stored(whole, unit))
    made = np.stack(found).reshape(len(values), -1)[-rows:]
    return np.asarray(made + stored(y, unit, 2) + lost(store))


def _text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    g = sizes_of(geometry)
    width = g.groups * g.state
    return (
        f"x, B, C = np.split(conv_out, [{g.channels}, {g.channels + width}], axis=-1)",
        f"x = x.reshape(tokens, {g.heads}, {g.head_dim})",
        f"B, C = (np.repeat(v.reshape(tokens, {g.groups}, {g.state}), {g.heads // g.groups}, axis=1)"
        " for v in (B, C))",
        f"state = np.zeros(({g.heads}, {g.head_dim}, {g.state}))",
        f"{node.stage} = np.zeros((tokens, {g.heads}, {g.head_dim}))",
        "for t in range(tokens):",
        "    taken = np.einsum('h,hp,hn->hpn', dt[t], x[t], B[t])",
        "    state = state * np.exp(decay[t])[:, None, None] + taken",
        f"    {node.stage}[t] = np.einsum('hpn,hn->hp', state, C[t]) + scan_skip_weight[:, None] * x[t]",
        f"{node.stage} = {node.stage}.reshape(tokens, -1)",
    )


def _step(node: Node, inputs: Inputs, site: Site) -> Array:
    return stepped(only(inputs), site.vector("dt_shift"), sizes_of(site.geometry))


def _step_variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    known, shift, unit = only(ins), f64(site.vector("dt_shift")), max(store, UNIT)
    moved = known.value + shift
    # The sum may be rounded to the format of stages before softplus, whose slope is a sigmoid.
    own = squared(y * UNIT * (np.abs(moved) + FEW)) + stored(y, unit) + lost(store)
    before = known.variance + stored(np.abs(moved), unit) + stored(np.abs(shift), unit)
    return np.asarray(own + squared(f64(sigmoid(moved))) * before)


def _step_text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    sizes = sizes_of(geometry)
    return (
        f"{node.stage} = np.logaddexp(0, {argument(node)} + dt_shift_weight)",
        f"{node.stage} = np.clip({node.stage}, {sizes.least_step}, {sizes.largest_step})",
    )


def _decay(node: Node, inputs: Inputs, site: Site) -> Array:
    dt = only(inputs)
    return np.asarray(-np.exp(site.vector("decay_log").astype(dt.dtype)) * dt)


def _decay_variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    known, log = only(ins), f64(site.vector("decay_log"))
    own = squared(y * UNIT * (np.abs(log) + FEW)) + stored(y, max(store, UNIT)) + lost(store)
    return np.asarray(own + squared(np.exp(log)) * known.variance)


def _decay_text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    return (f"{node.stage} = -np.exp(decay_log_weight) * {argument(node)}",)


STEP = Operator(name="step", values=_step, variance=_step_variance, text=_step_text)
STEP_DECAY = Operator(name="step_decay", values=_decay, variance=_decay_variance, text=_decay_text)
STATE_SPACE = Operator(
    name="state_space",
    values=_values,
    variance=_variance,
    text=_text,
    over_tokens=True,
    kept=("conv_out", "dt", "decay"),
)
