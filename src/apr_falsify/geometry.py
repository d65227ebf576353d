"""Model geometry: the sizes and constants of a forward pass, from config.json or GGUF metadata."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from apr_falsify.errors import GeometryError, LayerRangeError, ModelError
from apr_falsify.families import (
    ACTIVATIONS,
    Family,
    Presence,
    Window,
    family,
    family_of_gguf,
    family_of_model_type,
)

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
class Rope:
    """Rotary embedding: base, scaling rule and that rule's parameters, as config.json names them.

    Attributes:
        theta: the base.
        kind: ``default``, ``linear``, ``llama3``, ``yarn`` or ``divided``.
        parameters: the rule's own parameters (``factor``, ``beta_fast`` ...).
        divisors: for ``divided``: what each pair's frequency is divided by (GGUF's ``rope_freqs``).

    """

    theta: float
    kind: str = "default"
    parameters: Mapping[str, float] = field(default_factory=dict)
    divisors: tuple[float, ...] = ()


ROPE_KINDS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
    "divided": (),
}
"""The rotary scaling rules that have a formula here, and the parameters each cannot do without."""


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
        for name, limit in _LIMITS.items():
            value = getattr(self, name)
            if not 1 <= value <= limit:
                raise GeometryError(f"{name} is {value}", expected=f"a whole number from 1 to {limit}")
        if self.heads % self.kv_heads:
            raise GeometryError(f"{self.heads} query heads cannot share {self.kv_heads} kv heads evenly")
        if self.head_dim % 2:
            raise GeometryError(f"head_dim is {self.head_dim}", expected="an even number: RoPE turns pairs")
        if not self.windows:
            object.__setattr__(self, "windows", (None,) * self.layers)
        _check_constants(self)

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
            LayerRangeError: the range reaches beyond the last layer.

        """
        if layers.stop > self.layers:
            raise LayerRangeError(
                f"layers {layers.start}..{layers.stop} reach beyond the model",
                expected=f"a range within 0..{self.layers}",
                remedy=f"--layers {min(layers.start, self.layers - 1)}..{self.layers}",
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
            values = dict(data)
            rope = dict(values["rope"])
            values["rope"] = Rope(**{**rope, "divisors": tuple(rope.get("divisors", ()))})
            values["windows"] = tuple(values["windows"])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise GeometryError(f"the geometry cannot be read: {error}", where=where) from error


def _check_constants(geometry: Geometry) -> None:
    if len(geometry.windows) != geometry.layers:
        raise GeometryError(f"{len(geometry.windows)} attention windows for {geometry.layers} layers")
    if not (math.isfinite(geometry.norm_eps) and geometry.norm_eps >= 0):
        raise GeometryError(f"norm_eps is {geometry.norm_eps}", expected="a small number of at least 0")
    if geometry.activation not in ACTIVATIONS:
        raise GeometryError(
            f"the activation {geometry.activation!r} has no formula here", expected=", ".join(ACTIVATIONS)
        )
    rope = geometry.rope
    if not (math.isfinite(rope.theta) and rope.theta > 0):
        raise GeometryError(f"rope theta is {rope.theta}", expected="a number above 0")
    if rope.kind not in ROPE_KINDS:
        raise GeometryError(f"rope scaling {rope.kind!r} has no formula here", expected=", ".join(ROPE_KINDS))
    if rope.kind == "divided" and len(rope.divisors) != geometry.head_dim // 2:
        raise GeometryError(f"{len(rope.divisors)} rope divisors for {geometry.head_dim // 2} pairs")
    missing = [name for name in ROPE_KINDS[rope.kind] if name not in rope.parameters]
    if missing:
        raise GeometryError(f"rope scaling {rope.kind!r} lacks {', '.join(missing)}")


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
        config = json.loads(path.read_text(encoding="utf-8"))
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
    row = family_of_model_type(str(config.get("model_type")), where)
    try:
        heads = int(config["num_attention_heads"])
        layers = int(config["num_hidden_layers"])
        hidden = int(config["hidden_size"])
        return Geometry(
            family=row.name,
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // max(heads, 1)),
            intermediate=int(config["intermediate_size"]),
            vocab=int(config["vocab_size"]),
            norm_eps=float(config["rms_norm_eps"]),
            rope=_rope_of_config(config),
            activation=str(config.get("hidden_act", "silu")),
            windows=_windows(row, config, layers),
            qkv_bias=_present(row.qkv_bias, config, "attention_bias"),
            output_bias=_present(row.output_bias, config, "attention_bias"),
            mlp_bias=_present(row.mlp_bias, config, "mlp_bias"),
            tied=bool(config.get("tie_word_embeddings", False)),
        )
    except KeyError as error:
        raise GeometryError(f"config.json has no {error}", where=where) from error
    except (TypeError, ValueError) as error:
        raise GeometryError(f"config.json holds a value of the wrong type: {error}", where=where) from error
    except GeometryError as error:
        raise GeometryError(error.what, where=where, expected=error.expected, remedy=error.remedy) from error


def _present(presence: Presence, config: Mapping[str, Any], key: str) -> bool:
    if presence is Presence.CONFIG:
        return bool(config.get(key, False))
    return presence is Presence.ALWAYS


def _windows(row: Family, config: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    size = config.get("sliding_window")
    if row.window is Window.NONE or size is None:
        return (None,) * layers
    if row.window is Window.EVERY_LAYER:
        return (int(size),) * layers
    if not config.get("use_sliding_window", False):
        return (None,) * layers
    kinds = config.get("layer_types")
    if kinds is None:
        full = int(config.get("max_window_layers", layers))
        kinds = ["full_attention" if n < full else "sliding_attention" for n in range(layers)]
    return tuple(int(size) if kind == "sliding_attention" else None for kind in kinds)


def _rope_of_config(config: Mapping[str, Any]) -> Rope:
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = scaling.get("rope_theta", config.get("rope_theta", 10_000.0))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    parameters = {
        key: float(value)
        for key, value in scaling.items()
        if key not in ("rope_theta", "rope_type", "type") and isinstance(value, int | float)
    }
    if kind in ("yarn", "llama3"):
        parameters.setdefault(
            "original_max_position_embeddings", float(config.get("max_position_embeddings", 0))
        )
    return Rope(theta=float(theta), kind=str(kind), parameters=parameters)


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
    architecture = str(metadata.get("general.architecture"))
    row = family_of_gguf(architecture, where)

    def value(key: str) -> Any:
        return metadata[f"{architecture}.{key}"]

    def optional(key: str, default: Any) -> Any:
        return metadata.get(f"{architecture}.{key}", default)

    try:
        heads, hidden = int(value("attention.head_count")), int(value("embedding_length"))
        has = {
            role: row.gguf_weights[role].format(n=0) in tensors for role in ("q_bias", "o_bias", "up_bias")
        }
        return Geometry(
            family=row.name,
            layers=int(value("block_count")),
            hidden=hidden,
            heads=heads,
            kv_heads=int(optional("attention.head_count_kv", heads)),
            head_dim=int(optional("attention.key_length", hidden // max(heads, 1))),
            intermediate=int(value("feed_forward_length")),
            vocab=int(tensors[row.gguf_weights["embed"]][0]),
            norm_eps=float(value("attention.layer_norm_rms_epsilon")),
            rope=_rope_of_gguf(optional, rope_divisors),
            qkv_bias=has["q_bias"],
            output_bias=has["o_bias"],
            mlp_bias=has["up_bias"],
            tied=row.gguf_weights["lm_head"] not in tensors,
        )
    except KeyError as error:
        raise GeometryError(f"the GGUF metadata has no {error}", where=where) from error
    except (TypeError, ValueError) as error:
        raise GeometryError(
            f"the GGUF metadata holds a value of the wrong type: {error}", where=where
        ) from error
    except GeometryError as error:
        raise GeometryError(error.what, where=where, expected=error.expected, remedy=error.remedy) from error


def _rope_of_gguf(optional: Callable[[str, Any], Any], divisors: tuple[float, ...]) -> Rope:
    theta = float(optional("rope.freq_base", 10_000.0))
    if divisors:
        return Rope(theta=theta, kind="divided", divisors=divisors)
    kind = str(optional("rope.scaling.type", "none"))
    if kind == "none":
        return Rope(theta=theta)
    parameters = {"factor": float(optional("rope.scaling.factor", 1.0))}
    original = optional("rope.scaling.original_context_length", None)
    if original is not None:
        parameters["original_max_position_embeddings"] = float(original)
    return Rope(theta=theta, kind=kind, parameters=parameters)
