"""Copies of the tiny checkpoint with one thing wrong each, written with safetensors and json alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from apr_falsify.model.stages import Key

Arrays = dict[str, npt.NDArray[Any]]

HEAD_DIM = 32
"""Of the tiny checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFault:
    """What is wrong, and where a comparison has to find it.

    Attributes:
        spoil: changes the tensors in place.
        config: keys of config.json that are set otherwise.
        truth: the places to be named, as (layer, stages).

    """

    spoil: Callable[[Arrays], None] = lambda tensors: None
    config: Mapping[str, Any] | None = None
    truth: frozenset[tuple[int, str]]


def _layer(layer: int, name: str) -> str:
    return f"model.layers.{layer}.{name}"


def _zero_k_bias(tensors: Arrays) -> None:
    tensors[_layer(0, "self_attn.k_proj.bias")][:] = 0


def _scale_norm(tensors: Arrays) -> None:
    weight = tensors[_layer(1, "input_layernorm.weight")]
    weight[:] = (weight * np.float32(1.01)).astype(weight.dtype)


def _swap_heads(tensors: Arrays) -> None:
    """Swap the first and the last query head, of different kv heads."""
    weight = tensors[_layer(2, "self_attn.q_proj.weight")]
    first, last = weight[:HEAD_DIM].copy(), weight[-HEAD_DIM:].copy()
    weight[:HEAD_DIM], weight[-HEAD_DIM:] = last, first


def _noise_in_a_projection(tensors: Arrays) -> None:
    weight = tensors[_layer(1, "mlp.up_proj.weight")]
    noise = np.random.default_rng(0).normal(0, 0.02 * float(np.std(weight)), weight.shape)
    weight[:] = (weight + noise).astype(weight.dtype)


LAYERS = range(3)

FAULTS: Mapping[str, CheckpointFault] = {
    "zeroed-k-bias": CheckpointFault(spoil=_zero_k_bias, truth=frozenset({Key(0, "qkv_bias")})),
    "other-rope-base": CheckpointFault(
        config={"rope_theta": 10000.0},
        truth=frozenset(Key(n, stage) for n in LAYERS for stage in ("q_post_rope", "k_post_rope")),
    ),
    "scaled-norm": CheckpointFault(spoil=_scale_norm, truth=frozenset({Key(1, "attn_norm")})),
    "swapped-heads": CheckpointFault(spoil=_swap_heads, truth=frozenset({Key(2, "qkv_matmul")})),
    "noise-in-up": CheckpointFault(spoil=_noise_in_a_projection, truth=frozenset({Key(1, "ffn_up")})),
}


def write_faulted(source: Path, place: Path, fault: CheckpointFault) -> Path:
    """Write ``source`` with ``fault`` to ``place``."""
    shutil.copytree(source, place)
    weights = place / "model.safetensors"
    tensors = load_file(weights)
    fault.spoil(tensors)
    save_file(tensors, weights, metadata={"format": "pt"})
    if fault.config:
        config = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps({**config, **_as_held(config, fault.config)}))
    return place


def _as_held(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Put the rotary base where this config has it: at the top, or in ``rope_parameters``."""
    held = dict(values)
    if "rope_theta" in held and "rope_parameters" in config:
        held["rope_parameters"] = {**config["rope_parameters"], "rope_theta": held["rope_theta"]}
        if "rope_theta" not in config:
            del held["rope_theta"]
    return held
