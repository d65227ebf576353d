"""Model geometry: the sizes and constants of a forward pass, from config.json or GGUF metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apr_falsify.errors import AprFalsifyError, GeometryError, ModelError
from apr_falsify.model.families import (
    Family,
    Positions,
    Presence,
    ScoreScale,
    Window,
    family_of_gguf,
    family_of_model_type,
)
from apr_falsify.model.rope import Rope, local_ropes_of_config, rope_of_config, rope_of_gguf
from apr_falsify.model.shape import MAX_LAYERS, Geometry
from apr_falsify.reading import flag, items, number, read_json, text, whole


def geometry_of_hf_dir(directory: Path) -> Geometry:
    """Read the geometry from ``directory``'s config.json.

    Raises:
        ModelError: no readable config.json.
        UnknownFamilyError: a family that is not in the table.
        GeometryError: a size is missing, contradictory or absurd.

    """
    return geometry_of_config(read_config(directory), directory / "config.json")


def read_config(directory: Path) -> dict[str, Any]:
    """Return ``directory``'s config.json.

    Raises:
        ModelError: it is missing, no JSON object, or asks for code from the repository.

    """
    path = directory / "config.json"
    try:
        config = read_json(path)
    except OSError as error:
        raise ModelError(
            f"no config.json ({error.strerror})",
            where=directory,
            expected="a HuggingFace model directory or a .gguf file",
            remedy="point to the directory that holds config.json, tokenizer.json and *.safetensors",
        ) from error
    except ValueError as error:
        raise ModelError(f"config.json is no JSON: {error}", where=path) from error
    if not isinstance(config, dict):
        raise ModelError("config.json is not a JSON object", where=path)
    if "auto_map" in config:
        raise ModelError(
            "the model wants to run its own code (auto_map in config.json)",
            where=path,
            expected="a model whose family transformers itself knows; trust_remote_code stays off",
        )
    return config


def geometry_of_config(config: Mapping[str, Any], where: object = None) -> Geometry:
    """Return the geometry that a config.json (transformers 4 or 5 keys) describes.

    Raises:
        UnknownFamilyError: a ``model_type`` that is not in the table.
        GeometryError: a size is missing, contradictory or absurd.

    """
    try:
        row = family_of_model_type(text(config.get("model_type"), "model_type"), where)
        return _geometry_of_config(row, _usual_names(row, config))
    except KeyError as error:
        raise GeometryError(f"config.json has no {error}", where=where) from error
    except ValueError as error:
        raise GeometryError(f"config.json holds an unusable value: {error}", where=where) from error
    except AprFalsifyError as error:
        raise error.at(where) from None


def _geometry_of_config(row: Family, config: Mapping[str, Any]) -> Geometry:
    heads = whole(config["num_attention_heads"], "num_attention_heads")
    hidden = whole(config["hidden_size"], "hidden_size")
    kv_heads, head_dim = config.get("num_key_value_heads"), config.get("head_dim")
    head_dim = hidden // max(heads, 1) if head_dim is None else whole(head_dim, "head_dim")
    inner = config["intermediate_size"]
    rope, local_rope = _ropes(row, config)
    if config.get("use_bidirectional_attention"):
        raise GeometryError("tokens attend to later ones", expected="a model with causal attention")
    return Geometry(
        family=row.name,
        layers=_layers(config["num_hidden_layers"]),
        hidden=hidden,
        heads=heads,
        kv_heads=heads if kv_heads is None else kv_heads,
        head_dim=head_dim,
        intermediate=4 * hidden if inner is None and not row.gated else inner,
        vocab=config["vocab_size"],
        norm_eps=number(config["rms_norm_eps"], "rms_norm_eps"),
        rope=rope,
        local_rope=local_rope,
        activation=config.get("hidden_act", "silu"),
        windows=_windows(row, config),
        qkv_bias=_present(row.qkv_bias, config, "attention_bias"),
        output_bias=_present(row.output_bias, config, "attention_bias"),
        mlp_bias=_present(row.mlp_bias, config, "mlp_bias"),
        tied=flag(config.get("tie_word_embeddings", False), "tie_word_embeddings"),
        attn_scales=_attn_scales(row, config, head_dim),
        attn_softcap=_softcap(row, config, "attn"),
        final_softcap=_softcap(row, config, "final"),
        embed_scale=math.sqrt(max(hidden, 1)) if row.embed_scaled else 1.0,
        positions=config["max_position_embeddings"] if row.positions is Positions.LEARNED else 0,
        **_mixture(row, config),
    )


def _usual_names(row: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``config`` with the family's defaults, its own keys under their usual names too."""
    values = {**row.config_defaults, **config}
    values.update({usual: values[own] for usual, own in row.config_keys.items() if own in values})
    if not row.gated:
        values.setdefault("intermediate_size", None)
    return values


def _ropes(row: Family, config: Mapping[str, Any]) -> tuple[Rope, Rope | None]:
    if row.positions is Positions.LEARNED:
        return Rope(theta=1.0, kind="none"), None
    if row.local_rope:
        return local_ropes_of_config(config)
    return rope_of_config(config, row.rope_aliases), None


def _attn_scales(row: Family, config: Mapping[str, Any], head_dim: int) -> tuple[float, ...]:
    layers = _layers(config["num_hidden_layers"])
    if row.score_scale is ScoreScale.HEAD_DIM or head_dim < 1:
        return ()
    if row.score_scale is ScoreScale.QUERY_SCALAR:
        scalar = number(config["query_pre_attn_scalar"], "query_pre_attn_scalar")
        if scalar <= 0:
            raise GeometryError(f"query_pre_attn_scalar is {scalar}", expected="a number above 0")
        return (scalar**-0.5,) * layers
    scale = head_dim**-0.5 if flag(config["scale_attn_weights"], "scale_attn_weights") else 1.0
    key = "scale_attn_by_inverse_layer_idx"
    if not flag(config.get(key, False), key):
        return (scale,) * layers
    return tuple(scale / (layer + 1) for layer in range(layers))


def _softcap(row: Family, config: Mapping[str, Any], which: str) -> float | None:
    key = f"{which}_logit_softcapping"
    if which not in row.softcaps or config.get(key) is None:
        return None
    return number(config[key], key)


def _mixture(row: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of mixtures of experts; every ``decoder_sparse_step``-th layer is one."""
    experts = config.get("num_experts", config.get("num_local_experts"))
    if not row.mixture or experts is None:
        return {}
    layers, experts = _layers(config["num_hidden_layers"]), whole(experts, "num_experts")
    step = whole(config.get("decoder_sparse_step", 1), "decoder_sparse_step")
    if step < 1:
        raise GeometryError(f"decoder_sparse_step is {step}", expected="a whole number above 0")
    dense = items(config.get("mlp_only_layers") or [], "mlp_only_layers")
    return {
        "experts": experts,
        "experts_per_token": config["num_experts_per_tok"],
        "moe_intermediate": config["moe_intermediate_size"],
        "norm_topk_prob": config.get("norm_topk_prob", False),
        "mixtures": tuple(
            layer not in dense and experts > 0 and (layer + 1) % step == 0 for layer in range(layers)
        ),
    }


def _layers(value: object) -> int:
    """Return the number of layers; checked here already, as rows per layer are made from it."""
    layers = whole(value, "num_hidden_layers")
    if not 1 <= layers <= MAX_LAYERS:
        raise GeometryError(
            f"num_hidden_layers is {layers}", expected=f"a whole number from 1 to {MAX_LAYERS}"
        )
    return layers


def _present(presence: Presence, config: Mapping[str, Any], key: str) -> bool:
    if presence is Presence.CONFIG:
        return flag(config.get(key, False), key)
    return presence is Presence.ALWAYS


_FLAGGED = (Window.LAYER_TYPES, Window.FLAGGED)
"""The windows that ``use_sliding_window`` switches."""


def _windows(row: Family, config: Mapping[str, Any]) -> tuple[int | None, ...]:
    layers, size = _layers(config["num_hidden_layers"]), config.get("sliding_window")
    if row.window is Window.NONE or size is None:
        return (None,) * layers
    if row.window in _FLAGGED and not flag(config.get("use_sliding_window", False), "use_sliding_window"):
        return (None,) * layers
    size = whole(size, "sliding_window")
    if row.window in (Window.EVERY_LAYER, Window.FLAGGED):
        return (size,) * layers
    kinds = config.get("layer_types")
    if kinds is not None:
        return tuple(size if _slides(kind) else None for kind in items(kinds, "layer_types"))
    if row.window is Window.PATTERN:
        every = whole(_pattern(row, config), "sliding_window_pattern")
        return tuple(None if every and (n + 1) % every == 0 else size for n in range(layers))
    full = whole(config.get("max_window_layers", layers), "max_window_layers")
    return tuple(None if n < full else size for n in range(layers))


def _pattern(row: Family, config: Mapping[str, Any]) -> object:
    return config.get("sliding_window_pattern", config.get("_sliding_window_pattern", row.window_pattern))


def _slides(kind: object) -> bool:
    if kind not in ("full_attention", "sliding_attention"):
        raise GeometryError(
            f"the layer type {kind!r} has no formula here", expected="full_attention or sliding_attention"
        )
    return kind == "sliding_attention"


def geometry_of_gguf(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[int, ...]],
    rope_divisors: tuple[float, ...] = (),
    where: object = None,
) -> Geometry:
    """Return the geometry that a GGUF file's metadata describes (keys of the GGUF specification).

    Args:
        metadata: key -> value, arrays may be left out.
        tensors: name -> shape, rows first.
        rope_divisors: the content of the tensor ``rope_freqs.weight``, where there is one.
        where: the file, for messages.

    Raises:
        UnknownFamilyError: an architecture that is not in the table.
        GeometryError: a size is missing, contradictory or absurd.

    """
    try:
        architecture = text(metadata.get("general.architecture"), "general.architecture")
        row = family_of_gguf(architecture, where)
        prefix = f"{architecture}."
        values = {key[len(prefix) :]: value for key, value in metadata.items() if key.startswith(prefix)}
        return _geometry_of_gguf(row, values, tensors, rope_divisors)
    except KeyError as error:
        raise GeometryError(f"the GGUF file has no {error}", where=where) from error
    except ValueError as error:
        raise GeometryError(f"the GGUF metadata holds an unusable value: {error}", where=where) from error
    except AprFalsifyError as error:
        raise error.at(where) from None


def _geometry_of_gguf(
    row: Family,
    values: Mapping[str, Any],
    tensors: Mapping[str, tuple[int, ...]],
    rope_divisors: tuple[float, ...],
) -> Geometry:
    heads = whole(values["attention.head_count"], "attention.head_count")
    hidden = whole(values["embedding_length"], "embedding_length")
    head_dim = whole(values.get("attention.key_length", hidden // max(heads, 1)), "attention.key_length")
    _whole_heads(values, head_dim)
    has = {role: row.gguf_weights[role].format(n=0) in tensors for role in ("q_bias", "o_bias", "up_bias")}
    return Geometry(
        family=row.name,
        layers=values["block_count"],
        hidden=hidden,
        heads=heads,
        kv_heads=values.get("attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate=values["feed_forward_length"],
        vocab=(tensors[row.gguf_weights["embed"]] or (0,))[0],
        norm_eps=values["attention.layer_norm_rms_epsilon"],
        rope=rope_of_gguf(values.get, rope_divisors),
        qkv_bias=has["q_bias"],
        output_bias=has["o_bias"],
        mlp_bias=has["up_bias"],
        tied=row.gguf_weights["lm_head"] not in tensors,
    )


def _whole_heads(values: Mapping[str, Any], head_dim: int) -> None:
    """Refuse heads of which only a part is rotated, and values of another width than keys."""
    for key in ("rope.dimension_count", "attention.value_length"):
        if values.get(key, head_dim) != head_dim:
            raise GeometryError(f"{key} is {values[key]}", expected=f"{head_dim}, as the keys' width")
