"""A probe on one loaded model: hooks and an attention function that hand out stages as they are computed.

Everything is per instance and undone on exit. Nothing computes differently: the attention function does
what transformers' own eager one does, in its order and precision, and the hooks return nothing.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from apr_falsify.oracle.libraries import attention_functions, torch
from apr_falsify.oracle.taps import ATTENTION_MODULE, LAYER_TAPS, QKV_MODULES, End, Tap
from apr_falsify.stages import ATTENTION_SUBSTAGES
from apr_falsify.trace import Key

Emit = Callable[[Key, torch.Tensor], None]
"""Takes a stage in its canonical shape; the tensor may be a view of one that nobody changes any more."""

_Hook = Callable[..., None]
_numbers = itertools.count()


@contextmanager
def probed(module: torch.nn.Module, wanted: Collection[Key], emit: Emit) -> Iterator[None]:
    """Hand every stage in ``wanted`` to ``emit`` while the block runs ``module`` on one sequence.

    Args:
        module: a decoder of transformers, with or without its output head, in eager attention.
        wanted: the stages; layers of which nothing is wanted are not touched.
        emit: called within the forward pass; what it raises ends the pass.

    """
    decoder = module.get_submodule("model") if hasattr(module, "lm_head") else module
    names: dict[int, set[str]] = {}
    for layer, name in wanted:
        if layer is not None:
            names.setdefault(layer, set()).add(name)
    with ExitStack() as undo:
        for layer, here in names.items():
            modules = dict(decoder.get_submodule(f"layers.{layer}").named_modules())
            for path, hook in _layer_hooks(layer, here, emit):
                _add_hook(undo, modules[path], hook)
        for place, hook in _end_hooks(module, decoder, wanted, emit):
            _add_hook(undo, place, hook)
        _replace_attention(undo, decoder, names, emit)
        yield


def _add_hook(undo: ExitStack, module: torch.nn.Module, hook: _Hook) -> None:
    undo.callback(module.register_forward_hook(hook).remove)


def _layer_hooks(layer: int, names: Collection[str], emit: Emit) -> Iterator[tuple[str, _Hook]]:
    """Give the hooks of one layer, by the path of their module; a module's inputs go before its outputs."""
    taps: dict[str, list[Tap]] = {}
    for tap in LAYER_TAPS:
        if tap.stage in names:
            taps.setdefault(tap.module, []).append(tap)
    for path, here in taps.items():
        stages = tuple(((layer, tap.stage), tap.end is End.INPUT) for tap in here)
        yield path, partial(_see_ends, emit, stages)
    if not {"qkv_matmul", "qkv_bias"}.isdisjoint(names):
        projections = _Projections(layer, names, emit)
        for path in QKV_MODULES:
            yield path, projections.see


def _see_ends(
    emit: Emit,
    stages: tuple[tuple[Key, bool], ...],
    module: torch.nn.Module,
    args: tuple[torch.Tensor, ...],
    output: torch.Tensor,
) -> None:
    for key, is_input in stages:
        emit(key, (args[0] if is_input else output)[0])


class _Projections:
    """Puts q, k and v of one layer together, without their biases and with them."""

    def __init__(self, layer: int, names: Collection[str], emit: Emit) -> None:
        self._emit = emit
        self._parts: dict[Key, list[torch.Tensor]] = {
            (layer, name): [] for name in ("qkv_matmul", "qkv_bias") if name in names
        }

    def see(self, module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        for key, parts in self._parts.items():
            parts.append(_without_bias(module, args[0], output) if key[1] == "qkv_matmul" else output)
            if len(parts) == len(QKV_MODULES):
                self._emit(key, torch.cat(parts, dim=-1)[0])
                parts.clear()


def _without_bias(module: Any, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    if module.bias is None:
        return output
    # Output minus bias would lose the digits that a large bias has already cost.
    return torch.nn.functional.linear(x, module.weight)


def _end_hooks(
    module: torch.nn.Module, decoder: torch.nn.Module, wanted: Collection[Key], emit: Emit
) -> Iterator[tuple[torch.nn.Module, _Hook]]:
    """Give the hooks before the first layer and after the last one."""
    places: Mapping[Key, tuple[torch.nn.Module, str]] = {
        (0, "embedding"): (decoder, "embed_tokens"),
        (None, "final_norm"): (decoder, "norm"),
        (None, "lm_head"): (module, "lm_head"),
    }
    for key, (owner, path) in places.items():
        if key in wanted:
            see = _see_last_row if key == (None, "lm_head") else _see_rows
            yield owner.get_submodule(path), partial(see, emit, key)


def _see_rows(emit: Emit, key: Key, module: Any, args: Any, output: torch.Tensor) -> None:
    emit(key, output[0])


def _see_last_row(emit: Emit, key: Key, module: Any, args: Any, output: torch.Tensor) -> None:
    emit(key, output[0, -1].clone())  # a view would keep the logits of every token in memory


def _replace_attention(
    undo: ExitStack, decoder: torch.nn.Module, names: Mapping[int, Collection[str]], emit: Emit
) -> None:
    """Give the layers of which a sub-stage is wanted a config of their own that names an own function.

    The config that the model shares stays as it is: it also decides which mask the whole model builds.
    """
    wanted = {(layer, name) for layer in names for name in ATTENTION_SUBSTAGES if name in names[layer]}
    own = f"apr_falsify_{next(_numbers)}"
    copies: dict[int, Any] = {}
    for layer in dict.fromkeys(layer for layer, _ in wanted):
        attention: Any = decoder.get_submodule(f"layers.{layer}.{ATTENTION_MODULE}")
        original = attention.config
        if id(original) not in copies:
            copies[id(original)] = copy.copy(original)
            copies[id(original)]._attn_implementation = own
        undo.callback(setattr, attention, "config", original)
        attention.config = copies[id(original)]
    if wanted:
        attention_functions[own] = partial(_eager, frozenset(wanted), emit)
        undo.callback(attention_functions.__delitem__, own)


def _eager(
    wanted: frozenset[Key],
    emit: Emit,
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what transformers' ``eager_attention_forward`` does: q (1,H,S,D), k and v (1,K,S,D) after RoPE."""

    def see(name: str, values: torch.Tensor) -> None:
        if (module.layer_idx, name) in wanted:
            emit((module.layer_idx, name), values[0])

    groups = module.num_key_value_groups
    see("q_post_rope", query.transpose(1, 2).flatten(2))
    see("k_post_rope", key.transpose(1, 2).flatten(2))
    scores = torch.matmul(query, _repeat_kv(key, groups).transpose(2, 3)) * scaling
    see("attn_scores", scores)
    masked = scores if mask is None else scores + mask
    weights = torch.nn.functional.softmax(masked, dim=-1, dtype=torch.float32).to(query.dtype)
    see("attn_softmax", weights)
    mixed = torch.matmul(weights, _repeat_kv(value, groups))
    return mixed.transpose(1, 2).contiguous(), weights


def _repeat_kv(heads: torch.Tensor, groups: int) -> torch.Tensor:
    batch, kv_heads, tokens, head_dim = heads.shape
    if groups == 1:
        return heads
    spread = heads[:, :, None].expand(batch, kv_heads, groups, tokens, head_dim)
    return spread.reshape(batch, kv_heads * groups, tokens, head_dim)
