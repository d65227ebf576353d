"""Model geometry: the sizes and constants of a forward pass, from config.json or GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apr_falsify.errors import AprFalsifyError, GeometryError, LayerRangeError, ModelError
from apr_falsify.families import (
    ACTIVATIONS,
    Family,
    Presence,
    Window,
    family,
    family_of_gguf,
    family_of_model_type,
)
from apr_falsify.reading import flag, items, mapping, number, read_json, text, whole
from apr_falsify.rope import ROPE_KINDS, Rope, check_rope, rope_of_config, rope_of_gguf

__all__ = [
    "ROPE_KINDS",
    "Geometry",
    "Rope",
    "geometry_of_config",
    "geometry_of_gguf",
    "geometry_of_hf_dir",
    "read_config",
]

# Far above any published model; below them a wrong file cannot ask for an absurd allocation.
_LIMITS: Mapping[str, int] = {
    "layers": 1024,
    "hidden": 65_536,
    "heads": 1024,
    "kv_heads": 1024,
    "head_dim": 4096,
    "intermediate": 1 << 20,
    "vocab": 1 << 22,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The sizes and constants of one model.

    Attributes:
        family: name of its row in ``families.py``.
        layers: number of decoder layers.
        hidden: E, the width of the residual stream.
        heads: H, query heads.
        kv_heads: K, key/value heads; query head h reads h // (H / K).
        head_dim: D.
        intermediate: F, the width of the feed-forward block.
        vocab: V.
        norm_eps: epsilon of every norm.
        rope: the rotary embedding.
        activation: the feed-forward block's activation.
        windows: per layer, how many keys back a token sees (itself included), ``None`` for all.
        qkv_bias: whether q, k, v have a bias.
        output_bias: whether the output projection has one.
        mlp_bias: whether gate, up and down have one.
        tied: whether the output head is the embedding table.

    """

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    norm_eps: float
    rope: Rope
    activation: str = "silu"
    windows: tuple[int | None, ...] = ()
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False

    def __post_init__(self) -> None:
        try:
            _check_sizes(self)
            if not self.windows:
                object.__setattr__(self, "windows", (None,) * self.layers)
            _check_constants(self)
            check_rope(self.rope, self.head_dim)
        except ValueError as error:
            raise GeometryError(str(error)) from error

    @property
    def row(self) -> Family:
        """The family's row."""
        return family(self.family)

    def dims(self, tokens: int) -> dict[str, int]:
        """Return the size of each axis word of ``stages.py`` for a run of ``tokens`` tokens."""
        return {
            "tokens": tokens,
            "hidden": self.hidden,
            "heads": self.heads,
            "q": self.heads * self.head_dim,
            "kv": self.kv_heads * self.head_dim,
            "qkv": (self.heads + 2 * self.kv_heads) * self.head_dim,
            "ffn": self.intermediate,
            "vocab": self.vocab,
            "head_dim": self.head_dim,
        }

    def check_layers(self, layers: range) -> range:
        """Return ``layers`` if the model has them all.

        Raises:
            LayerRangeError: it reaches beyond the first or the last layer.

        """
        if layers.start < 0 or layers.stop > self.layers:
            raise LayerRangeError(
                f"layers {layers.start}..{layers.stop} reach beyond the model",
                expected=f"a range within 0..{self.layers}",
                remedy=f"--layers {max(0, min(layers.start, self.layers - 1))}..{self.layers}",
            )
        return layers

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: object = None) -> Geometry:
        """Read what :meth:`to_json` wrote.

        Raises:
            GeometryError: a key is missing, unknown, or of another type.

        """
        try:
            values = dict(mapping(data, "the geometry"))
            rope = dict(mapping(values["rope"], "rope"))
            rope["divisors"] = tuple(items(rope.get("divisors", []), "rope divisors"))
            values["rope"] = Rope(**rope)
            values["windows"] = tuple(items(values["windows"], "windows"))
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise GeometryError(f"the geometry cannot be read: {error}", where=where) from error
        except AprFalsifyError as error:
            raise error.at(where) from None


def _check_sizes(geometry: Geometry) -> None:
    for name, limit in _LIMITS.items():
        value = whole(getattr(geometry, name), name)
        if not 1 <= value <= limit:
            raise GeometryError(f"{name} is {value}", expected=f"a whole number from 1 to {limit}")
    if geometry.heads % geometry.kv_heads:
        raise GeometryError(f"{geometry.heads} query heads cannot share {geometry.kv_heads} kv heads evenly")
    if geometry.head_dim % 2:
        raise GeometryError(f"head_dim is {geometry.head_dim}", expected="an even number: RoPE turns pairs")


def _check_constants(geometry: Geometry) -> None:
    family(text(geometry.family, "the family"))
    for name in ("qkv_bias", "output_bias", "mlp_bias", "tied"):
        flag(getattr(geometry, name), name)
    if len(geometry.windows) != geometry.layers:
        raise GeometryError(f"{len(geometry.windows)} attention windows for {geometry.layers} layers")
    for window in geometry.windows:
        if window is not None and whole(window, "an attention window") < 1:
            raise GeometryError(f"an attention window is {window}", expected="a whole number above 0")
    if number(geometry.norm_eps, "norm_eps") < 0:
        raise GeometryError(f"norm_eps is {geometry.norm_eps}", expected="a small number of at least 0")
    if geometry.activation not in ACTIVATIONS:
        raise GeometryError(
            f"the activation {geometry.activation!r} has no formula here", expected=", ".join(ACTIVATIONS)
        )


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
        return _geometry_of_config(row, {**row.config_defaults, **config})
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
    return Geometry(
        family=row.name,
        layers=_layers(config["num_hidden_layers"]),
        hidden=hidden,
        heads=heads,
        kv_heads=heads if kv_heads is None else kv_heads,
        head_dim=hidden // max(heads, 1) if head_dim is None else head_dim,
        intermediate=config["intermediate_size"],
        vocab=config["vocab_size"],
        norm_eps=number(config["rms_norm_eps"], "rms_norm_eps"),
        rope=rope_of_config(config),
        activation=config.get("hidden_act", "silu"),
        windows=_windows(row, config),
        qkv_bias=_present(row.qkv_bias, config, "attention_bias"),
        output_bias=_present(row.output_bias, config, "attention_bias"),
        mlp_bias=_present(row.mlp_bias, config, "mlp_bias"),
        tied=flag(config.get("tie_word_embeddings", False), "tie_word_embeddings"),
    )


def _layers(value: object) -> int:
    """Return the number of layers; checked here already, as rows per layer are made from it."""
    layers = whole(value, "num_hidden_layers")
    if not 1 <= layers <= _LIMITS["layers"]:
        raise GeometryError(
            f"num_hidden_layers is {layers}", expected=f"a whole number from 1 to {_LIMITS['layers']}"
        )
    return layers


def _present(presence: Presence, config: Mapping[str, Any], key: str) -> bool:
    if presence is Presence.CONFIG:
        return flag(config.get(key, False), key)
    return presence is Presence.ALWAYS


def _windows(row: Family, config: Mapping[str, Any]) -> tuple[int | None, ...]:
    layers, size = _layers(config["num_hidden_layers"]), config.get("sliding_window")
    if row.window is Window.NONE or size is None:
        return (None,) * layers
    size = whole(size, "sliding_window")
    if row.window is Window.EVERY_LAYER:
        return (size,) * layers
    if not flag(config.get("use_sliding_window", False), "use_sliding_window"):
        return (None,) * layers
    kinds = config.get("layer_types")
    if kinds is None:
        full = whole(config.get("max_window_layers", layers), "max_window_layers")
        return tuple(None if n < full else size for n in range(layers))
    return tuple(size if _slides(kind) else None for kind in items(kinds, "layer_types"))


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
