"""The gated delta rule (Yang et al. 2024): a state per head that decays, and learns what it lacks.

With q and k of length 1, ``S = exp(g) S``, then ``S = S + beta k (v - k S)``, and each token reads
``q S / sqrt(K)``. Runtimes go token by token, or in chunks of 64 by a triangular system, which comes to the
same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from apr_falsify.model.graph import Node
from apr_falsify.model.mixers import GatedDelta
from apr_falsify.model.shape import Geometry
from apr_falsify.operators.choices import f64
from apr_falsify.operators.operator import Array, Inputs, Lines, Operator
from apr_falsify.operators.roundoff import F64, FEW, UNIT, Ins, Known, NoisySite, lost, squared, stored
from apr_falsify.operators.short_conv import without_padding
from apr_falsify.operators.site import Site

EPS = 1e-6
"""Added to the sum of squares of q and of k; fixed in every implementation."""

CHUNK = 64
"""The tokens of a chunk, whose decays are summed."""


_ALIGNED = 4.0
"""How much more of a state's error a query reads than one of a random direction, at most.

Measured on sums in chunks and token by token, of 130 to 300 tokens, heads of 128, slow and fast decays: they
stay below 2 sigma so, where 8 are allowed.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaForm:
    """The rule, and what ports make of it.

    Attributes:
        normed: whether q and k are brought to length 1.
        scaled: whether q is divided by the root of its width.
        decays: whether states decay.
        corrects: whether what a state holds already is taken off what it learns.
        reads_first: whether a token reads a state before it has learned that token.
        shared_by_turns: whether value head h reads key head h % H, not h // (values / H).
        begins: tokens at which the states begin anew.

    """

    normed: bool = True
    scaled: bool = True
    decays: bool = True
    corrects: bool = True
    reads_first: bool = False
    shared_by_turns: bool = False
    begins: frozenset[int] = frozenset()


RULE = DeltaForm()


def sizes_of(geometry: Geometry) -> GatedDelta:
    """Return the sizes of a model's gated delta rule."""
    assert isinstance(geometry.mixer, GatedDelta)
    return geometry.mixer


def heads_of(x: Array, sizes: GatedDelta, form: DeltaForm = RULE) -> tuple[Array, Array, Array]:
    """Return q, k and v of each value head, [S, H, D] each, from what the convolution makes [S, C]."""
    q, k, v = np.split(x, (sizes.keys, 2 * sizes.keys), axis=-1)
    q, k = (each.reshape(len(x), sizes.key_heads, sizes.key_dim) for each in (q, k))
    if form.normed:
        q, k = (
            each / np.sqrt(np.sum(np.square(each), axis=-1, keepdims=True) + each.dtype.type(EPS))
            for each in (q, k)
        )
    if form.scaled:
        q = q * x.dtype.type(sizes.key_dim**-0.5)
    heads = np.arange(sizes.value_heads)
    shared = heads % sizes.key_heads
    if not form.shared_by_turns:
        shared = heads // (sizes.value_heads // sizes.key_heads)
    return q[:, shared], k[:, shared], v.reshape(len(x), sizes.value_heads, sizes.value_dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaStep:
    """What one token does to the states.

    Attributes:
        kept: the states after their decay [H, K, V].
        held: what they hold of the token's key [H, V].
        learned: what they learn of it [H, V].
        state: the states after it [H, K, V].
        read: what its query reads [H, V].

    """

    kept: Array
    held: Array
    learned: Array
    state: Array
    read: Array


def steps(
    q: Array, k: Array, v: Array, beta: Array, decay: Array, form: DeltaForm = RULE
) -> Iterator[DeltaStep]:
    """Give the steps of the tokens in order."""
    state = np.zeros((v.shape[1], k.shape[2], v.shape[2]), dtype=v.dtype)
    for t in range(len(v)):
        if t in form.begins:
            state = np.zeros_like(state)
        kept = state * np.exp(decay[t])[:, None, None] if form.decays else state
        held = np.matmul(k[t][:, None, :], kept)[:, 0]
        learned = (v[t] - held if form.corrects else v[t]) * beta[t][:, None]
        state = kept + k[t][:, :, None] * learned[:, None, :]
        read = np.matmul(q[t][:, None, :], kept if form.reads_first else state)[:, 0]
        yield DeltaStep(kept=kept, held=held, learned=learned, state=state, read=read)


def scanned(x: Array, beta: Array, decay: Array, sizes: GatedDelta, form: DeltaForm = RULE) -> Array:
    """Return what each token reads: [S, H * V].

    Args:
        x: what the convolution makes, q|k|v [S, C].
        beta: [S, H].
        decay: [S, H].
        sizes: the sizes of the rule.
        form: the rule, or another.

    """
    q, k, v = heads_of(x, sizes, form)
    found = steps(q, k, v, beta.astype(x.dtype, copy=False), decay.astype(x.dtype, copy=False), form)
    return np.stack([step.read for step in found]).reshape(len(x), -1)


def _values(node: Node, inputs: Inputs, site: Site) -> Array:
    x = without_padding(inputs["conv_out"], site.passes)
    return scanned(x, inputs["beta"], inputs["decay"], sizes_of(site.geometry))[-site.passes.rows :]


def _variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    """Count what each step rounds, and carry it in the states: per head and value, over the keys together.

    A state's error decays as the state does, and learning a key of length 1 makes none larger. What is exp
    of a sum of decays carries the rounding of that sum, over the tokens of a chunk.
    """
    sizes, rows = sizes_of(site.geometry), len(y)
    x = f64(without_padding(ins["conv_out"].value, site.passes))
    beta, decay = (ins[name].value for name in ("beta", "decay"))
    q, k, v = (f64(each) for each in heads_of(x, sizes))
    noise = _input_noise(ins, x, sizes)
    summed = np.cumsum(np.abs(decay), axis=0)
    within = summed - np.concatenate((np.zeros_like(summed[:CHUNK]), summed))[: len(summed)]
    common = UNIT * (math.sqrt(sizes.key_dim) / 2 + FEW)  # that of the length of q, or of k
    error = np.zeros((sizes.value_heads, sizes.value_dim))
    found = []
    for t, step in enumerate(steps(q, k, v, beta, decay)):
        error = error * np.exp(2 * decay[t])[:, None] + _of_step(
            step, k[t], v[t], beta[t][:, None], noise.at(t), within[t][:, None], common
        )
        size = np.sum(squared(q[t]), axis=-1, keepdims=True) * min(1.0, _ALIGNED / sizes.key_dim)
        products = np.einsum("hk,hkv->hv", squared(q[t]), squared(step.state))
        read = size * error + products * UNIT**2 * (sizes.key_dim / 6) + squared(step.read * common)
        read = read + np.einsum("hk,hkv->hv", noise.q[t], squared(step.state))
        found.append(read)
    made = np.stack(found).reshape(len(x), -1)[-rows:]
    return np.asarray(made + stored(y, max(store, UNIT), 2) + lost(store))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Noise:
    """The variance that inputs carry: of q and k [S, H, K], v [S, H, V], beta and decay [S, H]."""

    q: F64
    k: F64
    v: F64
    beta: F64
    decay: F64

    def at(self, token: int) -> _Noise:
        """Return that of one token."""
        return _Noise(
            q=self.q[token], k=self.k[token], v=self.v[token], beta=self.beta[token], decay=self.decay[token]
        )


def _input_noise(ins: Ins, x: F64, sizes: GatedDelta) -> _Noise:
    def spread(known: Known) -> F64:
        return np.array(np.broadcast_to(np.asarray(known.variance, dtype=np.float64), known.value.shape))

    q, k, v = np.split(spread(ins["conv_out"]), (sizes.keys, 2 * sizes.keys), axis=-1)
    energies = np.split(np.square(x), (sizes.keys, 2 * sizes.keys), axis=-1)[:2]
    shared = np.arange(sizes.value_heads) // (sizes.value_heads // sizes.key_heads)
    normed = []
    for variance, energy in zip((q, k), energies, strict=True):
        shape = (len(x), sizes.key_heads, sizes.key_dim)
        length = np.sum(energy.reshape(shape), axis=-1, keepdims=True) + EPS
        normed.append((variance.reshape(shape) / length)[:, shared])
    return _Noise(
        q=normed[0] / sizes.key_dim,
        k=normed[1],
        v=v.reshape(len(x), sizes.value_heads, sizes.value_dim),
        beta=spread(ins["beta"]),
        decay=spread(ins["decay"]),
    )


def _of_step(step: DeltaStep, k: F64, v: F64, beta: F64, noise: _Noise, within: F64, common: float) -> F64:
    """Return the variance that one step brings into each head's states, summed over the keys: [H, V]."""
    kept, state = (np.sum(squared(each), axis=1) for each in (f64(step.kept), f64(step.state)))
    held, learned = f64(step.held), f64(step.learned)
    products = np.einsum("hk,hkv->hv", squared(k), squared(f64(step.kept)))
    known = products * (UNIT**2 * k.shape[-1] / 6) + (squared(held) + squared(v)) * UNIT**2 + noise.v
    relative = squared(UNIT * (within + FEW)) + noise.decay[:, None]
    moved = np.sum(noise.k, axis=-1, keepdims=True) + common**2
    return np.asarray(
        kept * relative
        + state * UNIT**2
        + squared(beta) * known
        + squared(learned) * (moved + 3 * UNIT**2)
        + squared(beta) * (kept * moved + squared(held) * common**2)
        + noise.beta[:, None] * squared(v - held)
    )


def _text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    g = sizes_of(geometry)
    return (
        f"q, k, v = np.split(conv_out, [{g.keys}, {2 * g.keys}], axis=-1)",
        f"q, k = (x.reshape(tokens, {g.key_heads}, {g.key_dim}) for x in (q, k))",
        f"q, k = (x / np.sqrt(np.sum(x**2, axis=-1, keepdims=True) + {EPS}) for x in (q, k))",
        f"q, k = (np.repeat(x, {g.value_heads // g.key_heads}, axis=1) for x in (q / {g.key_dim} ** 0.5, k))",
        f"v = v.reshape(tokens, {g.value_heads}, {g.value_dim})",
        f"state = np.zeros(({g.value_heads}, {g.key_dim}, {g.value_dim}))",
        f"{node.stage} = np.zeros((tokens, {g.value_heads}, {g.value_dim}))",
        "for t in range(tokens):",
        "    state = state * np.exp(decay[t])[:, None, None]",
        "    learned = (v[t] - np.einsum('hk,hkv->hv', k[t], state)) * beta[t][:, None]",
        "    state = state + k[t][:, :, None] * learned[:, None, :]",
        f"    {node.stage}[t] = np.einsum('hk,hkv->hv', q[t], state)",
        f"{node.stage} = {node.stage}.reshape(tokens, -1)",
    )


GATED_DELTA = Operator(
    name="gated_delta",
    values=_values,
    variance=_variance,
    text=_text,
    over_tokens=True,
    kept=("conv_out", "beta", "decay"),
)
