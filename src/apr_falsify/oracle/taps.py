"""Where in transformers' modules each node of the graph is found.

A module is named by the role of its weight (``names.py``), which is the same in all families, or by its
place. ``qkv_matmul`` and ``qkv_bias`` are put together from the outputs of their projections, and what the
attention function sees is handed out there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from apr_falsify.formats.weights import ROTATED_ROLES, half_split
from apr_falsify.model.families import family_of, graph_of, shape_of_role
from apr_falsify.model.graph import ModulePlace, Pick, Tap
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import STAGES, Scope

Take = Callable[[Any, Any], Any]
"""Takes a stage out of a module's positional arguments and its output."""

_TAKES: Mapping[Pick, Take] = {
    Pick.INPUT: lambda args, output: args[0][0],
    Pick.OUTPUT: lambda args, output: _rows(output),
    Pick.HEADS_INPUT: lambda args, output: args[0][0].flatten(1),
    Pick.HEADS: lambda args, output: output[0].transpose(0, 1),
    Pick.LAST_ROW: lambda args, output: _rows(output)[-1],
    Pick.ROUTER_LOGITS: lambda args, output: output[0],
    Pick.ROUTING: lambda args, output: _routing(output),
    Pick.LAST_WEIGHTS: lambda args, output: _best_first(output)[0],
    Pick.LAST_INDICES: lambda args, output: _best_first(output)[1],
}


def _first(output: Any) -> Any:
    """Return a module's output, the first where it gives several."""
    return output[0] if isinstance(output, tuple) else output


def _rows(output: Any) -> Any:
    """Return a module's output of the one sequence, which some modules give without its batch."""
    values = _first(output)
    return values if values.ndim == 2 else values[0]


def _listed(take: Take, geometry: Geometry) -> Take:
    """Let a router's output be (logits, weights, experts); Llama 4's is all experts' weights, then logits."""

    def listed(args: Any, output: Any) -> Any:
        if len(output) != 2:
            return take(args, output)
        weights, logits = output
        experts = logits.topk(geometry.experts_per_token, dim=-1).indices
        return take(args, (logits, weights.gather(-1, experts), experts))

    return listed


def _of_call(take: Take, call: tuple[int, int]) -> Take:
    """Take at one of the calls that a pass makes of a module, ``None`` at the others."""
    count = itertools.count()
    return lambda args, output: take(args, output) if next(count) % call[1] == call[0] else None


def _routing(output: Any) -> Any:
    """Return the weights of a router's output (logits, weights, experts), one column an expert."""
    logits, weights, experts = output
    return weights.new_zeros(logits.shape).scatter(1, experts, weights)


def _best_first(output: Any) -> tuple[Any, Any]:
    """Return the last token's weights and experts, the largest weight first; not all routers sort."""
    weights, experts = output[1][-1], output[2][-1]
    order = weights.argsort(descending=True, stable=True)
    return weights[order], experts[order]


_WITHIN = (ModulePlace.ATTENTION_FUNCTION, ModulePlace.FUNCTION)
"""Where no module shows a stage, but a function that one calls."""

JOINED = ("qkv_matmul", "qkv_bias")
"""Stages that stand in several modules."""


def taps_of(geometry: Geometry, layer: int) -> Iterator[tuple[str, str, Take]]:
    """Give the taps of one layer: stage, module path within the layer (``""`` is itself), and what to take.

    They come in the order of computation; an input stands before its module's output. A tensor that one
    module hands to the next is taken where a hook is needed anyway: each hook costs time. A stage that two
    modules' outputs are added to comes once with each.
    """
    for stage, node in graph_of(geometry).at(layer).items():
        tap = node.tap
        if tap is None or tap.module in _WITHIN or stage in JOINED:
            continue
        take = _TAKES[tap.pick]
        columns = _columns(geometry, tap)
        if columns is not None:
            take = _cut(take, columns)
        if tap.module == "router":
            take = _listed(take, geometry)
        rotary = node.operator == "rotary"  # as a module has q or k, not as the attention function gets it
        role = node["part"] if rotary else tap.module
        order = _half_split_columns(geometry, role) if rotary or tap.pick is Pick.OUTPUT else None
        if order is not None:
            take = _cut(take, order)
        if tap.call != (0, 1):
            take = _of_call(take, tap.call)
        yield stage, _path(geometry, tap), _shaped(take, stage)
        if tap.added:
            yield stage, tap.added.removeprefix("."), _shaped(take, stage)


def final_norm_of(geometry: Geometry) -> str:
    """Return the path of the final norm's module within the decoder."""
    tap = graph_of(geometry).ends["final_norm"].tap
    return module_of(geometry, "final_norm") if tap is None else _path(geometry, tap)


def _path(geometry: Geometry, tap: Tap) -> str:
    if tap.module == ModulePlace.LAYER:
        return ""
    if tap.module == ModulePlace.MIXTURE:
        return mixture_of(geometry)
    if tap.module.startswith("."):
        return tap.module[1:]
    return module_of(geometry, tap.module)


def module_of(geometry: Geometry, role: str) -> str:
    """Return the path of the module that holds the weight in ``role``, within its layer or the decoder."""
    if (own := family_of(geometry).modules.get(role)) is not None:
        return own
    path = family_of(geometry).weights[role].rpartition(".")[0]
    return path.partition("{n}.")[2] if "{n}" in path else path.removeprefix(f"{decoder_of(geometry)}.")


def decoder_of(geometry: Geometry) -> str:
    """Return the path of the decoder within the model with an output head."""
    return family_of(geometry).weights["embed"].partition(".")[0]


def layer_of(geometry: Geometry, layer: int) -> str:
    """Return the path of a layer within the decoder."""
    path = next(name for name in family_of(geometry).weights.values() if "{n}" in name).partition("{n}")[0]
    return f"{path.removeprefix(f'{decoder_of(geometry)}.')}{layer}"


def attention_of(geometry: Geometry) -> str:
    """Return the path, within a layer, of the module that calls the attention function."""
    return module_of(geometry, "o").rpartition(".")[0]


def qkv_modules(geometry: Geometry) -> tuple[str, ...]:
    """Return the projections whose outputs are q, k and v: three, or one; of latent attention those of q, of
    what k and v are made of beside k's shared part, and of k's own parts and v.
    """
    roles: tuple[str, ...] = ("q", "k", "v")
    if geometry.kv_latent:
        roles = ("q_b" if geometry.q_latent else "q", "kv_a", "kv_b")
    return tuple(dict.fromkeys(module_of(geometry, role) for role in roles))


def canonical_columns(geometry: Geometry, widths: Mapping[str, int]) -> list[int] | None:
    """Return where transformers' outputs for q, k or v hold the canonical columns, ``None`` where in order.

    It may hold q, k and v head by head, and rotary pairs side by side.

    Args:
        geometry: the model's geometry.
        widths: the parts that lie side by side, and how wide each is.

    """
    row = family_of(geometry)
    if not (row.interleaved or (row.fused_by_head and len(widths) > 1)):
        return None
    columns = np.arange(sum(widths.values()))
    if row.fused_by_head and len(widths) > 1:
        columns = columns.reshape(-1, len(widths), geometry.head_dim).swapaxes(0, 1).reshape(-1)
    if row.interleaved:
        turned = sum(width for part, width in widths.items() if part != "v")
        columns[:turned] = half_split(geometry).of_whole_heads(columns[:turned])
    found: list[int] = columns.tolist()
    return found


def mixer_of(geometry: Geometry) -> str:
    """Return the path, within a layer, of the module that mixes tokens where there is no attention."""
    role = "scan_o" if "scan_o" in family_of(geometry).weights else "conv_o"
    return module_of(geometry, role).rpartition(".")[0]


def mixture_of(geometry: Geometry) -> str:
    """Return the path, within a layer, of the module of a mixture of experts."""
    return module_of(geometry, "router").rpartition(".")[0]


def feed_forward_of(geometry: Geometry) -> str:
    """Return the path, within a layer, of the module of a feed-forward block."""
    return module_of(geometry, "down").rpartition(".")[0]


def listed_columns(geometry: Geometry, role: str) -> list[int] | None:
    """Return which columns of a module's output are those of ``role``, where a family lists them."""
    rows = family_of(geometry).listed_rows.get(role)
    return None if rows is None else list(rows(geometry))


def _columns(geometry: Geometry, tap: Tap) -> slice | list[int] | None:
    """Return which columns of a module's output are those of a tap's role, ``None`` for all of them."""
    if tap.pick is not Pick.OUTPUT:
        return None
    if (listed := listed_columns(geometry, tap.module)) is not None:
        return listed
    role = tap.module
    for group in family_of(geometry).fused:
        if role in group:
            widths = {each: shape_of_role(each, geometry)[0] for each in group}
            start = sum(widths[each] for each in group[: group.index(role)])
            return slice(start, start + widths[role])
    return None


def _half_split_columns(geometry: Geometry, role: str) -> list[int] | None:
    """Return the order that makes rotary pairs of a module's output half-split, ``None`` where they are."""
    if not family_of(geometry).interleaved or role not in ROTATED_ROLES:
        return None
    columns = np.arange(shape_of_role(role, geometry)[0])
    found: list[int] = half_split(geometry, role).of_whole_heads(columns).tolist()
    return found


def seen_rotated(geometry: Geometry) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Return what makes half-split pairs of q or k as the attention function has them, and of k_rope."""
    width = geometry.rope.width(geometry.head_dim)
    kept = not family_of(geometry).interleaved or family_of(geometry).split_by_rotation
    shared = None if kept else half_split(geometry, "k_rope").of_whole_heads(np.arange(width)).tolist()

    def half_split_heads(values: Any) -> Any:
        order = None if kept else canonical_columns(geometry, {"q": values.shape[-1]})
        return values if order is None else values[:, order]

    def shared_part(values: Any) -> Any:  # the last channels of head 0
        found = values[:, geometry.head_dim - width : geometry.head_dim]
        return found if shared is None else found[:, shared]

    return half_split_heads, shared_part


def _cut(take: Take, columns: slice | list[int]) -> Take:
    return lambda args, output: take(args, output)[..., columns]


def _shaped(take: Take, stage: str) -> Take:
    """Put heads side by side where a module keeps them apart: a norm of q or of k."""
    if not STAGES[stage].inner or STAGES[stage].scope is not Scope.LAYER:
        return take

    def shaped(args: Any, output: Any) -> Any:
        values = take(args, output)
        return None if values is None else values.flatten(1)

    return shaped
