"""Faults of runs in passes seeded in a loaded torch model: in its cache, its masks, its positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from apr_falsify.oracle.libraries import torch

Patch = Callable[[ExitStack, Any, int, int], None]
"""Seeds a fault: what undoes it, the causal language model, the layer, the seed."""

_Later = Callable[[Any, dict[str, Any], int, int], None]
"""Changes what one layer's attention is called with in a pass after the first: the attention, its keyword
arguments, how many tokens are cached, the seed."""


def _of_layers(change: _Later, every: bool = False) -> Patch:
    def patch(undo: ExitStack, module: Any, layer: int, seed: int) -> None:
        rotary = module.model.rotary_emb
        for index, block in enumerate(module.model.layers):
            if every or index == layer:

                def hook(attention: Any, args: Any, kwargs: dict[str, Any]) -> Any:
                    cache = kwargs["past_key_values"]
                    cached = cache.get_seq_length(attention.layer_idx) if cache is not None else 0
                    if cached:
                        kwargs = {**kwargs, "rotary": rotary}
                        change(attention, kwargs, cached, seed)
                        del kwargs["rotary"]
                    return args, kwargs

                handle = block.self_attn.register_forward_pre_hook(hook, with_kwargs=True)
                undo.callback(handle.remove)

    return patch


def _moved(by: Callable[[int], int]) -> _Later:
    """Turn q and k of later passes further, by the angle sum of cos and sin."""

    def change(attention: Any, kwargs: dict[str, Any], cached: int, seed: int) -> None:
        cos, sin = kwargs["position_embeddings"]
        at = by(cached)
        c, s = kwargs["rotary"](cos, torch.tensor([[abs(at)]], device=cos.device))
        s = s if at > 0 else -s
        kwargs["position_embeddings"] = cos * c - sin * s, sin * c + cos * s

    return change


def _entries(part: str, change: Callable[[torch.Tensor, int], None]) -> _Later:
    """Change the cached ``keys`` or ``values`` [K, cached, D] of a layer, once."""

    def later(attention: Any, kwargs: dict[str, Any], cached: int, seed: int) -> None:
        layer = kwargs["past_key_values"].layers[attention.layer_idx]
        if not getattr(layer, f"spoiled_{part}", False):
            change(getattr(layer, part)[0], seed)
            setattr(layer, f"spoiled_{part}", True)

    return later


def _two(entries: torch.Tensor, seed: int) -> tuple[int, int]:
    count = entries.shape[1]
    first = seed % (count - 1)
    return first, first + 1 + seed % (count - 1 - first)


def _stale(entries: torch.Tensor, seed: int) -> None:
    one, other = _two(entries, seed)
    entries[:, other] = entries[:, one].clone()


def _exchanged(entries: torch.Tensor, seed: int) -> None:
    one, other = _two(entries, seed)
    entries[:, [one, other]] = entries[:, [other, one]].clone()


def _shifted(entries: torch.Tensor, seed: int) -> None:
    entries[:, 1:] = entries[:, :-1].clone()


def _evicted(entries: torch.Tensor, seed: int) -> None:
    entries[:, 0] = 0


def _foreign(entries: torch.Tensor, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    at, _ = _two(entries, seed)
    drawn = torch.randn(entries[:, at].shape, generator=generator)
    entries[:, at] = drawn.to(entries.dtype) * entries.std()


def _visible(sees: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]) -> _Later:
    """Let the tokens of later passes see other keys: given token [S, 1] and key [1, keys], both from 0."""

    def change(attention: Any, kwargs: dict[str, Any], cached: int, seed: int) -> None:
        states = kwargs["hidden_states"]
        count = states.shape[1]
        token = torch.arange(cached, cached + count)[:, None]
        key = torch.arange(cached + count)[None]
        hidden = ~sees(token, key, cached)
        mask = torch.zeros(1, 1, *hidden.shape, dtype=states.dtype)
        kwargs["attention_mask"] = mask.masked_fill(hidden, torch.finfo(states.dtype).min)

    return change


IN_PASSES: Mapping[str, Patch] = {
    "later-position-next": _of_layers(_moved(lambda cached: 1), every=True),
    "later-position-before": _of_layers(_moved(lambda cached: -1), every=True),
    "later-position-zero": _of_layers(_moved(lambda cached: -cached), every=True),
    "key-stale": _of_layers(_entries("keys", _stale)),
    "keys-exchanged": _of_layers(_entries("keys", _exchanged)),
    "keys-shifted": _of_layers(_entries("keys", _shifted)),
    "key-evicted": _of_layers(_entries("keys", _evicted)),
    "key-of-another-request": _of_layers(_entries("keys", _foreign)),
    "value-stale": _of_layers(_entries("values", _stale)),
    "values-exchanged": _of_layers(_entries("values", _exchanged)),
    "values-shifted": _of_layers(_entries("values", _shifted)),
    "value-evicted": _of_layers(_entries("values", _evicted)),
    "value-of-another-request": _of_layers(_entries("values", _foreign)),
    "chunk-mask-missing": _of_layers(_visible(lambda token, key, cached: key >= 0)),
    "chunk-mask-from-first-key": _of_layers(_visible(lambda token, key, cached: key <= token - cached)),
    "cache-not-read": _of_layers(_visible(lambda token, key, cached: (key >= cached) & (key <= token))),
    "step-hides-itself": _of_layers(_visible(lambda token, key, cached: key < token)),
    "first-cached-hidden": _of_layers(_visible(lambda token, key, cached: (key > 0) & (key <= token))),
    "cache-one-shorter": _of_layers(
        _visible(lambda token, key, cached: (key != cached - 1) & (key <= token))
    ),
}
"""Name of a fault in the catalogue -> how it is seeded here: without padding, in models without windows."""
