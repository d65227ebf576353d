"""A probe on one loaded model: hooks and an attention function that hand out stages as they are computed.

Everything is per instance and undone on exit. Nothing computes differently: the attention function does
what transformers' own eager one does, in its order and precision, and the hooks return nothing.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from apr_falsify.oracle.libraries import torch
from apr_falsify.oracle.taps import ATTENTION_MODULE, LAYER_TAPS, QKV_MODULES, End, Tap
from apr_falsify.stages import ATTENTION_SUBSTAGES
from apr_falsify.trace import Key

Emit = Callable[[Key, torch.Tensor], None]
"""Takes a stage in its canonical shape; the tensor may be a view of one that nobody changes any more."""

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
    with ExitStack() as undo:
        for layer in sorted({layer for layer, _ in wanted if layer is not None}):
            names = {name for owner, name in wanted if owner == layer}
            block = decoder.get_submodule(f"layers.{layer}")
            _hook_modules(undo, block, layer, names, emit)
            _hook_projections(undo, block, layer, names, emit)
            _replace_attention(undo, block, layer, names, emit)
        _hook_ends(undo, module, decoder, wanted, emit)
        yield


def _hook(undo: ExitStack, module: torch.nn.Module, hook: Callable[..., None]) -> None:
    undo.callback(module.register_forward_hook(hook).remove)


def _hook_modules(
    undo: ExitStack, block: torch.nn.Module, layer: int, names: Collection[str], emit: Emit
) -> None:
    def see(taps: tuple[Tap, ...], module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        for tap in taps:
            emit((layer, tap.stage), args[0][0] if tap.end is End.INPUT else output[0])

    taps = [tap for tap in LAYER_TAPS if tap.stage in names]
    for path in dict.fromkeys(tap.module for tap in taps):
        here = tuple(tap for tap in taps if tap.module == path)
        _hook(undo, block.get_submodule(path), partial(see, here))


def _hook_projections(
    undo: ExitStack, block: torch.nn.Module, layer: int, names: Collection[str], emit: Emit
) -> None:
    biased = block.get_submodule(QKV_MODULES[0]).bias is not None
    plain_name, biased_name = "qkv_matmul", "qkv_bias"
    parts: dict[str, list[torch.Tensor]] = {plain_name: [], biased_name: []}

    def see(module: Any, args: tuple[Any, ...], output: torch.Tensor) -> None:
        if plain_name in names:
            # Output minus bias would lose the digits that a large bias has already cost.
            plain = torch.nn.functional.linear(args[0], module.weight) if biased else output
            parts[plain_name].append(plain[0])
        if biased_name in names:
            parts[biased_name].append(output[0])
        for name, three in parts.items():
            if len(three) == len(QKV_MODULES):
                emit((layer, name), torch.cat(three, dim=-1))
                three.clear()

    if names & parts.keys():
        for path in QKV_MODULES:
            _hook(undo, block.get_submodule(path), see)


def _hook_ends(
    undo: ExitStack, module: torch.nn.Module, decoder: torch.nn.Module, wanted: Collection[Key], emit: Emit
) -> None:
    def see(key: Key, owner: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        # A row of the logits would keep all of them in memory.
        emit(key, output[0, -1].clone() if key[1] == "lm_head" else output[0])

    places: dict[Key, Callable[[], torch.nn.Module]] = {
        (0, "embedding"): lambda: decoder.get_submodule("embed_tokens"),
        (None, "final_norm"): lambda: decoder.get_submodule("norm"),
        (None, "lm_head"): lambda: module.get_submodule("lm_head"),
    }
    for key, place in places.items():
        if key in wanted:
            _hook(undo, place(), partial(see, key))


def _replace_attention(
    undo: ExitStack, block: torch.nn.Module, layer: int, names: Collection[str], emit: Emit
) -> None:
    seen = {name for name in ATTENTION_SUBSTAGES if name in names}
    if not seen:
        return

    def see(name: str, values: torch.Tensor) -> None:
        if name in seen:
            emit((layer, name), values)

    attention: Any = block.get_submodule(ATTENTION_MODULE)
    own = f"apr_falsify_{next(_numbers)}"
    ALL_ATTENTION_FUNCTIONS[own] = partial(_eager, see)
    undo.callback(ALL_ATTENTION_FUNCTIONS.__delitem__, own)
    # The layer's own copy: the shared config also decides which mask the whole model builds.
    original = attention.config
    undo.callback(setattr, attention, "config", original)
    attention.config = copy.copy(original)
    attention.config._attn_implementation = own


def _eager(
    see: Callable[[str, torch.Tensor], None],
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what transformers' ``eager_attention_forward`` does: q (1,H,S,D), k and v (1,K,S,D) after RoPE."""
    see("q_post_rope", _token_major(query))
    see("k_post_rope", _token_major(key))
    groups = module.num_key_value_groups
    scores = torch.matmul(query, _repeat_kv(key, groups).transpose(2, 3)) * scaling
    see("attn_scores", scores[0])
    if mask is not None:
        scores = scores + mask
    weights = torch.nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    see("attn_softmax", weights[0])
    mixed = torch.matmul(weights, _repeat_kv(value, groups))
    return mixed.transpose(1, 2).contiguous(), weights


def _token_major(heads: torch.Tensor) -> torch.Tensor:
    return heads[0].transpose(0, 1).flatten(1)


def _repeat_kv(heads: torch.Tensor, groups: int) -> torch.Tensor:
    batch, kv_heads, tokens, head_dim = heads.shape
    if groups == 1:
        return heads
    spread = heads[:, :, None].expand(batch, kv_heads, groups, tokens, head_dim)
    return spread.reshape(batch, kv_heads * groups, tokens, head_dim)
