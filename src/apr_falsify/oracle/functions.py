"""What functions show that a module calls by name, where no module has it: short convolutions and scans.

A layer's module gets a forward of its own, the very code of its class, in which those names are functions
that hand on what they are given and return. The class, and every other instance, stay as they are.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from importlib.util import find_spec
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


def _of_state_space(args: Any, kwargs: Mapping[str, Any], output: Any) -> _Shown:
    whole = output[0] if isinstance(output, tuple) else output  # beside it the states, for a cache
    yield "scan_out", whole[0].flatten(1) if whole.ndim == 4 else whole[:1].flatten(1)


def _of_chunk_step(args: Any, kwargs: Mapping[str, Any], output: Any) -> _Shown:
    yield "dt", output[0]


def _of_chunk(args: Any, kwargs: Mapping[str, Any], output: Any) -> _Shown:
    if args[0].ndim == 3:  # of x, the decays, B and C the one that has no channels
        yield "decay", args[0][0]


def _of_token_step(args: Any, kwargs: Mapping[str, Any], output: Any) -> _Shown:
    yield "dt", output[:1, :, 0]


def _of_token(args: Any, kwargs: Mapping[str, Any], output: Any) -> _Shown:
    yield "decay", args[0][:1, :, 0, 0]


def _of_activation(args: Any, kwargs: Mapping[str, Any], output: Any) -> _Shown:
    yield "ffn_silu", output[0]


_SHOW: Mapping[str, Callable[[Any, Mapping[str, Any], Any], _Shown]] = {
    **dict.fromkeys(("causal_conv1d_fn", "causal_conv1d_update"), _of_convolution),
    "F.silu": _of_activation,
    **dict.fromkeys(("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"), _of_scan),
    **dict.fromkeys(("mamba2_chunk_scan", "mamba2_selective_state_update"), _of_state_space),
}
"""Name of a function in transformers -> the stages that it shows; convolutions with tokens before a pass."""

_INNER: Mapping[str, Mapping[str, Callable[[Any, Mapping[str, Any], Any], _Shown]]] = {
    "mamba2_chunk_scan": {"torch.clamp": _of_chunk_step, "reshape_into_chunks": _of_chunk},
    "mamba2_selective_state_update": {"F.softplus": _of_token_step, "torch.exp": _of_token},
}
"""Name of a function in transformers -> what it calls that shows stages, where no kernel stands for it."""

_KERNELS = "mamba_ssm"
"""The package whose kernels transformers takes for these where it is installed: they show nothing."""


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
    plain = _unwrapped(type(module).forward)

    def seen(function: Callable[..., Any], show: Callable[..., _Shown]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            output = function(*args, **kwargs)
            for stage, values in show(args, kwargs, output):
                if stage in shown:
                    emit(Key(layer, stage), values)
            return output

        return called

    shows = {name: show for name, show in _SHOW.items() if name != "F.silu" or "ffn_silu" in shown}
    within = {}
    if not {"dt", "decay"}.isdisjoint(shown) and find_spec(_KERNELS) is None:
        for name in _INNER.keys() & plain.__globals__.keys():
            within[name] = _twin(_unwrapped(plain.__globals__[name]), _INNER[name], seen)
    module.forward = types.MethodType(_twin(plain, shows, seen, within), module)
    undo.callback(delattr, module, "forward")


def _unwrapped(function: Any) -> Any:
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def _twin(
    plain: Any,
    shows: Mapping[str, Callable[..., _Shown]],
    seen: Callable[..., Callable[..., Any]],
    within: Mapping[str, Callable[..., Any]] | None = None,
) -> Callable[..., Any]:
    """Return the very code of ``plain`` in which some names are functions that are seen.

    Args:
        plain: a function.
        shows: name of what it calls, alone or in a module -> what that shows.
        seen: makes the function that hands on what it is given and returns.
        within: functions to see in place of those that ``plain`` knows by these names.

    """
    known: dict[str, Any] = {}
    for name, show in shows.items():
        owner, _, own = name.rpartition(".")
        if not owner and name in plain.__globals__:
            known[name] = seen((within or {}).get(name, plain.__globals__[name]), show)
        elif owner in plain.__globals__:
            module = plain.__globals__[owner]
            known[owner] = types.SimpleNamespace(**{**vars(module), own: seen(getattr(module, own), show)})
    twin = types.FunctionType(
        plain.__code__, {**plain.__globals__, **known}, plain.__name__, plain.__defaults__, plain.__closure__
    )
    twin.__kwdefaults__ = plain.__kwdefaults__
    return twin
