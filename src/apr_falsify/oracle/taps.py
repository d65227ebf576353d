"""Where transformers 5 computes each stage: one table.

A module is named by the role of its weight (``names.py``), which is the same in all families. The stages that
are not here pass through no module of their own: ``qkv_matmul`` and ``qkv_bias`` are put together from the
projections, the four attention sub-stages are seen by the attention function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from apr_falsify.formats.weights import ROLE_AXES
from apr_falsify.model.shape import Geometry
from apr_falsify.model.wiring import stages_of

Pick = Callable[[Any, Any], Any]
"""Takes a stage out of a module's positional arguments and its output."""


class Place(StrEnum):
    """A module of a layer that is not found by a weight."""

    LAYER = "layer"
    ACTIVATION = "activation"
    MIXTURE = "mixture"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """One stage and the module that has it.

    Attributes:
        stage: the stage.
        module: the role whose weight the module holds, or its place.
        pick: where in the module's arguments or output the stage is.
        where: in which layers it is there.

    """

    stage: str
    module: str
    pick: Pick
    where: Callable[[Geometry, int], bool] = lambda geometry, layer: True


def _input(args: Any, output: Any) -> Any:
    return args[0][0]


def _output(args: Any, output: Any) -> Any:
    return output[0]


def _last_row(args: Any, output: Any) -> Any:
    return output[0, -1]


def _post_normed(geometry: Geometry, layer: int) -> bool:
    return geometry.row.post_norms


def _plain(geometry: Geometry, layer: int) -> bool:
    return not geometry.row.post_norms


def _single(geometry: Geometry, layer: int) -> bool:
    return not geometry.row.post_norms and not geometry.is_mixture(layer)


TAPS: tuple[Tap, ...] = (
    Tap(stage="attn_norm", module="q", pick=_input),
    Tap(stage="attention", module="o", pick=_input),
    Tap(stage="attn_out", module="o", pick=_output, where=_plain),
    Tap(stage="attn_out", module="attn_post_norm", pick=_output, where=_post_normed),
    Tap(stage="post_attn_residual", module="ffn_norm", pick=_input),
    Tap(stage="ffn_norm", module="ffn_norm", pick=_output),
    Tap(stage="ffn_gate", module=Place.ACTIVATION, pick=_input),
    Tap(stage="ffn_silu", module=Place.ACTIVATION, pick=_output),
    Tap(stage="ffn_up", module="up", pick=_output),
    Tap(stage="ffn_swigl", module="down", pick=_input),
    Tap(stage="ffn_out", module="down", pick=_output, where=_single),
    Tap(stage="ffn_out", module="ffn_post_norm", pick=_output, where=_post_normed),
    Tap(stage="moe_router_indices", module="router", pick=lambda args, output: output[2][-1]),
    Tap(stage="moe_router", module="router", pick=lambda args, output: output[1][-1]),
    Tap(stage="moe_ffn_out", module=Place.MIXTURE, pick=_last_row),
    Tap(stage="ffn_out", module=Place.MIXTURE, pick=_output, where=Geometry.is_mixture),
    Tap(stage="post_ffn_residual", module=Place.LAYER, pick=_output),
)
"""Per layer, in the order in which they are computed; an input stands before its module's output.

A tensor that one module hands to the next is taken where a hook is needed anyway: each hook costs time.
"""


def taps_of(geometry: Geometry, layer: int) -> Iterator[tuple[str, str, Pick]]:
    """Give the taps of one layer: stage, module path within the layer (``""`` is itself), and pick."""
    present = stages_of(geometry, layer)
    for tap in TAPS:
        if tap.stage in present and tap.where(geometry, layer):
            columns = _columns(geometry, tap.module)
            yield (
                tap.stage,
                _path(geometry, tap.module),
                tap.pick if columns is None else _cut(tap.pick, columns),
            )


def _path(geometry: Geometry, module: str) -> str:
    paths: Mapping[str, Callable[[], str]] = {
        Place.LAYER: lambda: "",
        Place.ACTIVATION: lambda: geometry.row.activation_module,
        Place.MIXTURE: lambda: module_of(geometry, "router").rpartition(".")[0],
    }
    return paths.get(module, lambda: module_of(geometry, module))()


def module_of(geometry: Geometry, role: str) -> str:
    """Return the path of the module that holds the weight in ``role``, within its layer or the decoder."""
    path = geometry.row.weights[role].rpartition(".")[0]
    return path.partition("{n}.")[2] if "{n}" in path else path.removeprefix(f"{decoder_of(geometry)}.")


def decoder_of(geometry: Geometry) -> str:
    """Return the path of the decoder within the model with an output head."""
    return geometry.row.weights["embed"].partition(".")[0]


def layer_of(geometry: Geometry, layer: int) -> str:
    """Return the path of a layer within the decoder."""
    path = geometry.row.weights["attn_norm"].partition("{n}")[0]
    return f"{path.removeprefix(f'{decoder_of(geometry)}.')}{layer}"


def attention_of(geometry: Geometry) -> str:
    """Return the path, within a layer, of the module that calls the attention function."""
    return module_of(geometry, "o").rpartition(".")[0]


def qkv_modules(geometry: Geometry) -> tuple[str, ...]:
    """Return the projections whose outputs, side by side, are q, k and v: three, or one."""
    return tuple(dict.fromkeys(module_of(geometry, role) for role in "qkv"))


def _columns(geometry: Geometry, role: str) -> slice | None:
    """Return which columns of a module's output are those of ``role``, ``None`` for all of them."""
    for group in geometry.row.fused:
        if role in group and role != group[0]:
            dims = geometry.dims(tokens=1)
            widths = {each: dims[ROLE_AXES[each][0]] for each in group}
            start = sum(widths[each] for each in group[: group.index(role)])
            return slice(start, start + widths[role])
    return None


def _cut(pick: Pick, columns: slice) -> Pick:
    return lambda args, output: pick(args, output)[..., columns]
