"""Faults seeded in a loaded torch model, each undone on exit: for the suite's own exam.

Nothing here knows how a stage is replayed: hooks change what modules pass on, other modules and tensors are
put in the place of sound ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.oracle.faulted_passes import IN_PASSES, Patch
from apr_falsify.oracle.libraries import torch

_Change = Callable[[torch.Tensor, int], torch.Tensor]
_Tables = tuple[torch.Tensor, torch.Tensor]


@contextmanager
def faulted(
    module: torch.nn.Module,
    *,
    tensors: Mapping[str, npt.NDArray[np.float32]],
    patches: tuple[tuple[str, int, int], ...] = (),
) -> Iterator[None]:
    """Let ``module`` be faulty while the block runs.

    Args:
        module: a causal language model of transformers.
        tensors: name of a parameter -> what it shall hold.
        patches: names in :data:`PATCHES`, with layer and seed.

    """
    with ExitStack() as undo:
        for name, values in tensors.items():
            _replace_tensor(undo, module, name, values)
        for name, layer, seed in patches:
            PATCHES[name](undo, module, layer, seed)
        yield


def _replace_tensor(undo: ExitStack, module: Any, name: str, values: npt.NDArray[np.float32]) -> None:
    parameter = module.get_parameter(name)
    sound = parameter.detach().clone()
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.array(values)))
    undo.callback(_restore, parameter, sound)


def _restore(parameter: torch.Tensor, sound: torch.Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(sound)


def _output(path: str, change: _Change) -> Patch:
    """Change what the module at ``path`` puts out."""

    def patch(undo: ExitStack, module: Any, layer: int, seed: int) -> None:
        def hook(_: Any, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (change(output[0], seed), *output[1:])
            return change(output, seed)

        undo.callback(_at(module, path, layer).register_forward_hook(hook).remove)

    return patch


def _input(path: str, change: _Change) -> Patch:
    """Change what enters the module at ``path``."""

    def patch(undo: ExitStack, module: Any, layer: int, seed: int) -> None:
        def hook(_: Any, args: Any) -> Any:
            return (change(args[0], seed), *args[1:])

        undo.callback(_at(module, path, layer).register_forward_pre_hook(hook).remove)

    return patch


def _at(module: Any, path: str, layer: int) -> Any:
    return module.get_submodule(path.format(n=layer))


_LAYER = "model.layers.{n}"
_ATTENTION = _LAYER + ".self_attn"


def _skipped(path: str) -> Patch:
    """Let the module at ``path`` hand on what enters it."""

    def patch(undo: ExitStack, module: Any, layer: int, seed: int) -> None:
        undo.callback(_at(module, path, layer).register_forward_hook(lambda _, args, output: args[0]).remove)

    return patch


def _argument(name: str, change: Callable[[Any, Any], Any]) -> Patch:
    """Change a keyword argument of one layer's attention, given it and the attention module."""

    def patch(undo: ExitStack, module: Any, layer: int, seed: int) -> None:
        def hook(attention: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            return args, {**kwargs, name: change(kwargs[name], attention)}

        attention = _at(module, _ATTENTION, layer)
        undo.callback(attention.register_forward_pre_hook(hook, with_kwargs=True).remove)

    return patch


def _scaling(change: Callable[[Any], float]) -> Patch:
    """Give one layer's attention another scaling."""

    def patch(undo: ExitStack, module: Any, layer: int, seed: int) -> None:
        attention = _at(module, _ATTENTION, layer)
        undo.callback(setattr, attention, "scaling", attention.scaling)
        attention.scaling = change(attention)

    return patch


def _activation(function: Callable[[torch.Tensor], torch.Tensor], every: bool) -> Patch:
    """Use another activation, in one layer or in all."""

    class Other(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(x)

    def patch(undo: ExitStack, module: Any, layer: int, seed: int) -> None:
        for index, block in enumerate(module.model.layers):
            if every or index == layer:
                undo.callback(setattr, block.mlp, "act_fn", block.mlp.act_fn)
                block.mlp.act_fn = Other()

    return patch


def _without_stream(undo: ExitStack, module: Any, layer: int, seed: int) -> None:
    """Leave the stream out after attention: what is added to it is made smaller by just that."""
    block = _at(module, _LAYER, layer)
    entered: list[torch.Tensor] = []

    def enter(_: Any, args: Any) -> None:
        entered[:] = [args[0]]

    def leave(_: Any, args: Any, output: Any) -> Any:
        return (output[0] - entered[0], *output[1:])

    undo.callback(block.register_forward_pre_hook(enter).remove)
    undo.callback(block.self_attn.register_forward_hook(leave).remove)


def _only(path: str) -> Patch:
    """Let the layer put out what the module at ``path`` made: nothing is added to it."""

    def patch(undo: ExitStack, module: Any, layer: int, seed: int) -> None:
        made: list[torch.Tensor] = []

        def keep(_: Any, args: Any, output: Any) -> None:
            made[:] = [output]

        undo.callback(_at(module, path, layer).register_forward_hook(keep).remove)
        block = _at(module, _LAYER, layer)
        undo.callback(block.register_forward_hook(lambda *_: made[0]).remove)

    return patch


def _factor_on_channel(factor: float) -> _Change:
    def change(x: torch.Tensor, seed: int) -> torch.Tensor:
        sizes = x[0].abs().amax(dim=0)
        ordinary = torch.nonzero(sizes >= sizes.median())[:, 0]
        turned = x.clone()
        turned[..., ordinary[seed % len(ordinary)]] *= factor
        return turned

    return change


def _factor_on_block(factor: float, width: int) -> _Change:
    def change(x: torch.Tensor, seed: int) -> torch.Tensor:
        turned = x.clone()
        start = width * (seed % (x.shape[-1] // width))
        turned[..., start : start + width] *= factor
        return turned

    return change


def _one_token(x: torch.Tensor, seed: int) -> torch.Tensor:
    token = 1 + seed % (x.shape[1] - 1)
    turned = x.clone()
    turned[:, token] = x[:, token - 1]
    return turned


def _one_head(undo: ExitStack, module: Any, layer: int, seed: int) -> None:
    width = _at(module, _ATTENTION, layer).head_dim
    _input(_ATTENTION + ".o_proj", _factor_on_block(0.97, width))(undo, module, layer, seed)


def _not_transposed(undo: ExitStack, module: Any, layer: int, seed: int) -> None:
    width = _at(module, _ATTENTION, layer).head_dim

    def change(x: torch.Tensor, _: int) -> torch.Tensor:
        return x.reshape(*x.shape[:-1], -1, width).transpose(1, 2).reshape(x.shape)

    _input(_ATTENTION + ".o_proj", change)(undo, module, layer, seed)


def _rotated_by(positions: float) -> Callable[[_Tables, Any], _Tables]:
    """Turn by ``positions`` more, by the angle sum of cos and sin one position apart."""

    def change(tables: _Tables, attention: Any) -> _Tables:
        cos, sin = tables
        at = int(positions)
        c, s = cos[:, at : at + 1], sin[:, at : at + 1]
        return cos * c - sin * s, sin * c + cos * s

    return change


def _ahead(keys: int) -> Callable[[torch.Tensor | None, Any], torch.Tensor]:
    """Return a mask by which tokens see ``keys`` keys ahead of themselves."""

    def change(mask: torch.Tensor | None, attention: Any) -> torch.Tensor:
        assert mask is not None
        tokens = mask.shape[-1]
        blocked = torch.ones(tokens, tokens, dtype=torch.bool).triu(keys + 1)
        return torch.zeros_like(mask).masked_fill(blocked, torch.finfo(mask.dtype).min)

    return change


PATCHES: Mapping[str, Patch] = {
    **IN_PASSES,
    "embedding-scaled": _output("model.embed_tokens", lambda x, _: x * x.shape[-1] ** 0.5),
    "embedding-one-token": _output("model.embed_tokens", _one_token),
    "attn-norm-scaled": _output(_LAYER + ".input_layernorm", lambda x, _: x * 1.01),
    "attn-norm-one-channel": _output(_LAYER + ".input_layernorm", _factor_on_channel(1.01)),
    "ffn-norm-skipped": _skipped(_LAYER + ".post_attention_layernorm"),
    "final-norm-skipped": _skipped("model.norm"),
    "rope-from-one": _argument("position_embeddings", _rotated_by(1)),
    "rope-skipped": _argument(
        "position_embeddings", lambda tables, _: (torch.ones_like(tables[0]), torch.zeros_like(tables[1]))
    ),
    "rope-backwards": _argument("position_embeddings", lambda tables, _: (tables[0], -tables[1])),
    "rope-narrow": _argument(
        "position_embeddings",
        lambda tables, _: tuple(table.bfloat16().to(table.dtype) for table in tables),
    ),
    "q-norm-skipped": _skipped(_ATTENTION + ".q_norm"),
    "k-norm-skipped": _skipped(_ATTENTION + ".k_norm"),
    "scores-unscaled": _scaling(lambda attention: 1.0),
    "scores-scaled-twice": _scaling(lambda attention: attention.scaling**2),
    "scores-by-hidden": _scaling(lambda attention: attention.config.hidden_size**-0.5),
    "mask-missing": _argument("attention_mask", _ahead(1 << 20)),
    "mask-one-ahead": _argument("attention_mask", _ahead(1)),
    "attention-one-head": _one_head,
    "heads-not-transposed": _not_transposed,
    "attention-one-token": _input(_ATTENTION + ".o_proj", _one_token),
    "o-one-channel": _output(_ATTENTION + ".o_proj", _factor_on_channel(1.01)),
    "o-doubled": _output(_ATTENTION + ".o_proj", lambda x, _: x * 2),
    "attention-residual-omitted": _without_stream,
    "gelu-for-silu": _activation(lambda x: torch.nn.functional.gelu(x, approximate="tanh"), every=True),
    "relu-for-silu": _activation(torch.relu, every=True),
    "hard-silu": _activation(torch.nn.functional.hardswish, every=False),
    "activation-skipped": _activation(lambda x: x.clone(), every=False),
    "swiglu-one-token": _input(_LAYER + ".mlp.down_proj", _one_token),
    "down-one-channel": _output(_LAYER + ".mlp.down_proj", _factor_on_channel(1.01)),
    "down-halved": _output(_LAYER + ".mlp.down_proj", lambda x, _: x * 0.5),
    "ffn-residual-omitted": _only(_LAYER + ".mlp"),
    "layer-one-channel": _output(_LAYER, _factor_on_channel(1.01)),
    "head-scaled": _output("lm_head", lambda x, _: x * 0.25),
    "head-soft-capped": _output("lm_head", lambda x, _: torch.tanh(x / 30) * 30),
}
"""Name of a fault in the catalogue -> how it is seeded here."""
