"""The HuggingFace config of a model: its own config.json, or one made from a GGUF file's geometry."""

from __future__ import annotations

from typing import Any

from apr_falsify.errors import ModelError
from apr_falsify.formats.weights import Model
from apr_falsify.model.families import family_of
from apr_falsify.model.shape import Geometry
from apr_falsify.oracle.libraries import transformers

_MAX_POSITIONS = 1 << 20
"""Stands for a GGUF file's context length, which limits nothing in a single forward pass."""


def hf_config(model: Model, layers: int) -> Any:
    """Return the config for the first ``layers`` layers of ``model``.

    A model directory's config.json is read by transformers itself, so that the oracle does not depend on
    our own reading of it.

    Raises:
        ModelError: transformers cannot read it.

    """
    config = _of_directory(model) if model.format == "safetensors" else config_of_geometry(model.geometry)
    if config.model_type in family_of(model.geometry).part_of:
        whole, config = config, config.get_text_config()
        config.tie_word_embeddings = whole.tie_word_embeddings
    if hasattr(config, "quantization_config"):  # the weights are handed over multiplied out
        del config.quantization_config
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    config.use_cache = False
    return config


def _of_directory(model: Model) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(
            model.path, local_files_only=True, trust_remote_code=False
        )
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ModelError(
            f"transformers cannot read config.json: {error}", where=model.path, remedy="download it again"
        ) from error


def config_of_geometry(geometry: Geometry) -> Any:
    """Return the config that describes ``geometry``, in transformers' own words."""
    rope = geometry.rope
    kind = "default" if rope.kind == "divided" else rope.kind
    parameters: dict[str, Any] = dict(rope.parameters)
    if "original_max_position_embeddings" in parameters:
        parameters["original_max_position_embeddings"] = int(parameters["original_max_position_embeddings"])
    return transformers.CONFIG_MAPPING[family_of(geometry).model_types[0]](
        hidden_size=geometry.hidden,
        intermediate_size=geometry.intermediate,
        num_hidden_layers=geometry.layers,
        num_attention_heads=geometry.heads,
        num_key_value_heads=geometry.kv_heads,
        head_dim=geometry.head_dim,
        vocab_size=geometry.vocab,
        rms_norm_eps=geometry.norm_eps,
        hidden_act=geometry.activation,
        max_position_embeddings=_MAX_POSITIONS,
        rope_parameters={"rope_type": kind, "rope_theta": rope.theta, **parameters},
        tie_word_embeddings=geometry.tied,
        bos_token_id=None,
        eos_token_id=None,
        **_attention_of(geometry),
    )


def _attention_of(geometry: Geometry) -> dict[str, Any]:
    """Return biases and windows; a key that a family's config does not know is carried and ignored."""
    windows = [size for size in geometry.windows if size is not None]
    return {
        "attention_bias": geometry.qkv_bias,
        "mlp_bias": geometry.mlp_bias,
        "sliding_window": windows[0] if windows else None,
        "use_sliding_window": bool(windows),
    }
