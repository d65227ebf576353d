"""What a model family is: its names, how its config is read, and the graph of its layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from apr_falsify.model import gguf_settings
from apr_falsify.model.blocks import decoder_ends, decoder_layer
from apr_falsify.model.gguf_settings import GgufSettings
from apr_falsify.model.graph import Ends, Layer
from apr_falsify.model.settings import Settings, nothing
from apr_falsify.model.shape import Geometry


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One model family; a file of ``families/`` holds one, or a few near relatives.

    Attributes:
        name: our name for it.
        title: its name for people.
        model_types: values of ``model_type`` in config.json.
        part_of: values of ``model_type`` of larger models, of which this is the text part.
        gguf_architectures: values of ``general.architecture`` in GGUF.
        weights: role -> tensor name in a HuggingFace checkpoint.
        gguf_key: a key without which a GGUF file of its architecture is of another family; ``key=2`` where it
            must be 2.
        gguf_weights: role -> tensor name in GGUF.
        gguf_settings: what GGUF metadata says beyond the usual sizes, as keywords of ``Geometry``.
        in_apr: whether an .apr file states all that its forward pass takes.
        layer: gives the nodes of one layer.
        ends: gives the nodes of the whole model.
        settings: what its config says beyond the usual sizes, as keywords of ``Geometry``.
        published_code: classes of makers' repositories (``auto_map``) that transformers has taken over: a
            config.json that names one is read, and the code is not run.
        config_keys: this family's own names of config keys, by their usual names.
        config_defaults: what transformers 5 takes for a key that config.json leaves out, where that is
            neither a plain default nor derived from another key.
        rope_aliases: this family's own words for rotary scaling rules.
        local_rope: whether layers with a window have a rotary embedding of their own.
        partial_rotary: whether ``partial_rotary_factor`` counts: a head may be rotated in part.
        interleaved: whether a HuggingFace checkpoint's rotary pairs lie side by side: (0, 1), (2, 3) ...
        split_by_rotation: whether transformers puts those half-split where it rotates them.
        gguf_interleaved: whether q and k lie in a GGUF file as interleaved rotary pairs: conversion permutes
            them so, or leaves them as they are.
        plain_norms: roles of norms to whose weight nothing is added, where something is to others'.
        listed_rows: role -> which rows of its tensor are its own, in order, given the geometry.
        norm_offset: what is added to a norm's weight as a HuggingFace checkpoint stores it.
        offset_rounded: whether transformers rounds that sum to the format in which it runs.
        fused: groups of roles that lie one below the other in one tensor.
        expert_columns: role -> (first, step): an expert's matrix is every ``step``-th column, from the first
            on, of its part [in, out] of one tensor [experts, in, out]; its bias likewise.
        experts_as_used: whether transformers holds experts [experts, out, in] though checkpoints may not.
        fused_by_head: whether q, k and v lie in one tensor head by head: those of head 0, of head 1, ...
        modules: role -> module within a layer, where transformers' differs from the checkpoint's name.
        transposed: roles whose tensor a HuggingFace checkpoint stores [in, out].
        kept_in_f32: roles that transformers leaves in f32 whatever the format in which it runs.
        softmax_upcast: whether transformers computes the softmax in f32 whatever the model's format.
        role_axes: the shapes of roles that ``names.ROLE_AXES`` does not list, in its words.

    """

    name: str
    title: str
    model_types: tuple[str, ...]
    weights: Mapping[str, str]
    part_of: tuple[str, ...] = ()
    gguf_architectures: tuple[str, ...] = ()
    gguf_key: str = ""
    gguf_weights: Mapping[str, str] = field(default_factory=dict)
    gguf_settings: GgufSettings = gguf_settings.nothing
    in_apr: bool = False
    layer: Layer = decoder_layer
    ends: Ends = decoder_ends
    settings: Settings = nothing
    published_code: tuple[str, ...] = ()
    config_keys: Mapping[str, str] = field(default_factory=dict)
    config_defaults: Mapping[str, Any] = field(default_factory=dict)
    rope_aliases: Mapping[str, str] = field(default_factory=dict)
    local_rope: bool = False
    partial_rotary: bool = False
    interleaved: bool = False
    split_by_rotation: bool = False
    gguf_interleaved: bool = False
    norm_offset: float = 0.0
    plain_norms: tuple[str, ...] = ()
    listed_rows: Mapping[str, Callable[[Geometry], tuple[int, ...]]] = field(default_factory=dict)
    offset_rounded: bool = False
    fused: tuple[tuple[str, ...], ...] = ()
    expert_columns: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    experts_as_used: bool = False
    fused_by_head: bool = False
    modules: Mapping[str, str] = field(default_factory=dict)
    transposed: tuple[str, ...] = ()
    kept_in_f32: tuple[str, ...] = ()
    softmax_upcast: bool = True
    role_axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
