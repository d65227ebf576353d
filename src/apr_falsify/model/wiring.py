"""Which stages a model has, and who feeds whom in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from apr_falsify.errors import StageError
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import LAYER_INPUT, STAGES, Scope

STANDS_IN: Mapping[str, str] = {
    "qkv_bias": "qkv_matmul",
    "ffn_swigl": "ffn_silu",
    "ffn_silu": "ffn_gate",
    "ffn_gate": "ffn_up",
    "ffn_up": "ffn_norm",
}
"""A stage that a model may lack -> the one that its readers read instead.

Without a gate the activation is that of ``ffn_up``; a mixture of experts is computed from ``ffn_norm``.
"""

MIXTURE_STAGES = ("moe_router", "moe_ffn_out", "moe_router_indices")
_WITHIN_EXPERTS = ("ffn_gate", "ffn_up", "ffn_silu", "ffn_swigl")
_GATED = ("ffn_gate", "ffn_swigl")


def stages_of(geometry: Geometry, layer: int | None = None) -> tuple[str, ...]:
    """Return the stages that a model of this geometry has, in the order of the table.

    A bias-free model has no ``qkv_bias``, one without a gate no ``ffn_gate`` and ``ffn_swigl``. A mixture of
    experts has the ``moe_`` stages in place of those of a single feed-forward block.

    Args:
        geometry: the model's geometry.
        layer: the layer, ``None`` for the stages of any.

    """
    absent = set() if geometry.qkv_bias else {"qkv_bias"}
    if not geometry.row.gated:
        absent.update(_GATED)
    layers = range(geometry.layers) if layer is None else (layer,)
    kinds = {geometry.is_mixture(each) for each in layers}
    if True not in kinds:
        absent.update(MIXTURE_STAGES)
    if False not in kinds:
        absent.update(_WITHIN_EXPERTS)
    return tuple(name for name in STAGES if name not in absent)


def in_order_of_computation(names: Iterable[str]) -> tuple[str, ...]:
    """Return stages of one layer so that each stands after those it is computed from."""
    wanted = list(names)
    done: list[str] = []

    def place(name: str) -> None:
        if name in wanted and name not in done:
            for source in STAGES[name].inputs:
                if source != LAYER_INPUT:
                    place(source)
            done.append(name)

    for name in wanted:
        place(name)
    return tuple(done)


def inputs_of(name: str, geometry: Geometry, layer: int | None) -> dict[str, tuple[int | None, str]]:
    """Return what stage ``name`` is computed from: input name -> the (layer, stage) that supplies it.

    A stage that the model does not have is stood in for by another, see :data:`STANDS_IN`.
    """
    present = stages_of(geometry, layer)
    if name not in present:
        raise StageError(f"a {geometry.row.title} model of this geometry has no stage {name}")
    sources: dict[str, tuple[int | None, str]] = {}
    for source in STAGES[name].inputs:
        if source == LAYER_INPUT:
            assert layer is not None
            sources[source] = (0, "embedding") if layer == 0 else (layer - 1, "post_ffn_residual")
        elif STAGES[name].scope is Scope.MODEL and STAGES[source].per_layer:
            sources[source] = (geometry.layers - 1, source)
        else:
            supplier = source
            while supplier not in present:
                supplier = STANDS_IN[supplier]
            sources[source] = (layer, supplier)
    return sources
