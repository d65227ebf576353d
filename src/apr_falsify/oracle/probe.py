"""A probe on one loaded model: hooks and an attention function that hand out stages as they are computed.

Everything is per instance and undone on exit. Nothing computes differently: the attention function does
what transformers' own eager one does, in its order and precision, and the hooks return nothing.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from apr_falsify.errors import FamilyError, nearest
from apr_falsify.model.families import family_of, place_of, shape_of_role
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import SEEN_BY_ATTENTION, Key
from apr_falsify.oracle.libraries import attention_functions, torch
from apr_falsify.oracle.taps import (
    Take,
    attention_of,
    canonical_columns,
    decoder_of,
    final_norm_of,
    layer_of,
    qkv_modules,
    seen_rotated,
    taps_of,
)

Emit = Callable[[Key, torch.Tensor], None]
"""Takes a stage in its canonical shape; the tensor may be a view of one that nobody changes any more."""

_Hook = Callable[..., None]
_numbers = itertools.count()


@contextmanager
def probed(
    module: torch.nn.Module, wanted: Collection[Key], emit: Emit, geometry: Geometry
) -> Iterator[None]:
    """Hand every stage in ``wanted`` to ``emit`` while the block runs ``module`` on one sequence.

    Args:
        module: a decoder of transformers, with or without its output head, in eager attention.
        wanted: the stages; layers of which nothing is wanted are not touched.
        emit: called within the forward pass; what it raises ends the pass.
        geometry: the model's geometry.

    """
    decoder = module.get_submodule(decoder_of(geometry)) if hasattr(module, "lm_head") else module
    names: dict[int, set[str]] = {}
    for layer, name in wanted:
        if layer is not None:
            names.setdefault(layer, set()).add(name)
    with ExitStack() as undo:
        for layer, here in names.items():
            modules = dict(decoder.get_submodule(layer_of(geometry, layer)).named_modules())
            for path, hook in _layer_hooks(geometry, layer, here, emit):
                if path not in modules:
                    raise _no_module(path, layer, modules, geometry)
                _add_hook(undo, modules[path], hook)
        for place, hook in _end_hooks(module, decoder, geometry, wanted, emit):
            _add_hook(undo, place, hook)
        _replace_attention(undo, decoder, geometry, names, emit)
        yield


def _no_module(path: str, layer: int, modules: Iterable[str], geometry: Geometry) -> FamilyError:
    seen = [stage for stage, place, _ in taps_of(geometry, layer) if place == path] or ["qkv_matmul"]
    return FamilyError(
        f"the node {seen[0]} is to be seen at {path}, which is no module of transformers' layer",
        where=place_of(geometry),
        expected="one of " + ", ".join(filter(None, modules)),
        remedy=nearest(path, modules),
    )


def _add_hook(undo: ExitStack, module: torch.nn.Module, hook: _Hook) -> None:
    undo.callback(module.register_forward_hook(hook).remove)


def _layer_hooks(
    geometry: Geometry, layer: int, names: Collection[str], emit: Emit
) -> Iterator[tuple[str, _Hook]]:
    """Give the hooks of one layer, by the path of their module; a module's inputs go before its outputs."""
    taps: dict[str, list[tuple[Key, Take]]] = {}
    parts: dict[Key, int] = {}
    for stage, path, pick in taps_of(geometry, layer):
        if stage in names:
            taps.setdefault(path, []).append((Key(layer, stage), pick))
            parts[Key(layer, stage)] = parts.get(Key(layer, stage), 0) + 1
    added = partial(_add_up, emit, {key: count for key, count in parts.items() if count > 1}, {})
    for path, here in taps.items():
        yield path, partial(_see, added if any(parts[key] > 1 for key, _ in here) else emit, tuple(here))
    if not {"qkv_matmul", "qkv_bias"}.isdisjoint(names):
        paths = qkv_modules(geometry)
        if geometry.kv_latent:
            heads = _LatentHeads(layer, emit, geometry)
            yield from zip(paths, (heads.see_q, heads.see_latent, heads.see_up), strict=True)
            return
        projections = _Projections(layer, names, emit, len(paths), geometry)
        for path in paths:
            yield path, projections.see


def _see(emit: Emit, stages: tuple[tuple[Key, Take], ...], module: Any, args: Any, output: Any) -> None:
    for key, pick in stages:
        emit(key, pick(args, output))


def _add_up(
    emit: Emit,
    parts: Mapping[Key, int],
    seen: dict[Key, list[torch.Tensor]],
    key: Key,
    values: torch.Tensor,
) -> None:
    """Hand a stage on; one that is the sum of several modules' outputs once all of them are there."""
    if key not in parts:
        emit(key, values)
        return
    here = seen.setdefault(key, [])
    here.append(values)
    if len(here) == parts[key]:
        emit(key, sum(here[1:], here[0]))
        here.clear()


class _Projections:
    """Puts q, k and v of one layer together, without their biases and with them."""

    def __init__(
        self, layer: int, names: Collection[str], emit: Emit, modules: int, geometry: Geometry
    ) -> None:
        self._emit = emit
        self._modules = modules
        self._transposed = "q" in family_of(geometry).transposed
        self._order = canonical_columns(geometry, {part: shape_of_role(part, geometry)[0] for part in "qkv"})
        self._parts: dict[Key, list[torch.Tensor]] = {
            Key(layer, name): [] for name in ("qkv_matmul", "qkv_bias") if name in names
        }

    def see(self, module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        for key, parts in self._parts.items():
            plain = key.stage == "qkv_matmul" and module.bias is not None
            parts.append(self._without_bias(module, args[0]) if plain else output)
            if len(parts) == self._modules:
                joined = (torch.cat(parts, dim=-1) if self._modules > 1 else parts[0])[0]
                self._emit(key, joined if self._order is None else joined[:, self._order])
                parts.clear()

    def _without_bias(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        # Output minus bias would lose the digits that a large bias has already cost.
        weight = module.weight.T if self._transposed else module.weight
        return torch.nn.functional.linear(x, weight)


class _LatentHeads:
    """Puts q, k and v of one layer together from the projections of latent attention, before RoPE."""

    def __init__(self, layer: int, emit: Emit, geometry: Geometry) -> None:
        self._key, self._emit, self._geometry = Key(layer, "qkv_matmul"), emit, geometry
        self._seen: list[torch.Tensor] = []

    def see_q(self, module: Any, args: Any, output: torch.Tensor) -> None:
        self._seen = [output[0]]

    def see_latent(self, module: Any, args: Any, output: torch.Tensor) -> None:
        self._seen.append(output[0, :, self._geometry.kv_latent :])

    def see_up(self, module: Any, args: Any, output: torch.Tensor) -> None:
        q, shared = self._seen
        geometry = self._geometry
        # A cache has earlier rows too.
        heads = output[0, 0, -len(q) :].reshape(len(q), geometry.kv_heads, -1)
        own, v = heads[..., : -geometry.value_dim], heads[..., -geometry.value_dim :]
        k = torch.cat((own, shared[:, None].expand(*own.shape[:-1], -1)), dim=-1)
        turned = torch.cat((q, k.flatten(1)), dim=-1)
        order = canonical_columns(geometry, {"qk": turned.shape[-1]})
        turned = turned if order is None else turned[:, order]
        self._emit(self._key, torch.cat((turned, v.flatten(1)), dim=-1))


def _end_hooks(
    module: torch.nn.Module,
    decoder: torch.nn.Module,
    geometry: Geometry,
    wanted: Collection[Key],
    emit: Emit,
) -> Iterator[tuple[torch.nn.Module, _Hook]]:
    """Give the hooks after the last layer; logits are the whole model's output."""
    places: Mapping[Key, tuple[torch.nn.Module, str, _Hook]] = {
        Key(None, "final_norm"): (decoder, final_norm_of(geometry), _see_rows),
        Key(None, "lm_head"): (module, "", _see_last_logits),
        Key(None, "lm_head_proj"): (module, "lm_head", _see_last_row),
    }
    for key, (owner, path, see) in places.items():
        if key in wanted:
            yield owner.get_submodule(path), partial(see, emit, key)


def _see_rows(emit: Emit, key: Key, module: Any, args: Any, output: torch.Tensor) -> None:
    emit(key, output[0])


def _see_last_row(emit: Emit, key: Key, module: Any, args: Any, output: torch.Tensor) -> None:
    emit(key, output[0, -1].clone())


def _see_last_logits(emit: Emit, key: Key, module: Any, args: Any, output: Any) -> None:
    emit(key, output.logits[0, -1].clone())  # a view would keep the logits of every token in memory


def _replace_attention(
    undo: ExitStack,
    decoder: torch.nn.Module,
    geometry: Geometry,
    names: Mapping[int, Collection[str]],
    emit: Emit,
) -> None:
    """Give the layers of which a sub-stage is wanted a config of their own that names an own function.

    The config that the model shares stays as it is: it also decides which mask the whole model builds.
    """
    wanted = {Key(layer, name) for layer in names for name in SEEN_BY_ATTENTION if name in names[layer]}
    own = f"apr_falsify_{next(_numbers)}"
    copies: dict[int, Any] = {}
    for layer in dict.fromkeys(key.layer for key in wanted if key.layer is not None):
        attention: Any = decoder.get_submodule(f"{layer_of(geometry, layer)}.{attention_of(geometry)}")
        original = attention.config
        if id(original) not in copies:
            copies[id(original)] = copy.copy(original)
            copies[id(original)]._attn_implementation = own
        undo.callback(setattr, attention, "config", original)
        attention.config = copies[id(original)]
    if wanted:
        attention_functions[own] = partial(
            _eager, frozenset(wanted), emit, family_of(geometry).softmax_upcast, seen_rotated(geometry)
        )
        undo.callback(attention_functions.__delitem__, own)


def _eager(
    wanted: frozenset[Key],
    emit: Emit,
    upcast: bool,
    rotated: Mapping[str, Callable[[torch.Tensor], torch.Tensor]],
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what transformers' ``eager_attention_forward`` does: q (1,H,S,D), k and v (1,K,S,D) after RoPE."""

    def see(name: str, values: torch.Tensor) -> None:
        if (module.layer_idx, name) in wanted:
            emit(Key(module.layer_idx, name), rotated.get(name, _as_it_is)(values[0]))

    groups = getattr(module, "num_key_value_groups", 1)
    see("q_post_rope", query.transpose(1, 2).flatten(2))
    for name in ("k_post_rope", "k_rope"):
        see(name, key.transpose(1, 2).flatten(2))
    scores = _scores(module, query, _repeat_kv(key, groups), scaling)
    if softcap is not None:
        see("attn_scores_uncapped", scores)
        scores = torch.tanh(scores / softcap) * softcap
    see("attn_scores", scores)
    masked = scores if mask is None else scores + mask
    wide = torch.float32 if upcast else None
    if s_aux is not None:  # gpt-oss: a sink per head, which is dropped once it has taken its weight
        sinks = s_aux.reshape(1, -1, 1, 1).expand(*masked.shape[:3], 1)
        masked = torch.cat((masked, sinks), dim=-1)
        masked = masked - masked.max(dim=-1, keepdim=True).values
    weights = torch.nn.functional.softmax(masked, dim=-1, dtype=wide).to(value.dtype)
    if s_aux is not None:
        weights = weights[..., :-1]
    see("attn_softmax", weights)
    mixed = torch.matmul(weights, _repeat_kv(value, groups))
    return mixed.transpose(1, 2).contiguous(), weights


def _as_it_is(values: torch.Tensor) -> torch.Tensor:
    return values


def _scores(module: Any, query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    if not getattr(module, "reorder_and_upcast_attn", False):
        return torch.matmul(query, key.transpose(2, 3)) * scaling
    # GPT-2's own way, which it takes only where the attention is called "eager".
    q, k = query.flatten(0, 1).float(), key.flatten(0, 1).transpose(-1, -2).float()
    empty = torch.empty(len(q), q.shape[1], k.shape[2], dtype=torch.float32, device=q.device)
    scores: torch.Tensor = torch.baddbmm(empty, q, k, beta=0, alpha=scaling)
    return scores.reshape(*query.shape[:3], -1)


def _repeat_kv(heads: torch.Tensor, groups: int) -> torch.Tensor:
    batch, kv_heads, tokens, head_dim = heads.shape
    if groups == 1:
        return heads
    spread = heads[:, :, None].expand(batch, kv_heads, groups, tokens, head_dim)
    return spread.reshape(batch, kv_heads * groups, tokens, head_dim)
