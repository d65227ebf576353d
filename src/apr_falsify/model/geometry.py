"""Model geometry: the sizes and constants of a forward pass, from config.json or GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apr_falsify.errors import AprFalsifyError, GeometryError, ModelError
from apr_falsify.model.families import family_of_gguf, family_of_model_type, known_families, text_part
from apr_falsify.model.family import Family
from apr_falsify.model.gguf_settings import Gguf
from apr_falsify.model.rope import Rope, local_ropes_of_config, rope_of_config
from apr_falsify.model.settings import Config
from apr_falsify.model.shape import Geometry
from apr_falsify.reading import read_json, text


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
    if "auto_map" in config and not _is_known_code(config):
        raise ModelError(
            "the model wants to run its own code (auto_map in config.json)",
            where=path,
            expected="a model whose family transformers itself knows; trust_remote_code stays off",
        )
    return config


def _is_known_code(config: Mapping[str, Any]) -> bool:
    """Whether the code that a config.json names is that which transformers' own class took the place of."""
    named = config["auto_map"]
    kinds = [each for each in known_families() if config.get("model_type") in each.model_types]
    known = {name for each in kinds for name in each.published_code}
    return isinstance(named, Mapping) and named.get("AutoModelForCausalLM") in known


def geometry_of_config(config: Mapping[str, Any], where: object = None) -> Geometry:
    """Return the geometry that a config.json (transformers 4 or 5 keys) describes.

    Raises:
        UnknownFamilyError: a ``model_type`` that is not in the table.
        GeometryError: a size is missing, contradictory or absurd.

    """
    try:
        config = text_part(config)
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
    stated = (config.get(key) for key in ("layer_types", "layers_block_type", "hybrid_override_pattern"))
    kinds = next((each for each in stated if each), None)
    if isinstance(kinds, (list, str)):
        values.setdefault("num_hidden_layers", len(kinds))
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
    divisors: Mapping[str, tuple[float, ...]] | None = None,
    where: object = None,
) -> Geometry:
    """Return the geometry that a GGUF file's metadata describes (keys of the GGUF specification).

    Args:
        metadata: key -> value, with the arrays of its architecture.
        tensors: name -> shape, rows first.
        divisors: the content of the tensors ``rope_freqs``, ``rope_factors_short`` and ``rope_factors_long``,
            by these names, where there are such.
        where: the file, for messages.

    Raises:
        UnknownFamilyError: an architecture that is not in the table.
        GeometryError: a size is missing, contradictory or absurd; a key or a tensor has no formula here.

    """
    try:
        architecture = text(metadata.get("general.architecture"), "general.architecture")
        prefix = f"{architecture}."
        values = {key[len(prefix) :]: value for key, value in metadata.items() if key.startswith(prefix)}
        family = family_of_gguf(architecture, values, where)
        gguf = Gguf(values, tensors, divisors or {})
        geometry = _geometry_of_gguf(family, gguf)
        gguf.refuse_what_was_not_read()
        _check_names(family, geometry, gguf)
        return geometry
    except KeyError as error:
        raise GeometryError(f"the GGUF file has no {error}", where=where) from error
    except ValueError as error:
        raise GeometryError(f"the GGUF metadata holds an unusable value: {error}", where=where) from error
    except AprFalsifyError as error:
        raise error.at(where) from None


def _geometry_of_gguf(family: Family, gguf: Gguf) -> Geometry:
    heads, head_dim = gguf.whole("attention.head_count"), gguf.head_dim
    values, stated = gguf.get("attention.value_length", head_dim), family.gguf_settings(gguf)
    if values != head_dim and "v_head_dim" not in stated:
        raise GeometryError(f"attention.value_length is {values}", expected=f"{head_dim}, as the keys' width")
    names = family.gguf_weights
    sizes: dict[str, Any] = {
        "family": family.name,
        "layers": gguf["block_count"],
        "hidden": gguf["embedding_length"],
        "heads": heads,
        "kv_heads": gguf.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate": gguf["feed_forward_length"],
        "vocab": (gguf.tensors[names["embed"]] or (0,))[0],
        "activation": _usual_names(family, {}).get("hidden_act", "silu"),
        "tied": names.get("lm_head") not in gguf.tensors,
    }
    for word, role in _BIASED.items():
        sizes[word] = names[role].format(n=0) in gguf.tensors if role in names else False
    sizes.update(stated)
    if "norm_eps" not in sizes:
        sizes["norm_eps"] = gguf["attention.layer_norm_rms_epsilon"]
    if "rope" not in sizes:
        sizes["rope"] = gguf.rope(partial=family.partial_rotary)
    return Geometry(**sizes)


_BIASED: Mapping[str, str] = {
    "qkv_bias": "q_bias",
    "output_bias": "o_bias",
    "mlp_bias": "up_bias",
    "head_bias": "lm_head_bias",
}
"""Switch of the geometry -> the role that has a tensor where it is on."""

ROPE_TENSORS: tuple[str, ...] = ("rope_freqs", "rope_factors_short", "rope_factors_long")
"""Tensors of a GGUF file that are part of its rotary embedding."""


def _check_names(family: Family, geometry: Geometry, gguf: Gguf) -> None:
    """Refuse a tensor that the family has no use for: what it would do is not known.

    Layers beyond the model's own, where its settings say so, predict further tokens.
    """
    beyond = tuple(f"blk.{layer}." for layer in range(geometry.layers, gguf.layers))
    known = {f"{name}.weight" for name in ROPE_TENSORS}
    for name in family.gguf_weights.values():
        known |= {name.format(n=layer) for layer in range(geometry.layers)} if "{n}" in name else {name}
    for name in gguf.tensors:
        if name not in known and not name.startswith(beyond):
            raise GeometryError(
                f"the tensor {name} has no use in a {family.title} model as it is known here",
                expected="the tensors that llama.cpp's conversion of such a model writes",
            )
