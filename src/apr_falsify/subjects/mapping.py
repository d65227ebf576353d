"""MAPPING.yaml: which array of a foreign recording is which stage, and how it lies there.

    schema: apr-falsify/mapping/v1
    runtime: my-port
    tokens: [274, 272, 332]
    stages:
      qkv_matmul:
        from: ["blk.{layer}.q", "blk.{layer}.k", "blk.{layer}.v"]
      attn_scores:
        from: "blk.{layer}.att"
        axes: [heads, keys, tokens]
        layout: [unscaled]

Everything that is not written here is refused or reported, never guessed. The format: ``docs/porting.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apr_falsify.errors import AprFalsifyError, TraceError, UsageError, nearest
from apr_falsify.model.stages import PER_HEAD, SCORES, SQUARES, STAGES, Layout, Scope, stage
from apr_falsify.numerics.arithmetic import FORMATS
from apr_falsify.numerics.operand_rules import stated_rules
from apr_falsify.reading import items, mapping, read_yaml, text, whole
from apr_falsify.subjects import mapping_passes
from apr_falsify.subjects.mapped_parts import Stored
from apr_falsify.subjects.mapping_names import has_field, is_layered, name_of, without_fields
from apr_falsify.subjects.mapping_parts import check_shared, plain_entry
from apr_falsify.subjects.mapping_passes import Padding
from apr_falsify.subjects.own_weights import OwnWeights, own_weights

SCHEMA = "apr-falsify/mapping/v1"
MAPPING_YAML = "MAPPING.yaml"
"""Lies in the folder of the arrays: beside an ``.npz`` or ``.safetensors``, in a directory of ``.npy``."""

QKV_PARTS: tuple[tuple[str, ...], ...] = (("tokens", "q"), ("tokens", "kv"), ("tokens", "kv"))
"""The canonical axes of q, k and v where they lie apart; joined they are qkv_matmul and qkv_bias."""

_JOINED = ("qkv_matmul", "qkv_bias")

BATCH = "batch"
"""The axis of the rows of a batch."""

FACTORS: Mapping[str, tuple[str, ...]] = {
    "q": ("kv_heads", "groups", "head_dim"),
    "kv": ("kv_heads", "head_dim"),
    "mixed": ("kv_heads", "groups", "head_dim"),
    "qkv": ("qkv_heads", "head_dim"),
    "heads": ("kv_heads", "groups"),
}
"""Axis word -> the axes it consists of, the slowest first; query head h is head h % groups of its kv head."""

AXIS_WORDS: tuple[str, ...] = (
    *dict.fromkeys(axis for row in STAGES.values() for axis in row.axes),
    *("keys", "kv_heads", "groups", "head_dim", "qkv_heads", "layers", BATCH, "1"),
)

_QUERIES = ("qkv_matmul", "qkv_bias", "q_post_rope")
_ROTARY = ("qkv_matmul", "qkv_bias", "q_post_rope", "k_post_rope")

LAYOUT_OF: Mapping[Layout, tuple[str, ...]] = {
    Layout.HEAD_MAJOR: PER_HEAD,
    Layout.INTERLEAVED: (*_ROTARY, "q_up", "k_shared", "k_rope"),
    Layout.ROTARY_FIRST: (*_ROTARY, "q_up"),
    Layout.CAUSAL_ZEROED: SQUARES,
    Layout.UNSCALED: SCORES,
    Layout.PADDED_KEYS: SQUARES,
    Layout.LAST_TOKEN: tuple(name for name, row in STAGES.items() if row.axes[0] == "tokens"),
    Layout.TRANSPOSED: tuple(name for name, row in STAGES.items() if len(row.axes) > 1),
    Layout.VISIBLE_ONLY: SQUARES,
    Layout.SCALED: _ROTARY,
    Layout.ROOT_SCALED: _ROTARY,
    Layout.HEAD_SCALED: _QUERIES,
    Layout.CAP_SCALED: _QUERIES,
    Layout.BEFORE_SCALE: ("router_weights", "moe_router"),
}
"""Layout word -> the stages of which it says anything."""

MASKED = "causal-masked"
"""One more word, of attn_scores: the mask is added already; above the diagonal they are no data."""

_BY_AXES = (Layout.HEAD_MAJOR, Layout.TRANSPOSED)
"""Words that say the same as ``axes``; a stage has one or the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMap:
    """Where one stage lies.

    Attributes:
        stage: its name.
        names: the array's name, or those of q, k and v; ``{layer}`` stands for the layer, ``{pass}`` for the
            pass, from 0.
        axes: the axes of each of them, slowest first, in the words of :data:`AXIS_WORDS`.
        layout: what the axes do not say.
        masked: whether the mask was added to the scores before they were stored.
        dtype: the number format of the arrays where they do not tell, ``None`` for their own.
        shards: the axis along which the arrays of ranks lie, or ``sum``; ``None`` where it is not cut.
        by_layer: layer -> their names, where no pattern gives them.
        stored: of each array how it lies where its axes alone do not say that; empty where they do.

    """

    stage: str
    names: tuple[str, ...]
    axes: tuple[tuple[str, ...], ...]
    layout: tuple[Layout, ...] = ()
    masked: bool = False
    dtype: str | None = None
    shards: str | None = None
    by_layer: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    stored: tuple[Stored, ...] = ()

    def name(self, index: int, layer: int | None, which: int | None = None) -> str:
        """Return the name of an array, empty where the layer has none."""
        if self.by_layer:
            return "" if layer is None or layer not in self.by_layer else self.by_layer[layer][index]
        return name_of(self.names[index], layer, which)

    @property
    def by_pass(self) -> bool:
        """Whether there is an array for each pass."""
        return has_field(self.names[0], "pass")

    @property
    def stacked(self) -> bool:
        """Whether one array holds all layers."""
        return "layers" in self.axes[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingFile:
    """What MAPPING.yaml says.

    Attributes:
        path: the file.
        runtime: name of the runtime.
        version: its version.
        dtype: the number format in which it keeps its stages.
        device: where it ran.
        arithmetic: how it computes products, in the words of ``operand_rules.py``.
        prompt: the text that was run.
        tokens: the token ids that were run, or the name of the array that holds them.
        layer: the layer of names without ``{layer}``.
        passes: how many tokens each pass computed, or the name of the array that holds that.
        positions: the position of each token, or the name of the array that holds them.
        padding: which tokens are padding.
        pad_token: the id of padding.
        row: the row of a batch that is the run.
        ranks: how many tensor-parallel ranks left arrays.
        weights: the weights that it multiplied with, ``None`` where it names none.
        stages: where the stages lie.

    """

    path: Path
    runtime: str
    version: str = "unknown"
    dtype: str = "unknown"
    device: str = "unknown"
    arithmetic: str = "unknown"
    prompt: str | None = None
    tokens: tuple[int, ...] | str | None = None
    layer: int | None = None
    passes: tuple[int, ...] | str | None = None
    positions: tuple[int, ...] | str | None = None
    padding: Padding | None = None
    pad_token: int | None = None
    row: int | None = None
    ranks: int | None = None
    weights: OwnWeights | None = None
    stages: tuple[StageMap, ...]


def canonical_axes(name: str) -> tuple[str, ...]:
    """Return the canonical axes of a stage; of scores and weights the second token axis is ``keys``."""
    axes = STAGES[name].axes
    return (*axes[:-1], "keys") if axes.count("tokens") > 1 else axes


def factors(axes: Sequence[str]) -> tuple[str, ...]:
    """Return ``axes`` with compound words written out, without axes of 1, the layers and the batch."""
    return tuple(
        factor for axis in axes if axis not in ("1", "layers", BATCH) for factor in FACTORS.get(axis, (axis,))
    )


def read_mapping(path: Path) -> MappingFile:
    """Read the mapping file at ``path``.

    Raises:
        TraceError: it cannot be read, or says something that cannot be meant; the key is named.

    """
    try:
        data = mapping(read_yaml(path, aliases=True), "the file")
        if data.get("schema") != SCHEMA:
            raise TraceError(f"the schema is {data.get('schema')!r}", expected=SCHEMA)
        _check_keys(data, _FIELDS, "the file")
        if data.get("runtime") is None:
            raise TraceError("it names no runtime", expected="runtime: NAME")
        known = {key: read(data[key], key) for key, read in _FIELDS.items() if data.get(key) is not None}
        del known["schema"]
        return MappingFile(path=path, **{"stages": (), **known})
    except OSError as error:
        raise TraceError(f"cannot be read: {error.strerror or error}", where=path) from error
    except ValueError as error:
        raise TraceError(str(error), where=path) from error
    except AprFalsifyError as error:
        raise TraceError(error.what, where=path, expected=error.expected, remedy=error.remedy) from error


def _check_keys(data: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    for key in data:
        if key not in known:
            raise UsageError(
                f"unknown key {key!r} in {where}", expected=", ".join(known), remedy=nearest(str(key), known)
            )


def _format(value: object, name: str) -> str:
    word = text(value, name)
    if word not in FORMATS:
        raise TraceError(f"{name} is {word!r}", expected=f"{', '.join(FORMATS)}")
    return word


def _arithmetic(value: object, name: str) -> str:
    stated_rules(text(value, name))
    return text(value, name)


def _layer(value: object, name: str) -> int:
    layer = whole(value, name)
    if layer < 0:
        raise TraceError(f"{name} is {layer}", expected="a layer, from 0")
    return layer


def _stages(value: object, name: str) -> tuple[StageMap, ...]:
    found: dict[str, StageMap] = {}
    for key, entry in mapping(value, name).items():
        row = stage(text(key, f"a stage in {name}"))
        if row.name in found:
            raise ValueError(f"{name}: {key} is {row.name}, which is there already")
        found[row.name] = _stage_map(row.name, entry, f"{name}.{key}")
    check_shared((row.stage, row.by_layer or {None: row.names}, row.stored) for row in found.values())
    return tuple(found[row] for row in STAGES if row in found)


_STAGE_KEYS = ("from", "axes", "layout", "dtype", "take", "shards")


def _stage_map(name: str, entry: object, where: str) -> StageMap:
    _check_keys(mapping(entry, where), _STAGE_KEYS, where)
    plain = plain_entry(name, mapping(entry, where), where)
    data = plain.entry
    names = _names(name, data.get("from"), f"{where}.from")
    words = items(data.get("layout", []), f"{where}.layout")
    masked = name in SCORES and MASKED in words
    layout = _layout(name, [word for word in words if not masked or word != MASKED], f"{where}.layout")
    if data.get("axes") is None:
        axes = _usual_axes(name, len(names), layout)
    elif clash := [word for word in _BY_AXES if word in layout]:
        raise TraceError(f"{where}: {clash[0]} is said by its axes", expected="one of the two")
    else:
        axes = _axes(name, data["axes"], len(names), f"{where}.axes")
    found = StageMap(
        stage=name,
        names=names,
        axes=axes,
        layout=tuple(word for word in layout if word not in _BY_AXES),
        masked=masked,
        dtype=None if data.get("dtype") is None else _format(data["dtype"], f"{where}.dtype"),
        shards=mapping_passes.read_shards(data.get("shards"), names, axes, where),
        by_layer=plain.by_layer,
        stored=plain.stored,
    )
    _check_axes(found, f"{where}.axes")
    _check_layers(found, where)
    return found


def _names(name: str, value: object, where: str) -> tuple[str, ...]:
    names = tuple(text(each, where) for each in ([value] if isinstance(value, str) else items(value, where)))
    if len(names) != 1 and (name not in _JOINED or len(names) != 3):
        parts = "one name, or those of q, k and v" if name in _JOINED else "one name"
        raise TraceError(f"{where} has {len(names)} names", expected=f"{parts}")
    for each in names:
        rest = without_fields(each)
        if not each or "{" in rest or "}" in rest:
            expected = "a name with {layer}, {layer+1}, {layer:02}, and {pass} likewise"
            raise TraceError(f"{where} is {each!r}", expected=expected)
    if len({has_field(each, "pass") for each in names}) > 1:
        raise TraceError(f"{where}: only some of q, k and v are per pass", expected="all three, or none")
    return names


def _layout(name: str, words: Sequence[object], where: str) -> tuple[Layout, ...]:
    found = []
    for word in words:
        allowed = [known.value for known in Layout if name in LAYOUT_OF[known]]
        if word not in allowed:
            raise UsageError(
                f"{where}: {word!r} says nothing of {name}",
                expected=", ".join([*allowed, MASKED] if name in SCORES else allowed) or "no layout word",
                remedy=nearest(str(word), allowed),
            )
        if word in found:
            raise ValueError(f"{where}: {word} is there twice")
        found.append(Layout(word))
    return tuple(found)


def _usual_axes(name: str, parts: int, layout: Sequence[Layout]) -> tuple[tuple[str, ...], ...]:
    """Return the axes of a stage that writes none down: canonical ones, changed as the layout words say."""
    if parts == len(QKV_PARTS):
        return QKV_PARTS
    axes = list(canonical_axes(name))
    if Layout.HEAD_MAJOR in layout:
        axes = ["kv_heads" if axes[-1] == "kv" else "heads", "tokens", "head_dim"]
    if Layout.LAST_TOKEN in layout:
        axes.remove("tokens")
    if Layout.TRANSPOSED in layout:
        axes[-2:] = axes[:-3:-1]
    return (tuple(axes),)


def _axes(name: str, value: object, parts: int, where: str) -> tuple[tuple[str, ...], ...]:
    rows = items(value, where)
    if parts == 1:
        rows = [rows]
    if len(rows) != parts or not all(isinstance(row, list) for row in rows):
        raise TraceError(
            f"{where}: a list of axes for each of the {parts} names", expected="[[...], [...], ...]"
        )
    return tuple(tuple(_axis(word, where) for word in items(row, where)) for row in rows)


def _axis(word: object, where: str) -> str:
    if str(word) not in AXIS_WORDS:
        raise UsageError(
            f"{where}: unknown axis {word!r}",
            expected=", ".join(AXIS_WORDS),
            remedy=nearest(str(word), AXIS_WORDS),
        )
    return str(word)


def _check_axes(row: StageMap, where: str) -> None:
    """Refuse axes that no rearrangement brings to the canonical ones."""
    usual = QKV_PARTS if len(row.names) > 1 else (canonical_axes(row.stage),)
    for axes, canonical in zip(row.axes, usual, strict=True):
        wanted = list(factors(canonical))
        if Layout.LAST_TOKEN in row.layout and "tokens" not in axes:
            wanted.remove("tokens")
        if "tokens" in axes and "tokens" not in wanted:
            wanted.append("tokens")  # of all tokens; the last one's row is the stage
        if sorted(factors(axes)) != sorted(wanted) or max(map(axes.count, ("layers", BATCH))) > 1:
            raise TraceError(
                f"{where}: [{', '.join(axes)}] cannot be {row.stage}",
                expected=f"[{', '.join(canonical)}] in any order; q as heads, head_dim, kv as kv_heads ...",
            )


def _check_layers(row: StageMap, where: str) -> None:
    pairs = list(zip(row.names, row.axes, strict=True))
    named, stacked = [is_layered(name) for name, _ in pairs], ["layers" in axes for _, axes in pairs]
    if any(one and other for one, other in zip(named, stacked, strict=True)):
        raise TraceError(f"{where}: {{layer}} in the name and layers in the axes", expected="one of the two")
    if len({*named}) > 1 or len({*stacked}) > 1:
        raise TraceError(f"{where}: only some of q, k and v are per layer", expected="all three, or none")
    if STAGES[row.stage].scope is Scope.MODEL and (named[0] or stacked[0]):
        raise TraceError(f"{where}: {row.stage} exists once", expected="a name without {layer}")


_FIELDS: Mapping[str, Callable[[object, str], Any]] = {
    "schema": text,
    "runtime": text,
    "version": text,
    "dtype": _format,
    "device": text,
    "arithmetic": _arithmetic,
    "prompt": text,
    "layer": _layer,
    **mapping_passes.KEYS,
    "weights": own_weights,
    "stages": _stages,
}
"""Key of the file -> what reads it."""
