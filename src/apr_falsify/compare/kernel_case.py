"""One stage of one run on its own: inputs, weights, constants, captured and expected output.

A porter runs one kernel on the inputs and compares with ``expected``: no model, no other kernel, no runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.axes import axes_of
from apr_falsify.compare.judge import as_run, comparable
from apr_falsify.compare.layout import canonical
from apr_falsify.compare.metrics import Metrics, compare_arrays
from apr_falsify.errors import LayerRangeError, ModelError, StageError
from apr_falsify.formats.tensors import Tensor
from apr_falsify.formats.weights import Weights
from apr_falsify.model.passes import Passes
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import SCORES, SQUARES, STAGES, Key, Layout, Scope, stage
from apr_falsify.model.wiring import supplier_of
from apr_falsify.operators.operator import Array, Lines
from apr_falsify.operators.rotation import rope_frequencies
from apr_falsify.operators.site import ModelSite
from apr_falsify.operators.table import boundary_of, compute, operator_of, span_of
from apr_falsify.traces.trace import Trace

Values = npt.NDArray[Any]

_ROTARY = ("q_post_rope", "k_post_rope", "k_rope")
_NEEDS_EVERY_TOKEN = (*_ROTARY, *SQUARES, "attention")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCase:
    """One stage of one run on its own.

    Attributes:
        key: the stage.
        geometry: the model's geometry.
        inputs: name in the formula -> the captured values in canonical shape.
        suppliers: name in the formula -> the stage that supplied it.
        weights: name in the formula -> the weight, decoded on demand.
        rows: name in the formula -> rows of a table (the tokens' embeddings), as they are.
        constants: name in the formula -> the number.
        formula: lines of NumPy.
        expected: what the formula gives in f64, canonical shape.
        captured: what the run captured, canonical shape; ``None`` where it did not.
        layout: how the run had stored it.
        difference: captured against expected, where there is both.

    """

    key: Key
    geometry: Geometry
    inputs: Mapping[str, Values]
    suppliers: Mapping[str, Key]
    weights: Mapping[str, Tensor]
    rows: Mapping[str, Values]
    constants: Mapping[str, Any]
    formula: tuple[str, ...]
    expected: npt.NDArray[np.float64]
    captured: Values | None
    layout: tuple[Layout, ...]
    difference: Metrics | None


def parse_place(text: str, geometry: Geometry) -> Key:
    """Read ``STAGE@LAYER``; without ``@LAYER`` the first layer is meant.

    Raises:
        StageError: no such stage, or the model has none.
        LayerRangeError: no such layer, or the layer of a stage that exists once.

    """
    name, at, digits = text.partition("@")
    row = stage(name)
    if at and not (digits.isascii() and digits.isdecimal() and len(digits) < 10):
        raise LayerRangeError(
            f"not a stage and a layer: {text!r}", expected="STAGE@LAYER, e.g. attn_scores@0"
        )
    if row.scope is Scope.MODEL:
        if at:
            raise LayerRangeError(f"{row.name} exists once in a model", expected=row.name)
        key: Key = Key(None, row.name)
    else:
        layer = int(digits or 0)
        geometry.check_layers(range(layer, layer + 1))
        key = Key(layer, row.name)
    if row.scope is Scope.FIRST_LAYER and key.layer != 0:
        raise LayerRangeError(f"{row.name} exists in layer 0 alone", expected=f"{row.name}@0")
    sources_of(key, geometry)
    return key


def sources_of(key: Key, geometry: Geometry) -> dict[str, Key]:
    """Return what a stage is computed from: name in the formula -> the stage that supplies it."""
    return {
        argument: supplier_of(source, geometry, key.layer)
        for argument, source in boundary_of(span_of(key.stage, geometry, key.layer)).items()
    }


def kernel_case(trace: Trace, weights: Weights | None, key: Key) -> KernelCase:
    """Take stage ``key`` out of ``trace``.

    Args:
        trace: the run.
        weights: those it ran with, ``None`` where they cannot be read.
        key: the stage.

    Raises:
        StageError: an input was not captured, or not of every token that the stage needs; or the run had
            several passes.
        ModelError: it needs weights, and there are none.

    """
    if not trace.passes.plain:
        raise StageError(
            f"the run computed its tokens in {len(trace.passes.sizes)} passes, or at positions of its own",
            where=trace.path,
            expected="one pass from position 0, whose formula needs no cache",
            remedy="capture it without --passes, --decode, --chunks and --positions",
        )
    name, geometry = key.stage, trace.geometry
    suppliers = sources_of(key, geometry)
    inputs = {role: _captured(trace, key, source) for role, source in suppliers.items()}
    site = _Recording(key=key, weights=as_run(weights, trace), geometry=geometry, tokens=trace.tokens)
    exact = {role: values.astype(np.float64) for role, values in inputs.items()}
    expected = np.asarray(compute(name, exact, site), dtype=np.float64)
    array = trace.stages.get(key)
    captured = None if array is None else canonical(array, key, geometry, trace.passes)
    layout = () if array is None else array.layout
    return KernelCase(
        key=key,
        geometry=geometry,
        inputs=inputs,
        suppliers=suppliers,
        weights=site.weights_used,
        rows=site.rows,
        constants=_constants(key, geometry, len(trace.tokens)),
        formula=formula_of(key, geometry),
        expected=expected,
        captured=captured,
        layout=layout,
        difference=None if captured is None else _difference(trace, key, captured, expected),
    )


def formula_of(key: Key, geometry: Geometry) -> Lines:
    """Return the lines of NumPy that compute a stage, from the files alone, into a variable of its name."""
    span = span_of(key.stage, geometry, key.layer)
    return tuple(line for node in span for line in operator_of(node).text(node, geometry, key.layer))


def _captured(trace: Trace, key: Key, source: Key) -> Values:
    array = trace.stages.get(source)
    layer, name = source
    place = name if layer is None else f"{name} of layer {layer}"
    if array is None:
        raise StageError(
            f"{key.stage} is computed from {place}, which was not captured",
            where=trace.path,
            remedy=f"capture {place} too",
        )
    values = canonical(array, source, trace.geometry, trace.passes)
    if Layout.LAST_TOKEN in array.layout and STAGES[name].axes[0] == "tokens":
        if key.stage in _NEEDS_EVERY_TOKEN:
            raise StageError(
                f"{key.stage} needs every token, and of {place} only the last one's row was captured",
                where=trace.path,
                remedy=f"capture {place} of all tokens",
            )
        values = values[None]
    return values


def _difference(trace: Trace, key: Key, captured: Values, expected: npt.NDArray[np.float64]) -> Metrics:
    last_only = captured.ndim < len(STAGES[key.stage].axes)
    stored = captured[None] if last_only else captured
    wanted, _ = comparable(trace, key, stored, expected, expected)
    return compare_arrays(wanted, stored, axes_of(key.stage, trace.geometry))


def _constants(key: Key, geometry: Geometry, tokens: int) -> dict[str, Any]:
    layer, name = key
    found: dict[str, Any] = {
        "tokens": tokens,
        "heads": geometry.heads,
        "kv_heads": geometry.kv_heads,
        "head_dim": geometry.head_dim,
        "norm_eps": geometry.norm_eps,
    }
    if geometry.v_head_dim:
        found["v_head_dim"] = geometry.v_head_dim
    if name in _ROTARY:
        rope = geometry.rope_at(layer)
        frequencies, factor = rope_frequencies(rope, geometry.head_dim, tokens)
        found |= {"rope_theta": rope.theta, "rope_kind": rope.kind, "rope_factor": factor}
        found["rope_frequencies"] = [float(value) for value in frequencies]
    if name in SCORES:
        found |= {"scale": geometry.attn_scale_at(layer), "attn_softcap": geometry.attn_softcap}
    if name == "attn_softmax" and layer is not None:
        found["window"] = geometry.windows[layer]
    if name in ("post_attn_residual", "post_ffn_residual"):
        found["residual_scale"] = geometry.residual_scale
    if name in ("ffn_silu", "ffn_out", "moe_ffn_out"):
        found["activation"] = geometry.activation
    if geometry.is_mixture(layer):
        found["experts_per_token"] = geometry.experts_per_token
    if name == "embedding":
        found["embed_scale"] = geometry.embed_scale
    if name in ("lm_head_proj", "lm_head"):
        found |= {"final_softcap": geometry.final_softcap, "logit_scale": geometry.logit_scale}
    return found


@dataclass(slots=True, kw_only=True)
class _Recording:
    """An :class:`apr_falsify.operators.site.Site` that keeps which weights a formula asks for."""

    key: Key
    weights: Weights | None
    geometry: Geometry
    tokens: tuple[int, ...]
    weights_used: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Values] = field(default_factory=dict)

    @property
    def layer(self) -> int | None:
        return self.key.layer

    @property
    def passes(self) -> Passes:
        return Passes.whole(len(self.tokens))

    def _model(self) -> ModelSite:
        if self.weights is None:
            raise ModelError(
                f"{self.key.stage} is computed with weights, and none can be read",
                remedy="name the model: --oracle MODEL",
            )
        return ModelSite(weights=self.weights, layer=self.layer, tokens=self.tokens)

    def _use(self, role: str) -> None:
        model = self._model()
        kind, _, expert = role.partition(".")
        name = kind if kind.endswith("_bias") else f"{kind}_weight"
        name = f"{name}.{expert}" if expert else name
        self.weights_used[name] = model.weights.tensor(role, self.layer)

    def project(self, x: Array, role: str, biased: bool = False) -> Array:
        self._use(role)
        if biased:
            self._use(f"{role}_bias")
        return self._model().project(x, role, biased)

    def vector(self, role: str) -> Array:
        self._use(role)
        return self._model().vector(role)

    def embed(self) -> Array:
        self.rows["embed_rows"] = self._model().embed()
        return self.rows["embed_rows"]

    def positions(self) -> Array:
        self.rows["position_rows"] = self._model().positions()
        return self.rows["position_rows"]
