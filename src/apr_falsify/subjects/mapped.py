"""A foreign recording read as its MAPPING.yaml says: arrays of any name and order become a trace.

What axes say (order, heads apart, axes of 1) is undone here; layout words go into the trace, where
``compare/layout.py`` undoes them as for every other runtime. Values are stored as f32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify import __version__
from apr_falsify.errors import PassesError, TokensError, TraceError
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import SCORES, SQUARES, STAGES, Key, Layout, Scope
from apr_falsify.numerics.arithmetic import FORMATS
from apr_falsify.subjects.adoption import adopted_geometry, adopted_model, adopted_tokens, verify_tokens
from apr_falsify.subjects.all_tokens import EVERY_TOKEN, with_every_token
from apr_falsify.subjects.array_axes import as_sized, axis_sizes, rearranged, stored_sizes
from apr_falsify.subjects.dumps import read_dump
from apr_falsify.subjects.foreign import Dump
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.mapped_arrays import F32, as_f32, kind_of, remedy_of
from apr_falsify.subjects.mapped_parts import unfolded_array
from apr_falsify.subjects.mapped_passes import (
    RecordedRows,
    named_array,
    plain_rows,
    recorded_rows,
    said_tokens,
    shown_padding,
    with_context,
)
from apr_falsify.subjects.mapping import (
    BATCH,
    MASKED,
    QKV_PARTS,
    MappingFile,
    StageMap,
    canonical_axes,
    factors,
    read_mapping,
)
from apr_falsify.subjects.mapping_names import is_layered
from apr_falsify.subjects.mapping_passes import Padding
from apr_falsify.subjects.ranks import of_all_ranks
from apr_falsify.traces.provenance import Provenance, utc_now
from apr_falsify.traces.trace import StageArray, Trace

_READ_BY_ATTENTION = ("k_post_rope", "qkv_bias", "qkv_matmul")

MASKED_BELOW = -1e4
"""What a mask adds to a score is at least this far below: f16 implementations take -65504 or -1e4."""


def read_mapped(target: Target, mapping_path: Path) -> Trace:
    """Read the arrays at ``target`` as the mapping file says.

    Raises:
        TraceError: the file, or the mapping, cannot be trusted or do not belong together.
        TokensError: the token ids are missing, given twice and differently, or not those of the recording.

    """
    saved, said = read_dump(target.path), read_mapping(mapping_path)
    dump = of_all_ranks(saved, said)
    geometry, _ = adopted_geometry(target)
    tokens = _tokens(target, said, dump, geometry)
    rows = recorded_rows(target, said, dump, tokens)
    reader, stages = _read_stages(dump, said, geometry, rows, target.path)
    if said.padding is None and rows.passes.plain and (pads := shown_padding(tokens, stages)):
        said = replace(said, padding=Padding(side="left", count=pads))
        rows = recorded_rows(target, said, dump, tokens)
        reader, stages = _read_stages(dump, said, geometry, rows, target.path)
    tokens = rows.tokens
    unused = reader.unused
    if not stages:
        raise TraceError("it names no stage", where=said.path, expected="stages: {STAGE: {from: NAME}}")
    embedded = stages.get(Key(0, "embedding"))
    embedding = None if embedded is None or Layout.LAST_TOKEN in embedded.layout else embedded.data
    return Trace(
        provenance=_provenance(target, said, unused, reader.saved_as),
        geometry=geometry,
        tokens=tokens,
        stages=stages,
        path=target.path,
        tokens_verified=verify_tokens(target, embedding, tokens, rows.passes),
        in_passes=None if rows.passes.plain else rows.passes,
        batch=reader.other_rows(stages),
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
    reader, stages = _read_stages(dump, said, geometry, plain_rows(tokens), where)
    return stages, reader.saved_as


def _read_stages(
    dump: Dump, said: MappingFile, geometry: Geometry, rows: RecordedRows, where: Path
) -> tuple[_Reader, dict[Key, StageArray]]:
    reader = _Reader(dump, said, geometry, rows, where)
    stages = {key: array for row in said.stages for key, array in reader.stages(row)}
    order = rows.order[rows.unseen :] - rows.unseen
    every = {key: values[order] for key, values in reader.every_token.items()}
    return reader, with_every_token(stages, every, geometry)


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
    ids = said_tokens(said, dump)
    if ids is None:
        return adopted_tokens(target, _embedding_rows(said, dump, geometry), geometry)
    ids = with_context(target, said, dump, ids)
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


def _embedding_rows(said: MappingFile, dump: Dump, geometry: Geometry) -> npt.NDArray[Any] | None:
    """Return the recorded embedding, flat, for a hint at the tokens that nobody named."""
    row = next((row for row in said.stages if row.stage == "embedding"), None)
    if row is None or row.stacked or row.by_pass or factors(row.axes[0]) != ("tokens", "hidden"):
        return None
    array = dump.get(row.name(0, 0))
    return None if array is None else as_f32(array, row, said)


class _Reader:
    """Reads stages from arrays, and keeps which arrays it has read for which stage."""

    def __init__(
        self, dump: Dump, said: MappingFile, geometry: Geometry, rows: RecordedRows, where: Path
    ) -> None:
        self.dump = dump
        self.said = said
        self.geometry = geometry
        self.rows = rows
        self.where = where
        self.used = _used_beside_stages(said)
        self.saved_as: dict[str, str] = {}
        self.batch = 1
        self.forgotten: set[Key] = set()
        self.every_token: dict[Key, F32] = {}

    @property
    def unused(self) -> tuple[str, ...]:
        """The names of the arrays that no stage was read from."""
        return tuple(name for name in self.dump if name not in self.used)

    def stages(self, row: StageMap) -> Iterator[tuple[Key, StageArray]]:
        """Yield a stage of every layer that the recording holds."""
        for layer in self._layers(row):
            parts = [self._part(row, index, layer) for index in range(len(row.names))]
            data = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
            if Layout.LAST_TOKEN not in row.layout:
                data = self.rows.ordered(data, row.stage)
            layout = row.layout
            if Key(layer, row.stage) in self.forgotten and row.stage in SCORES:
                layout = tuple(dict.fromkeys((*layout, Layout.VISIBLE_ONLY)))
            if row.masked:
                data, layout = self._unmasked(data, row, layer), (*layout, Layout.CAUSAL_ZEROED)
            yield Key(layer, row.stage), StageArray(data=data, layout=layout)

    def other_rows(self, stages: Mapping[Key, StageArray]) -> dict[int, dict[Key, F32]]:
        """Return the keys and values of the other rows of a batch, where they lie in canonical axes alone."""
        found: dict[int, dict[Key, F32]] = {}
        for other in (row for row in range(self.batch) if row != self.rows.row):
            reader = _Reader(self.dump, self.said, self.geometry, replace(self.rows, row=other), self.where)
            for row in self.said.stages:
                if row.stage in _READ_BY_ATTENTION and not row.layout:
                    found.setdefault(other, {}).update(
                        {key: array.data for key, array in reader.stages(row) if key in stages}
                    )
        return found

    def _unmasked(self, data: F32, row: StageMap, layer: int | None) -> F32:
        """Put zeros where the mask was added to the scores, which are no data there."""
        passes = self.rows.passes
        seen, met = (mask[passes.unseen :] for mask in (passes.visible(None), passes.computed()))
        beyond = data[:, :, : passes.tokens][:, met & ~seen]
        if (beyond > MASKED_BELOW).any():
            raise TraceError(
                f"{row.name(0, layer, self.rows.first_pass)!r} holds {float(beyond.max()):g} "
                "above the diagonal",
                where=self.said.path,
                expected=f"values up to {MASKED_BELOW:g} or -inf there, as scores with the mask added have",
                remedy=f"take {MASKED} out of its layout",
            )
        hidden = np.zeros(data.shape[-2:], dtype=np.bool_)
        hidden[:, : passes.tokens] = ~seen
        return np.where(hidden, np.float32(0), data)

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
            if any(row.name(at, layer, self.rows.first_pass) in self.dump for at in range(len(row.names)))
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
        beyond = row.name(0, self.geometry.layers, self.rows.first_pass)
        if beyond in self.dump:
            raise TraceError(
                f"{beyond!r} is {row.stage} of layer {self.geometry.layers}",
                where=self.where,
                expected=f"layers 0 to {self.geometry.layers - 1}, those of the model",
                remedy="name the model that was recorded",
            )

    def _part(self, row: StageMap, index: int, layer: int | None) -> F32:
        """Return a stage, or its part of q, k or v: all recorded rows, in canonical axes."""
        rows, total = self.rows, sum(self.rows.sizes)
        if not row.by_pass:
            return self._array(row, index, layer, None, (total - rows.unseen, total))
        ends = np.cumsum(rows.sizes)
        each = [
            self._array(row, index, layer, number, (rows.sizes[number], int(ends[number])))
            for number in range(rows.first_pass, len(rows.sizes))
        ]
        axes = QKV_PARTS[index] if len(row.names) > 1 else canonical_axes(row.stage)
        if "tokens" not in axes or Layout.LAST_TOKEN in row.layout:
            return each[-1]
        if row.stage in SQUARES:  # a pass has the keys up to its own end; beyond it there are none
            each = [np.pad(x, ((0, 0), (0, 0), (0, total - x.shape[-1]))) for x in each]
        return np.concatenate(each, axis=axes.index("tokens"))

    def _array(
        self, row: StageMap, index: int, layer: int | None, number: int | None, shape: tuple[int, int]
    ) -> F32:
        """Return one array in canonical axes: of the pass ``number``, with so many tokens and keys."""
        name = row.name(index, layer, number)
        array = named_array(self.dump, name, self.said, f"stages.{row.stage}.from")
        user = row.stage if len(row.names) == 1 else f"{'qkv'[index]} of {row.stage}"
        taken = self.used.setdefault(name, user)
        if taken != user and not row.stored:
            raise TraceError(
                f"the array {name!r} is {taken} and {user}", where=self.said.path, expected="one stage"
            )
        axes = row.axes[index]
        keys = shape[1] if number is None else self._keys(axes, array.shape, layer, shape)
        part = index if len(row.names) > 1 else None
        sizes = {**as_sized(axis_sizes(self.geometry, shape[0]), row.stage, part), "keys": keys}
        if row.stored:
            array = unfolded_array(array, row.stored[index], sizes)
        if self.said.row is not None and len(array.shape) == len(axes) + 1 and BATCH not in axes:
            axes = (BATCH, *axes)
        expected = stored_sizes(row, axes, sizes, array.shape)
        if array.shape != expected:
            raise TraceError(
                f"{name!r} has the shape {list(array.shape)}",
                where=self.where,
                expected=f"{list(expected)}: [{', '.join(axes)}] of {row.stage}, "
                f"as {self.said.path.name} says",
                remedy=remedy_of(array.shape, expected),
            )
        values = as_f32(array, row, self.said).reshape(expected)
        self._note_format(row, kind_of(array, row, self.said))
        row_of = self._row(dict(zip(axes, expected, strict=True)).get(BATCH, 1))
        values, axes = self._without(values, axes, "layers", layer or 0)
        values, axes = self._without(values, axes, BATCH, row_of)
        if number is not None and "keys" in axes:
            values = values.take(range(keys), axis=axes.index("keys"))
        usual = QKV_PARTS[index] if len(row.names) > 1 else canonical_axes(row.stage)
        if Layout.LAST_TOKEN in row.layout:
            usual = tuple(axis for axis in usual if axis != "tokens")
        last = -1 if Layout.LAST_TOKEN in row.layout else self.rows.last
        if row.stage in EVERY_TOKEN and "tokens" in axes:
            every = rearranged(values, axes, ("tokens", *usual), sizes)
            before = self.every_token.get(key := Key(layer, row.stage), every[:0])
            self.every_token[key] = np.concatenate((before, every))
        values = rearranged(values, axes, usual, sizes, last)
        if keys == shape[1] or row.stage not in SQUARES:
            return values
        self.forgotten.add(Key(layer, row.stage))
        return np.pad(values, ((0, 0), (0, 0), (shape[1] - keys, 0)))

    def _keys(
        self, axes: Sequence[str], found: Sequence[int], layer: int | None, shape: tuple[int, int]
    ) -> int:
        """Return how many keys an array of a pass holds: all, or the last ones that a window lets be seen."""
        window = None if layer is None else self.geometry.windows[layer]
        if window is None or "keys" not in axes or len(found) < len(axes):
            return shape[1]
        keys = found[len(found) - len(axes) + list(axes).index("keys")]
        return keys if min(shape[1], window - 1 + shape[0]) <= keys < shape[1] else shape[1]

    def _row(self, rows: int) -> int:
        """Return the row of a batch of ``rows`` that is the run."""
        if self.said.row is None and rows > 1:
            raise PassesError(
                f"a batch of {rows} rows", where=self.said.path, expected="`row: N`: the row to be compared"
            )
        self.batch = max(self.batch, rows)
        if rows > 1 and self.rows.row >= rows:
            raise PassesError(
                f"row {self.rows.row} of a batch of {rows}", where=self.said.path, expected=f"0 to {rows - 1}"
            )
        return self.rows.row if rows > 1 else 0

    @staticmethod
    def _without(values: F32, axes: tuple[str, ...], axis: str, index: int) -> tuple[F32, tuple[str, ...]]:
        """Return one entry of an axis, and the axes that are left."""
        if axis not in axes:
            return values, axes
        left = tuple(each for each in axes if each != axis)
        return np.asarray(values.take(index, axis=axes.index(axis))), left

    def _note_format(self, row: StageMap, kind: str) -> None:
        """Record in which format a stage was saved, unless the run declares that it computed in it."""
        own, coarsest = (FORMATS.get(name) for name in (self.said.dtype, self.saved_as.get(row.stage, "f32")))
        found = FORMATS.get(kind)
        if found is None or coarsest is None or found.unit_roundoff <= coarsest.unit_roundoff:
            return
        if own is None or own.unit_roundoff < found.unit_roundoff:
            self.saved_as[row.stage] = kind


def _used_beside_stages(said: MappingFile) -> dict[str, str]:
    """Return the arrays that no stage is read from: name -> what it holds."""
    mask = None if said.padding is None else said.padding.mask
    named = {"tokens": said.tokens, "passes": said.passes, "positions": said.positions, "padding": mask}
    return {name: key for key, name in named.items() if isinstance(name, str)}
