"""Model geometry: the sizes and constants of a forward pass, from config.json or GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apr_falsify.errors import AprFalsifyError, GeometryError, ModelError
from apr_falsify.model.families import family_of_gguf, family_of_model_type
from apr_falsify.model.family import Family
from apr_falsify.model.rope import Rope, local_ropes_of_config, rope_of_config, rope_of_gguf
from apr_falsify.model.settings import Config
from apr_falsify.model.shape import Geometry
from apr_falsify.reading import read_json, text, whole


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
        family = family_of_model_type(text(config.get("model_type"), "model_type"), where)
        return _geometry_of_config(family, Config(_usual_names(family, config)))
    except KeyError as error:
        raise GeometryError(f"config.json has no {error}", where=where) from error
    except ValueError as error:
        raise GeometryError(f"config.json holds an unusable value: {error}", where=where) from error
    except AprFalsifyError as error:
        raise error.at(where) from None


def _geometry_of_config(family: Family, config: Config) -> Geometry:
    if config.get("use_bidirectional_attention"):
        raise GeometryError("tokens attend to later ones", expected="a model with causal attention")
    heads, kv_heads = config.whole("num_attention_heads"), config.get("num_key_value_heads")
    sizes: dict[str, Any] = {
        "family": family.name,
        "layers": config.layers,
        "hidden": config.whole("hidden_size"),
        "heads": heads,
        "kv_heads": heads if kv_heads is None else kv_heads,
        "head_dim": config.head_dim,
        "vocab": config["vocab_size"],
        "norm_eps": config.number("rms_norm_eps"),
        "activation": config.get("hidden_act", "silu"),
        "tied": config.flag("tie_word_embeddings"),
    }
    sizes.update(family.settings(config))
    if "intermediate" not in sizes:
        sizes["intermediate"] = config["intermediate_size"]
    if "rope" not in sizes:
        sizes["rope"], sizes["local_rope"] = _ropes(family, config)
    return Geometry(**sizes)


def _usual_names(family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``config`` with the family's defaults, its own keys under their usual names too."""
    values = {**family.config_defaults, **config}
    values.update({usual: values[own] for usual, own in family.config_keys.items() if own in values})
    return values


def _ropes(family: Family, config: Config) -> tuple[Rope, Rope | None]:
    if family.local_rope:
        rope, local = local_ropes_of_config(config.values)
    else:
        rope, local = rope_of_config(config.values, family.rope_aliases), None
    if rope.share != 1.0 and not family.partial_rotary:
        raise GeometryError(
            f"only a share of {rope.share} of each head is rotated",
            expected=f"whole heads, as every {family.title} model rotates them",
        )
    return rope, local


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
        family = family_of_gguf(architecture, where)
        prefix = f"{architecture}."
        values = {key[len(prefix) :]: value for key, value in metadata.items() if key.startswith(prefix)}
        return _geometry_of_gguf(family, values, tensors, rope_divisors)
    except KeyError as error:
        raise GeometryError(f"the GGUF file has no {error}", where=where) from error
    except ValueError as error:
        raise GeometryError(f"the GGUF metadata holds an unusable value: {error}", where=where) from error
    except AprFalsifyError as error:
        raise error.at(where) from None


def _geometry_of_gguf(
    family: Family,
    values: Mapping[str, Any],
    tensors: Mapping[str, tuple[int, ...]],
    rope_divisors: tuple[float, ...],
) -> Geometry:
    heads = whole(values["attention.head_count"], "attention.head_count")
    hidden = whole(values["embedding_length"], "embedding_length")
    head_dim = whole(values.get("attention.key_length", hidden // max(heads, 1)), "attention.key_length")
    _whole_heads(values, head_dim)
    has = {role: family.gguf_weights[role].format(n=0) in tensors for role in ("q_bias", "o_bias", "up_bias")}
    return Geometry(
        family=family.name,
        layers=values["block_count"],
        hidden=hidden,
        heads=heads,
        kv_heads=values.get("attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate=values["feed_forward_length"],
        vocab=(tensors[family.gguf_weights["embed"]] or (0,))[0],
        norm_eps=values["attention.layer_norm_rms_epsilon"],
        rope=rope_of_gguf(values.get, rope_divisors),
        qkv_bias=has["q_bias"],
        output_bias=has["o_bias"],
        mlp_bias=has["up_bias"],
        tied=family.gguf_weights["lm_head"] not in tensors,
    )


def _whole_heads(values: Mapping[str, Any], head_dim: int) -> None:
    """Refuse heads of which only a part is rotated, and values of another width than keys."""
    for key in ("rope.dimension_count", "attention.value_length"):
        if values.get(key, head_dim) != head_dim:
            raise GeometryError(f"{key} is {values[key]}", expected=f"{head_dim}, as the keys' width")
