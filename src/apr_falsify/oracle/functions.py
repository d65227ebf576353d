"""What functions show that a module calls by name, where no module has it: short convolutions and scans.

A layer's module gets a forward of its own, the very code of its class, in which those names are functions
that hand on what they are given and return. The class, and every other instance, stay as they are.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

from apr_falsify.model.families import graph_of
from apr_falsify.model.graph import ModulePlace
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import Key
from apr_falsify.oracle.libraries import torch
from apr_falsify.oracle.taps import feed_forward_of, layer_of, mixer_of

Emit = Callable[[Key, torch.Tensor], None]
_Shown = Iterator[tuple[str, torch.Tensor]]


def _of_convolution(args: Any, kwargs: Mapping[str, Any], output: Any) -> _Shown:
    yield "conv_in", args[0][0].T
    yield "conv_out", output[0].T


def _of_scan(args: Any, kwargs: Mapping[str, Any], output: Any) -> _Shown:
    yield "decay", kwargs["g"][0]
    yield "beta", kwargs["beta"][0]
    yield "scan_out", output[0][0].flatten(1)


def _of_activation(args: Any, kwargs: Mapping[str, Any], output: Any) -> _Shown:
    yield "ffn_silu", output[0]


_SHOW: Mapping[str, Callable[[Any, Mapping[str, Any], Any], _Shown]] = {
    **dict.fromkeys(("causal_conv1d_fn", "causal_conv1d_update"), _of_convolution),
    "F.silu": _of_activation,
    **dict.fromkeys(("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"), _of_scan),
}
"""Name of a function in transformers -> the stages that it shows; convolutions with tokens before a pass."""


def show_functions(
    undo: ExitStack,
    decoder: torch.nn.Module,
    geometry: Geometry,
    names: Mapping[int, Collection[str]],
    emit: Emit,
) -> None:
    """Hand on the wanted stages that functions show, layer by layer."""
    for layer, wanted in names.items():
        shown = {
            name
            for name, node in graph_of(geometry).at(layer).items()
            if name in wanted and node.tap is not None and node.tap.module == ModulePlace.FUNCTION
        }
        places: dict[str, set[str]] = {}
        for name in shown:
            place = feed_forward_of(geometry) if name.startswith("ffn") else mixer_of(geometry)
            places.setdefault(place, set()).add(name)
        for place, stages in places.items():
            module = decoder.get_submodule(f"{layer_of(geometry, layer)}.{place}")
            _replace_forward(undo, module, layer, stages, emit)


def _replace_forward(undo: ExitStack, module: Any, layer: int, shown: Collection[str], emit: Emit) -> None:
    plain = type(module).forward
    while hasattr(plain, "__wrapped__"):
        plain = plain.__wrapped__

    def seen(name: str) -> Callable[..., Any]:
        owner, _, own = name.rpartition(".")
        function = getattr(plain.__globals__[owner], own) if owner else plain.__globals__[name]

        def called(*args: Any, **kwargs: Any) -> Any:
            output = function(*args, **kwargs)
            for stage, values in _SHOW[name](args, kwargs, output):
                if stage in shown:
                    emit(Key(layer, stage), values)
            return output

        return called

    known: dict[str, Any] = {name: seen(name) for name in _SHOW if name in plain.__globals__}
    if "ffn_silu" in shown:
        functional = plain.__globals__["F"]
        known["F"] = types.SimpleNamespace(**{**vars(functional), "silu": seen("F.silu")})
    twin = types.FunctionType(
        plain.__code__,
        {**plain.__globals__, **known},
        plain.__name__,
        plain.__defaults__,
        plain.__closure__,
    )
    twin.__kwdefaults__ = plain.__kwdefaults__
    module.forward = types.MethodType(twin, module)
    undo.callback(delattr, module, "forward")
