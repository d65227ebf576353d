"""A foreign recording read as its MAPPING.yaml says: arrays of any name and order become a trace.

What axes say (order, heads apart, axes of 1) is undone here; layout words go into the trace, where
``compare/layout.py`` undoes them as for every other runtime. Values are stored as f32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify import __version__
from apr_falsify.errors import TokensError, TraceError, nearest
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import STAGES, Key, Layout, Scope
from apr_falsify.numerics.arithmetic import FORMATS
from apr_falsify.subjects.adoption import adopted_geometry, adopted_model, adopted_tokens, verify_tokens
from apr_falsify.subjects.all_tokens import EVERY_TOKEN, with_every_token
from apr_falsify.subjects.array_axes import axis_sizes, rearranged, stored_sizes
from apr_falsify.subjects.foreign import BF16_BITS, Dump, ForeignArray, read_dump
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.mapping import (
    MASKED,
    QKV_PARTS,
    MappingFile,
    StageMap,
    canonical_axes,
    factors,
    is_layered,
    name_of,
    read_mapping,
)
from apr_falsify.traces.provenance import Provenance, utc_now
from apr_falsify.traces.trace import StageArray, Trace

F32 = npt.NDArray[np.float32]

FLOATS = ("f16", "bf16", "f32", "f64")
WHOLE = ("i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64")
_OF_WHOLE_NUMBERS = ("moe_router_indices",)

MOST_TOKENS = 1 << 20
"""The longest context that any model has: more ids are none."""

MASKED_BELOW = -1e4
"""What a mask adds to a score is at least this far below: f16 implementations take -65504 or -1e4."""


def read_mapped(target: Target, mapping_path: Path) -> Trace:
    """Read the arrays at ``target`` as the mapping file says.

    Raises:
        TraceError: the file, or the mapping, cannot be trusted or do not belong together.
        TokensError: the token ids are missing, given twice and differently, or not those of the recording.

    """
    dump, said = read_dump(target.path), read_mapping(mapping_path)
    geometry, _ = adopted_geometry(target)
    tokens = _tokens(target, said, dump, geometry)
    reader, stages = _read_stages(dump, said, geometry, len(tokens), target.path)
    unused = reader.unused
    if not stages:
        raise TraceError("it names no stage", where=said.path, expected="stages: {STAGE: {from: NAME}}")
    embedded = stages.get(Key(0, "embedding"))
    rows = None if embedded is None or Layout.LAST_TOKEN in embedded.layout else embedded.data
    return Trace(
        provenance=_provenance(target, said, unused, reader.saved_as),
        geometry=geometry,
        tokens=tokens,
        stages=stages,
        path=target.path,
        tokens_verified=verify_tokens(target, rows, tokens),
    )


def mapped_stages(
    dump: Dump, said: MappingFile, geometry: Geometry, tokens: int, where: Path
) -> tuple[dict[Key, StageArray], dict[str, str]]:
    """Return the stages of ``dump`` as the mapping says, and the format that each was rounded to when saved.

    Args:
        dump: the arrays.
        said: the mapping.
        geometry: the model's geometry.
        tokens: S, the number of tokens that were run.
        where: the recording, for messages.

    Raises:
        TraceError: an array that is not there, has another shape or number format, or is used twice.

    """
    reader, stages = _read_stages(dump, said, geometry, tokens, where)
    return stages, reader.saved_as


def _read_stages(
    dump: Dump, said: MappingFile, geometry: Geometry, tokens: int, where: Path
) -> tuple[_Reader, dict[Key, StageArray]]:
    reader = _Reader(dump, said, geometry, where)
    stages = {key: array for row in said.stages for key, array in reader.stages(row, tokens)}
    return reader, with_every_token(stages, reader.rows, geometry)


def _provenance(
    target: Target, said: MappingFile, unused: tuple[str, ...], saved_as: Mapping[str, str]
) -> Provenance:
    return Provenance(
        runtime=said.runtime,
        version=said.version,
        driver=f"apr-falsify {__version__} (recorded)",
        model=adopted_model(target),
        prompt=said.prompt,
        dtype=said.dtype,
        device=said.device,
        arithmetic=said.arithmetic,
        saved_as=saved_as,
        unused=unused,
        created=utc_now(),
    )


def _tokens(target: Target, said: MappingFile, dump: Dump, geometry: Geometry) -> tuple[int, ...]:
    ids = _said_tokens(said, dump)
    if ids is None:
        return adopted_tokens(target, _embedding_rows(said, dump, geometry), geometry)
    outside = [token for token in ids if not 0 <= token < geometry.vocab]
    if outside:
        raise TokensError(
            f"token {outside[0]} is outside the vocabulary",
            where=said.path,
            expected=f"ids from 0 to {geometry.vocab - 1}",
        )
    known = target.tokens or (None if target.reference is None else target.reference.tokens)
    if known not in (None, ids):
        raise TokensError(
            f"it ran the tokens {list(ids)}, as {said.path} says",
            where=target.path,
            expected=f"{list(known or ())}, as the command line or the oracle's trace says",
            remedy="give the tokens once",
        )
    return ids


def _said_tokens(said: MappingFile, dump: Dump) -> tuple[int, ...] | None:
    if not isinstance(said.tokens, str):
        return said.tokens
    array = _array(dump, said.tokens, said.path, "tokens")
    ids = math.prod(array.shape)
    if array.kind not in WHOLE or array.shape[-1:] != (ids,) or ids > MOST_TOKENS:
        raise TraceError(
            f"{array.name!r} holds no token ids: {array.kind} {list(array.shape)}",
            where=said.path,
            expected=f"at most {MOST_TOKENS} whole numbers in one axis",
        )
    return tuple(int(token) for token in array.load().reshape(-1))


def _embedding_rows(said: MappingFile, dump: Dump, geometry: Geometry) -> npt.NDArray[Any] | None:
    """Return the recorded embedding, flat, for a hint at the tokens that nobody named."""
    row = next((row for row in said.stages if row.stage == "embedding"), None)
    if row is None or row.stacked or factors(row.axes[0]) != ("tokens", "hidden"):
        return None
    array = dump.get(name_of(row.names[0], 0))
    return None if array is None else as_f32(array, row, said)


def _array(dump: Dump, name: str, where: Path, key: str) -> ForeignArray:
    try:
        return dump[name]
    except KeyError:
        raise TraceError(
            f"{key}: there is no array {name!r}",
            where=where,
            expected=f"one of the {len(dump)} arrays of the recording",
            remedy=nearest(name, dump),
        ) from None


class _Reader:
    """Reads stages from arrays, and keeps which arrays it has read for which stage."""

    def __init__(self, dump: Dump, said: MappingFile, geometry: Geometry, where: Path) -> None:
        self.dump = dump
        self.said = said
        self.geometry = geometry
        self.where = where
        self.used: dict[str, str] = {said.tokens: "tokens"} if isinstance(said.tokens, str) else {}
        self.saved_as: dict[str, str] = {}
        self.rows: dict[Key, F32] = {}

    @property
    def unused(self) -> tuple[str, ...]:
        """The names of the arrays that no stage was read from."""
        return tuple(name for name in self.dump if name not in self.used)

    def stages(self, row: StageMap, tokens: int) -> Iterator[tuple[Key, StageArray]]:
        """Yield a stage of every layer that the recording holds."""
        sizes = axis_sizes(self.geometry, tokens)
        for layer in self._layers(row):
            parts = [self._part(row, index, layer, sizes) for index in range(len(row.names))]
            data = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
            layout = row.layout
            if row.masked:
                data, layout = self._unmasked(data, row, layer), (*layout, Layout.CAUSAL_ZEROED)
            yield Key(layer, row.stage), StageArray(data=data, layout=layout)

    def _unmasked(self, data: F32, row: StageMap, layer: int | None) -> F32:
        """Put zeros where the mask was added to the scores, which are no data there."""
        tokens = data.shape[-2]
        future = np.arange(data.shape[-1])[None, :] > np.arange(tokens)[:, None]
        beyond = data[:, future & (np.arange(data.shape[-1]) < tokens)[None, :]]
        if (beyond > MASKED_BELOW).any():
            raise TraceError(
                f"{name_of(row.names[0], layer)!r} holds {float(beyond.max()):g} above the diagonal",
                where=self.said.path,
                expected=f"values up to {MASKED_BELOW:g} or -inf there, as scores with the mask added have",
                remedy=f"take {MASKED} out of its layout",
            )
        return np.where(future, np.float32(0), data)

    def _layers(self, row: StageMap) -> Sequence[int | None]:
        """Return the layers of which the recording holds the stage."""
        scope = STAGES[row.stage].scope
        if scope is Scope.MODEL:
            return [None]
        if scope is Scope.FIRST_LAYER:
            return [0]
        if row.stacked:
            return range(self.geometry.layers)
        if not is_layered(row.names[0]):
            return [self._only_layer(row)]
        held = [
            layer
            for layer in range(self.geometry.layers)
            if any(name_of(name, layer) in self.dump for name in row.names)
        ]
        self._check_beyond(row)
        return held or [0]  # which is not there, and is refused by its name

    def _only_layer(self, row: StageMap) -> int:
        if self.said.layer is None:
            raise TraceError(
                f"stages.{row.stage}.from: {row.names[0]!r} names no layer",
                where=self.said.path,
                expected="{layer} in the name, `layers` in the axes, or `layer: N` for the whole recording",
            )
        if self.said.layer >= self.geometry.layers:
            raise TraceError(
                f"layer {self.said.layer} of a model of {self.geometry.layers} layers", where=self.said.path
            )
        return self.said.layer

    def _check_beyond(self, row: StageMap) -> None:
        """Refuse a recording of more layers than the model has: it is of another model."""
        beyond = name_of(row.names[0], self.geometry.layers)
        if beyond in self.dump:
            raise TraceError(
                f"{beyond!r} is {row.stage} of layer {self.geometry.layers}",
                where=self.where,
                expected=f"layers 0 to {self.geometry.layers - 1}, those of the model",
                remedy="name the model that was recorded",
            )

    def _part(self, row: StageMap, index: int, layer: int | None, sizes: Mapping[str, int]) -> F32:
        name = name_of(row.names[index], layer)
        array = _array(self.dump, name, self.said.path, f"stages.{row.stage}.from")
        user = row.stage if len(row.names) == 1 else f"{'qkv'[index]} of {row.stage}"
        taken = self.used.setdefault(name, user)
        if taken != user:
            raise TraceError(
                f"the array {name!r} is {taken} and {user}", where=self.said.path, expected="one stage"
            )
        axes = row.axes[index]
        shape = stored_sizes(row, axes, sizes, array.shape)
        if array.shape != shape:
            raise TraceError(
                f"{name!r} has the shape {list(array.shape)}",
                where=self.where,
                expected=f"{list(shape)}: [{', '.join(axes)}] of {row.stage}, as {self.said.path.name} says",
                remedy=_remedy(array.shape, shape),
            )
        values = as_f32(array, row, self.said).reshape(shape)
        self._note_format(row, _kind(array, row, self.said))
        if "layers" in axes:
            values = np.asarray(values.take(layer or 0, axis=axes.index("layers")))
            axes = tuple(axis for axis in axes if axis != "layers")
        usual = QKV_PARTS[index] if len(row.names) > 1 else canonical_axes(row.stage)
        if Layout.LAST_TOKEN in row.layout:
            usual = tuple(axis for axis in usual if axis != "tokens")
        if row.stage in EVERY_TOKEN and "tokens" in axes:
            self.rows[Key(layer, row.stage)] = rearranged(values, axes, ("tokens", *usual), sizes)
        return rearranged(values, axes, usual, sizes)

    def _note_format(self, row: StageMap, kind: str) -> None:
        """Record in which format a stage was saved, unless the run declares that it computed in it."""
        own, coarsest = (FORMATS.get(name) for name in (self.said.dtype, self.saved_as.get(row.stage, "f32")))
        found = FORMATS.get(kind)
        if found is None or coarsest is None or found.unit_roundoff <= coarsest.unit_roundoff:
            return
        if own is None or own.unit_roundoff < found.unit_roundoff:
            self.saved_as[row.stage] = kind


def _remedy(found: Sequence[int], expected: Sequence[int]) -> str:
    """Say what to do about another shape than is expected; a batch is distinguished from other mistakes."""
    rest = tuple(expected[1:] if expected[:1] == (1,) else expected)
    if tuple(found[1:]) == rest and len(rest) and found[0] > 1:
        return f"it looks like a batch of {found[0]}: save one row of it"
    return "correct the axes, or name the model and the tokens that were run"


def as_f32(array: ForeignArray, row: StageMap, said: MappingFile) -> F32:
    """Return an array's values, flat, exactly or, from f64, rounded to f32.

    Raises:
        TraceError: another number format than declared, none that fits a stage, or beyond the range of f32.

    """
    kind = _kind(array, row, said)
    values = array.load().reshape(-1)
    if kind == "bf16":
        wide = values.view("<u2").astype(np.uint32)
        wide <<= np.uint32(16)  # in place: a large array is not three times in memory
        return wide.view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # a NaN that signals is a NaN all the same
        found: F32 = values.astype(np.float32)
    if kind == "f64" and bool((np.isinf(found) & np.isfinite(values)).any()):
        raise TraceError(
            f"{array.name!r} has values beyond the range of f32",
            where=said.path,
            expected="values below 3.4e38, or infinite ones",
        )
    return found


def _kind(array: ForeignArray, row: StageMap, said: MappingFile) -> str:
    bits = array.kind in BF16_BITS
    stated = row.dtype or ("bf16" if bits and said.dtype == "bf16" else None)
    if row.stage in _OF_WHOLE_NUMBERS and array.kind in WHOLE and stated is None:
        return array.kind
    if stated == "bf16" and bits:
        return "bf16"
    if array.kind in FLOATS and stated in (None, array.kind):
        return array.kind
    raise TraceError(
        f"{array.name!r} holds {array.kind}",
        where=said.path,
        expected=f"{stated}, as the mapping says" if stated else ", ".join(FLOATS),
        remedy="dtype: bf16, where these are its bits" if bits else "write the stage as f32",
    )
