"""The embedded runtime: a NumPy decoder of ``operators``, in any arithmetic of the table, faulted or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from apr_falsify import __version__
from apr_falsify.errors import PassesError
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.families import graph_of
from apr_falsify.model.graph import Node
from apr_falsify.model.passes import Passes
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.model.wiring import supplier_of
from apr_falsify.numerics.arithmetic import format_named
from apr_falsify.operators.operator import Array, Inputs
from apr_falsify.operators.site import ModelSite
from apr_falsify.operators.table import boundary_of, kept_by, operator_of, span_of
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.kernel import Arithmetic, RuntimeSite, arithmetic_named
from apr_falsify.traces.capture import Request, Sink, laid_end_to_end
from apr_falsify.traces.identity import difference, driver_of, model_sha256, name_of, same_family_file
from apr_falsify.traces.provenance import Provenance, utc_now
from apr_falsify.traces.trace import Trace

Step = Callable[[Key, Inputs, RuntimeSite], Array]
"""Computes one stage at one place from its inputs."""


def as_defined(key: Key, inputs: Inputs, site: RuntimeSite) -> Array:
    """Compute a stage as its operators define it."""
    return site.run(key.stage, inputs)


def capture(
    model: Model,
    request: Request,
    sink: Sink,
    *,
    dtype: str = "f32",
    arithmetic: Arithmetic | None = None,
    step: Step = as_defined,
) -> Trace:
    """Run ``model`` on ``request.tokens`` and hand the requested stages to ``sink``.

    Every stage's values are rounded to ``dtype``; sums are done in f32 (f64 for ``f64``). What lies beyond
    the last requested stage does not run.

    Args:
        model: the model.
        request: what to run and to keep.
        sink: where the stages go.
        dtype: the number format of a run in plain arithmetic.
        arithmetic: what to compute in, where that is more than a number format.
        step: what computes each stage; another one seeds faults.

    Raises:
        TokensError: a token outside the vocabulary.
        LayerRangeError: layers the model does not have.
        ModelError: a weight is missing.

    """
    chosen = arithmetic or Arithmetic(store=format_named(dtype))
    request.check(model.geometry)
    wanted, passes = set(request.keys(model.geometry)), request.passes
    kept: dict[Key, list[Array]] = {}
    several = len(passes.sizes) > 1
    cache: dict[Key, Array] = {}
    logits: Array | None = None
    for number in range(1, len(passes.sizes) + 1):
        place = ModelSite(
            weights=model.weights,
            layer=None,
            tokens=request.tokens[: sum(passes.sizes[:number])],
            dtype=chosen.store.compute,
            in_passes=passes.first(number) if several else request.in_passes,
        )
        for key, values in _one_pass(model, request, place, cache if several else None, chosen, step):
            logits = values if key == Key(None, "lm_head") else logits
            if key in wanted and not several:
                sink.add(key, values)
            elif key in wanted:
                kept.setdefault(key, []).append(values)
    for key, parts in kept.items():
        sink.add(key, laid_end_to_end(key, parts))
    return sink.finish(
        provenance=_provenance(model, request, chosen, logits),
        geometry=model.geometry,
        tokens=request.tokens,
        in_passes=request.in_passes,
    )


def _one_pass(
    model: Model,
    request: Request,
    place: ModelSite,
    cache: dict[Key, Array] | None,
    arithmetic: Arithmetic,
    step: Step,
) -> Iterator[tuple[Key, Array]]:
    """Compute the last pass of ``place`` and yield each stage; a ``cache`` gets its keys and values."""
    values: dict[Key, Array] = {}
    for key in forward_order(model, request):
        if values and key.layer is not None and key.layer not in {layer for layer, _ in values}:
            _forget(values, key)
        values[key] = run_stage(model, replace(place, layer=key.layer), values, key, arithmetic, step, cache)
        yield key, values[key]


def forward_order(model: Model, request: Request) -> list[Key]:
    """Return every stage that must run to reach the last requested one, in order."""
    graph, wanted = graph_of(model.geometry), set(request.keys(model.geometry))
    places: list[int | None] = [*range(request.layers.stop), None]
    order: list[Key] = [
        Key(layer, name)
        for layer in places
        for name in graph.at(layer)
        if not STAGES[name].inner or STAGES[name].composed or (layer, name) in wanted
    ]
    return order[: 1 + max(index for index, key in enumerate(order) if key in wanted)]


def run_stage(
    model: Model,
    place: ModelSite,
    values: dict[Key, Array],
    key: Key,
    arithmetic: Arithmetic,
    step: Step = as_defined,
    cache: dict[Key, Array] | None = None,
) -> Array:
    """Compute one stage at ``place`` from ``values``, and from what ``cache`` keeps of earlier passes."""
    layer, name = key
    apart = [inner for at, inner in values if at == layer and STAGES[inner].inner]
    span = span_of(name, model.geometry, layer, apart)
    sources = {
        argument: supplier_of(source, model.geometry, layer) for argument, source in boundary_of(span).items()
    }
    inputs = {argument: values[source] for argument, source in sources.items()}
    if cache is not None:
        _check_known(span)
    for argument in kept_by(span):
        if cache is not None and (cached := sources.get(argument)) is not None:
            before = cache.get(cached, inputs[argument][:0])[: place.passes.unseen]
            cache[cached] = inputs[argument] = np.concatenate((before, inputs[argument]))
    return step(key, inputs, RuntimeSite(model=place, arithmetic=arithmetic))


def _check_known(span: tuple[Node, ...]) -> None:
    for node in span:
        if operator_of(node).over_tokens and operator_of(node).kept is None:
            raise PassesError(
                f"the operator {node.operator} reads other tokens, and what a cache keeps of it is not known",
                expected="one pass",
                remedy="leave --passes, --decode and --chunks out",
            )


def _forget(values: dict[Key, Array], key: Key) -> None:
    """Drop what no later stage reads: all but the residual stream that enters this layer."""
    layer = key.layer
    assert layer is not None
    source = Key(0, "embedding") if layer == 0 else Key(layer - 1, "post_ffn_residual")
    kept = values[source]
    values.clear()
    values[source] = kept


def _provenance(model: Model, request: Request, arithmetic: Arithmetic, logits: Array | None) -> Provenance:
    return Provenance(
        runtime="embedded",
        version=__version__,
        driver=driver_of(model.geometry),
        model=name_of(model.path, model.files),
        model_sha256=model_sha256(model.files),
        prompt=request.prompt,
        argmax=None if logits is None else {"id": int(np.argmax(logits))},
        dtype=arithmetic.store.name,
        device="cpu",
        arithmetic=arithmetic.name,
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
        arithmetic: what to compute in.

    """

    model: Model
    arithmetic: Arithmetic = field(default_factory=Arithmetic)
    tokens: tuple[int, ...] | None = None
    prompt: str | None = None
    layers: tuple[int, ...] | None = None
    passes: Passes | None = None

    @property
    def geometry(self) -> Geometry:
        """The geometry of its model."""
        return self.model.geometry

    def capture(self, request: Request, sink: Sink) -> Trace:
        """Run the model on ``request``."""
        return capture(self.model, request, sink, arithmetic=self.arithmetic)

    def differs(self, trace: Trace, request: Request) -> str | None:
        """Say how ``trace`` is not what :meth:`capture` would give."""
        wanted = {
            "runtime": "embedded",
            "version": __version__,
            "model_sha256": model_sha256(self.model.files),
            "arithmetic": self.arithmetic.name,
            **same_family_file(self.geometry),
        }
        return difference(trace, request, self.geometry, wanted)


def open_embedded(target: Target) -> EmbeddedSubject:
    """Return the model at ``target`` as a subject."""
    return EmbeddedSubject(
        model=open_model(target.path), arithmetic=arithmetic_named(target.arithmetic or "f32")
    )
