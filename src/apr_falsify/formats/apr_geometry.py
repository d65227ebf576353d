"""Model geometry from the metadata of an .apr file, and how the file names its tensors.

The keys are those of ``AprV2Metadata`` (crate ``apr-format``, ``src/v2/header_impl.rs``) with the other
spellings that its ``canonicalize_hf_aliases`` lists: the Q4_K writer of ``apr`` 0.72.3 uses some of them.
What the metadata has no key for is not in the file: a rotary scaling rule and a sliding window are lost.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from typing import Any

from apr_falsify.errors import AprFalsifyError, GeometryError, UnknownFamilyError
from apr_falsify.model.families import FAMILIES, family_of_model_type
from apr_falsify.model.family import Family
from apr_falsify.model.rope import Rope
from apr_falsify.model.shape import Geometry
from apr_falsify.reading import number, text, whole

_SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_dim", "d_model", "n_embd"),
    "num_layers": ("num_hidden_layers", "n_layers", "n_layer"),
    "num_heads": ("num_attention_heads", "n_heads", "n_head"),
    "num_kv_heads": ("num_key_value_heads", "n_kv_heads"),
    "intermediate_size": ("ffn_dim", "intermediate_dim", "n_inner"),
}
"""Key -> how else it is spelt."""

_LOST = "import the model again with apr import: apr convert and apr quantize lose the geometry"


class HeadsError(GeometryError):
    """Metadata whose heads are not those of the tensors.

    Attributes:
        geometry: what the metadata states.

    """

    def __init__(self, what: str, geometry: Geometry, *, expected: str, remedy: str) -> None:
        super().__init__(what, expected=expected, remedy=remedy)
        self.geometry = geometry


def apr_names(row: Family, tensors: Collection[str]) -> Mapping[str, str]:
    """Return role -> template of the tensor's name, HuggingFace's or GGUF's, whichever the file has.

    A file may mix both: apr adds ``lm_head.weight`` to tensors that keep GGUF's names.
    """
    return {
        role: gguf if (gguf := row.gguf_weights.get(role, name)).format(n=0) in tensors else name
        for role, name in row.weights.items()
    }


def geometry_of_apr(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[int, ...]],
    rope_divisors: tuple[float, ...] = (),
    where: object = None,
) -> Geometry:
    """Return the geometry that an .apr file describes.

    Args:
        metadata: the file's metadata.
        tensors: name -> shape, rows first.
        rope_divisors: the content of the tensor ``rope_freqs.weight``, where there is one.
        where: the file, for messages.

    Raises:
        UnknownFamilyError: an architecture whose constants .apr metadata cannot state.
        HeadsError: heads that are not those of the tensors.
        GeometryError: a size is missing, contradictory or absurd.

    """
    try:
        row = _family(text(metadata.get("architecture"), "architecture"))
        return _geometry(row, metadata, tensors, rope_divisors)
    except ValueError as error:
        raise GeometryError(f"the metadata holds an unusable value: {error}", where=where) from error
    except AprFalsifyError as error:
        raise error.at(where) from None


def _family(architecture: str) -> Family:
    row = family_of_model_type(architecture)
    if not row.in_apr:
        raise UnknownFamilyError(
            f"the constants of a {row.title} model are not in an .apr file",
            expected="one of " + ", ".join(each.name for each in FAMILIES if each.in_apr),
            remedy="replay with the oracle's weights: --weights oracle",
        )
    return row


def _geometry(
    row: Family,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[int, ...]],
    rope_divisors: tuple[float, ...],
) -> Geometry:
    names = apr_names(row, tensors)
    heads, hidden = _size(metadata, "num_heads"), _size(metadata, "hidden_size")
    kv_heads, head_dim = _size(metadata, "num_kv_heads", heads), metadata.get("head_dim")
    has = {role: names[role].format(n=0) in tensors for role in ("q_bias", "o_bias", "up_bias", "lm_head")}
    theta = _constant(metadata, "rope_theta")
    geometry = Geometry(
        family=row.name,
        layers=_size(metadata, "num_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=hidden // max(heads, 1) if head_dim is None else head_dim,
        intermediate=_size(metadata, "intermediate_size"),
        vocab=_shape(tensors, names["embed"])[0],
        norm_eps=_constant(metadata, "rms_norm_eps"),
        rope=Rope(theta=theta, kind="divided" if rope_divisors else "default", divisors=rope_divisors),
        qkv_bias=has["q_bias"],
        output_bias=has["o_bias"],
        mlp_bias=has["up_bias"],
        tied=not has["lm_head"],
    )
    _check_heads(geometry, tensors, names)
    return geometry


def _stated(metadata: Mapping[str, Any], key: str) -> Any:
    """Return the value of ``key`` in any of its spellings, which must agree."""
    found = {
        spelling: metadata[spelling]
        for spelling in (key, *_SPELLINGS.get(key, ()))
        if metadata.get(spelling) is not None
    }
    if not found:
        raise GeometryError(f"the metadata has no {key}", remedy=_LOST)
    value, *others = found.values()
    if any(other != value for other in others):
        raise GeometryError(
            "the metadata contradicts itself: " + ", ".join(f"{name} {found[name]!r}" for name in found)
        )
    return value


def _constant(metadata: Mapping[str, Any], key: str) -> float:
    """Return a number as apr holds it: its metadata's constants are f32, written with as few digits as do."""
    value = number(_stated(metadata, key), key)
    try:
        (held,) = struct.unpack("<f", struct.pack("<f", value))
    except OverflowError as error:
        raise ValueError(f"{key} is {value}, beyond f32") from error
    return float(held)


def _size(metadata: Mapping[str, Any], key: str, otherwise: int | None = None) -> int:
    spellings = (key, *_SPELLINGS.get(key, ()))
    if otherwise is not None and all(metadata.get(spelling) is None for spelling in spellings):
        return otherwise
    return whole(_stated(metadata, key), key)


def _shape(tensors: Mapping[str, tuple[int, ...]], template: str) -> tuple[int, ...]:
    name = template.format(n=0)
    if name not in tensors:
        raise GeometryError(f"the file has no tensor {name}")
    return tensors[name]


def _check_heads(
    geometry: Geometry, tensors: Mapping[str, tuple[int, ...]], names: Mapping[str, str]
) -> None:
    """Refuse heads that are not those of the tensors: a file whose geometry was guessed."""
    for role, count in (("q", geometry.heads), ("k", geometry.kv_heads)):
        shape = _shape(tensors, names[role])
        if shape[0] != count * geometry.head_dim:
            raise HeadsError(
                f"the metadata says {count} {role} heads of {geometry.head_dim} channels, "
                f"{names[role].format(n=0)} has {shape[0]} rows",
                geometry,
                expected=f"{count * geometry.head_dim} rows",
                remedy=_LOST,
            )
