"""A HuggingFace model with just the layers that are needed, from safetensors or GGUF."""

from __future__ import annotations

import math
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from safetensors import safe_open

from apr_falsify.formats.quantised.grid import GridTensor
from apr_falsify.formats.tensors import PlainTensor, Tensor
from apr_falsify.formats.text_part import usual_name
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.families import family_of, roles_at
from apr_falsify.model.shape import EXPERT_ROLES, Geometry
from apr_falsify.oracle.config import hf_config
from apr_falsify.oracle.experts import put_readers, read_one_by_one, stand_ins
from apr_falsify.oracle.libraries import torch, transformers
from apr_falsify.oracle.taps import decoder_of, layer_of, mixture_of

_BLOCK_VALUES = 1 << 20
"""How many weights are decoded at once."""

Site = tuple[str, int | None]
"""A weight: its role of ``names.py`` and its layer."""


def load_module(
    model: Model,
    *,
    layers: int,
    head: bool,
    dtype: torch.dtype,
    device: torch.device,
    attention: str = "eager",
) -> torch.nn.Module:
    """Return the first ``layers`` layers of ``model`` ready to run, by default in eager attention.

    Without ``head`` it is the base model. Where not all layers are loaded the final norm's weight is 1:
    what it makes of a middle layer's output is no stage of anything.

    Raises:
        ModelError: a weight is missing or of another shape than the geometry's.

    """
    config = hf_config(model, layers)
    sites, one_by_one = weight_sites(model.geometry, layers, head), read_one_by_one(model)
    if one_by_one:
        of_experts = [site for site in sites if site[0].partition(".")[0] in EXPERT_ROLES]
        for role, layer in of_experts:  # named now if it is missing, and not only where a token needs it
            model.weights.tensor(role, layer)
        sites = [site for site in sites if site[0].partition(".")[0] not in EXPERT_ROLES]
    state = _state(model, sites, dtype)
    if one_by_one:
        state.update(stand_ins(model, layers, dtype))
    if family_of(model.geometry).experts_as_used:
        state = {name: _as_used(name, tensor, model.geometry) for name, tensor in state.items()}
    if layers < model.geometry.layers:
        state.update(_stand_in_norm(model, dtype))
    own, names = model.weights.names, family_of(model.geometry).weights
    if own["embed"] != names["embed"] and family_of(model.geometry).part_of:
        state = {usual_name(name, own, names): tensor for name, tensor in state.items()}
    with _no_progress_bar():
        module = _made(config, state, head, dtype, attention)
    _divide_rope(module, model.geometry)
    if one_by_one:
        _read_experts(module, model, layers, device)
    return module.to(device).eval()


def _read_experts(module: torch.nn.Module, model: Model, layers: int, device: torch.device) -> None:
    geometry = model.geometry
    paths = {
        layer: f"{layer_of(geometry, layer)}.{mixture_of(geometry)}.experts"
        for layer in filter(geometry.is_mixture, range(layers))
    }
    decoder = module.get_submodule(decoder_of(geometry)) if hasattr(module, "lm_head") else module
    put_readers(decoder, paths, model, device, _decoded)


def _as_used(name: str, tensor: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """Return a tensor of all experts as [experts, out, in]."""
    width = {"gate_up_proj": geometry.hidden, "down_proj": geometry.moe_intermediate}.get(
        name.rpartition(".")[2]
    )
    if tensor.ndim != 3 or tensor.shape[2] == width:
        return tensor
    return tensor.transpose(1, 2).contiguous()


def _made(
    config: Any, state: dict[str, torch.Tensor], head: bool, dtype: torch.dtype, attention: str
) -> torch.nn.Module:
    classes = transformers.MODEL_FOR_CAUSAL_LM_MAPPING if head else transformers.MODEL_MAPPING
    try:
        kind = classes[type(config)]
    except KeyError:  # transformers has the text model with an output head within the larger one alone
        base = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
        return WithHead(_made(config, base, False, dtype, attention), state, config)
    module: torch.nn.Module = kind.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, **{**EAGER, "attn_implementation": attention}
    )
    return module


class WithHead(torch.nn.Module):
    """A base model and its output head.

    Args:
        model: the base model.
        state: tensors by name, with that of the head, or of the embedding where it is tied.
        config: the base model's config.

    """

    def __init__(self, model: Any, state: Mapping[str, torch.Tensor], config: Any) -> None:
        super().__init__()
        tied = config.tie_word_embeddings
        weight = state["model.embed_tokens.weight" if tied else "lm_head.weight"].to(model.dtype)
        self.model, self.config = model, config
        vocab, hidden = weight.shape
        self.lm_head = torch.nn.Linear(hidden, vocab, bias=False, dtype=weight.dtype, device="meta")
        self.lm_head.weight = torch.nn.Parameter(weight, requires_grad=False)

    def forward(self, input_ids: torch.Tensor, **words: Any) -> Any:
        """Run both, as transformers' models with a head do."""
        found = self.model(input_ids=input_ids, **words)
        return types.SimpleNamespace(logits=self.lm_head(found.last_hidden_state))


EAGER: Mapping[str, str] = {"attn_implementation": "eager", "experts_implementation": "eager"}
"""What makes transformers compute by the formulas; its faster ways give other bits."""


def _stand_in_norm(model: Model, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    names = family_of(model.geometry).weights
    roles = [role for role in ("final_norm", "final_norm_bias") if role in names]
    return {names[role]: torch.ones(model.geometry.hidden, dtype=dtype) for role in roles}


def weight_sites(geometry: Geometry, layers: int, head: bool) -> list[Site]:
    """Return the weights that the first ``layers`` layers need, with those around them.

    Args:
        geometry: the model's geometry.
        layers: how many layers run.
        head: whether the output head does.

    """
    needed = dict.fromkeys(("final_norm", "final_norm_bias"), layers == geometry.layers)
    needed |= dict.fromkeys(("lm_head", "lm_head_bias"), head)
    sites: list[Site] = [(role, None) for role in roles_at(geometry, None) if needed.get(role, True)]
    return sites + [(role, layer) for layer in range(layers) for role in roles_at(geometry, layer)]


def _state(model: Model, sites: list[Site], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    readers = {"safetensors": _mapped, "gguf": _dequantised, "apr": _dequantised}
    return readers[model.format](model, sites, dtype)


def _mapped(model: Model, sites: list[Site], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    names = {model.weights.tensor(role, layer).name: role for role, layer in sites}
    state = {name: _multiplied_out(model, name, role, dtype) for name, role in names.items()}
    plain = {name for name, tensor in state.items() if tensor is None}
    found: dict[str, torch.Tensor] = {name: tensor for name, tensor in state.items() if tensor is not None}
    for path in model.files:
        with safe_open(path, framework="pt") as file:
            found.update({name: file.get_tensor(name) for name in plain.intersection(file.keys())})
    return found


def _multiplied_out(model: Model, name: str, role: str, dtype: torch.dtype) -> torch.Tensor | None:
    """Return a quantised weight as the checkpoint would hold it plain, ``None`` where it does."""
    tensor = model.weights.tensors[name]
    if isinstance(tensor, PlainTensor):
        return None
    values = _decoded(tensor, dtype)
    turned = isinstance(tensor, GridTensor) and role in family_of(model.geometry).transposed
    return values.T.contiguous() if turned else values


def _dequantised(model: Model, sites: list[Site], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    # A map of the file that ends with this function: the pages read do not stay beside the weights.
    weights = open_model(model.path).weights
    names = family_of(model.geometry).weights
    return {
        names[role].format(n=layer): _decoded(weights.tensor(role, layer), dtype) for role, layer in sites
    }


def _decoded(tensor: Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return ``tensor`` whole, decoded block of rows by block of rows."""
    values = torch.empty(tensor.shape, dtype=dtype)
    step = max(1, _BLOCK_VALUES // math.prod(tensor.shape[1:]))
    for start in range(0, len(values), step):
        rows = tensor.rows(start, min(start + step, len(values)))
        # torch wants memory that it may write to; only rows that are stored as f32 are copied for it.
        values[start : start + step] = torch.from_numpy(np.require(rows, requirements=["C", "W"]))
    return values


def _divide_rope(module: Any, geometry: Geometry) -> None:
    """Put GGUF's ``rope_freqs`` into the rotary embedding; transformers has no name for that rule."""
    if geometry.rope.kind != "divided":
        return
    rotary = module.get_submodule("model.rotary_emb" if hasattr(module, "lm_head") else "rotary_emb")
    divisors = torch.tensor(geometry.rope.divisors, dtype=torch.float32)
    rotary.inv_freq = rotary.inv_freq / divisors
    rotary.original_inv_freq = rotary.inv_freq.clone()


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
