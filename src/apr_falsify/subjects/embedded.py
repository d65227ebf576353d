"""The embedded runtime: a NumPy decoder built on ``ops``, in f64, f32, f16 or bf16."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apr_falsify import __version__
from apr_falsify.arithmetic import Format, format_named
from apr_falsify.capture import Request, Sink
from apr_falsify.geometry import Geometry
from apr_falsify.identity import difference, model_sha256
from apr_falsify.ops import Array, Site, compute, inputs_of, stages_of
from apr_falsify.stages import STAGES, Scope
from apr_falsify.subjects.interface import Target
from apr_falsify.trace import Key, Provenance, Trace, utc_now
from apr_falsify.weights import Model, open_model


def capture(model: Model, request: Request, sink: Sink, *, dtype: str = "f32") -> Trace:
    """Run ``model`` on ``request.tokens`` and hand the requested stages to ``sink``.

    Every stage's values are rounded to ``dtype``; sums are done in f32 (f64 for ``f64``). Layers beyond
    the last requested one do not run.

    Raises:
        TokensError: a token outside the vocabulary.
        LayerRangeError: layers the model does not have.
        ModelError: a weight is missing.

    """
    request.check(model.geometry)
    wanted = set(request.keys(model.geometry))
    values: dict[Key, Array] = {}
    logits: Array | None = None
    for key in forward_order(model, request):
        if key[1] == "attn_norm":
            _forget(values, key)
        values[key] = run_stage(model, request.tokens, values, key, format_named(dtype))
        if key in wanted:
            sink.add(key, values[key])
        if key == (None, "lm_head"):
            logits = values[key]
    return sink.finish(
        provenance=_provenance(model, request, dtype, logits), geometry=model.geometry, tokens=request.tokens
    )


def forward_order(model: Model, request: Request) -> list[Key]:
    """Return every stage that must run to reach the last requested one, in order."""
    geometry = model.geometry
    names = stages_of(geometry)
    order: list[Key] = [(0, "embedding")]
    for layer in range(request.layers.stop):
        order += [(layer, name) for name in names if STAGES[name].scope is Scope.LAYER]
    wanted = request.keys(geometry)
    order += [(None, name) for name in names if STAGES[name].scope is Scope.MODEL and (None, name) in wanted]
    if (None, "lm_head") in order and (None, "final_norm") not in order:
        order.insert(-1, (None, "final_norm"))
    return order


def run_stage(
    model: Model, tokens: tuple[int, ...], values: dict[Key, Array], key: Key, number_format: Format
) -> Array:
    """Compute one stage from ``values`` and round it to ``number_format``."""
    layer, name = key
    site = Site(weights=model.weights, layer=layer, tokens=tokens, dtype=number_format.compute)
    inputs = {role: values[source] for role, source in inputs_of(name, model.geometry, layer).items()}
    return np.asarray(number_format.round(compute(name, inputs, site)))


def _forget(values: dict[Key, Array], key: Key) -> None:
    """Drop what no later stage reads: all but the residual stream that enters this layer."""
    layer = key[0]
    assert layer is not None
    source = (0, "embedding") if layer == 0 else (layer - 1, "post_ffn_residual")
    kept = values[source]
    values.clear()
    values[source] = kept


def _provenance(model: Model, request: Request, dtype: str, logits: Array | None) -> Provenance:
    return Provenance(
        runtime="embedded",
        version=__version__,
        driver=f"apr-falsify {__version__}",
        model=str(model.path),
        model_sha256=model_sha256(model.files),
        prompt=request.prompt,
        argmax=None if logits is None else {"id": int(np.argmax(logits))},
        dtype=dtype,
        device="cpu",
        arithmetic=dtype,
        libraries={"numpy": np.__version__},
        layers=(request.layers.start, request.layers.stop),
        stages=request.stages,
        created=utc_now(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedSubject:
    """A model to be run by the embedded runtime.

    Attributes:
        model: the model.
        dtype: the number format to run it in.

    """

    model: Model
    dtype: str = "f32"
    tokens: tuple[int, ...] | None = None
    prompt: str | None = None
    layers: tuple[int, ...] | None = None

    @property
    def geometry(self) -> Geometry:
        """The geometry of its model."""
        return self.model.geometry

    def capture(self, request: Request, sink: Sink) -> Trace:
        """Run the model on ``request``."""
        return capture(self.model, request, sink, dtype=self.dtype)

    def differs(self, trace: Trace, request: Request) -> str | None:
        """Say how ``trace`` is not what :meth:`capture` would give."""
        wanted = {
            "runtime": "embedded",
            "version": __version__,
            "model_sha256": model_sha256(self.model.files),
            "dtype": self.dtype,
        }
        return difference(trace, request, self.geometry, wanted)


def open_embedded(target: Target) -> EmbeddedSubject:
    """Return the model at ``target`` as a subject."""
    return EmbeddedSubject(model=open_model(target.path), dtype=format_named(target.dtype).name)
