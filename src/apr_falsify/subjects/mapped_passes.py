"""Which rows of a foreign recording are which tokens: passes, positions, padding, and the row of a batch.

In canonical form padding comes first (``model/passes.py``), wherever the port has it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import PassesError, TokensError, TraceError, nearest
from apr_falsify.model.passes import Passes, check_sum
from apr_falsify.model.stages import SQUARES, STAGES, Key, Layout
from apr_falsify.subjects.foreign import Dump, ForeignArray
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.mapped_arrays import MOST_TOKENS, WHOLE
from apr_falsify.subjects.mapping import BATCH, MappingFile, StageMap
from apr_falsify.subjects.mapping_names import name_of
from apr_falsify.traces.trace import StageArray

Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRows:
    """How the rows of a recording's arrays are its tokens.

    Attributes:
        tokens: the token ids in canonical order.
        sizes: how many tokens each pass computed, as they lie in the arrays, padding included.
        first_pass: the first pass that was recorded.
        order: for each canonical token its place in the arrays of the whole sequence.
        passes: the passes in canonical form.
        row: the row of a batch.

    """

    tokens: tuple[int, ...]
    sizes: tuple[int, ...]
    first_pass: int
    order: Indices
    passes: Passes
    row: int

    @property
    def last(self) -> int:
        """The last token's place among the recorded rows, counted from their end."""
        return int(self.order[-1]) - len(self.order)

    @property
    def unseen(self) -> int:
        """How many tokens the arrays lack, which earlier passes computed."""
        return sum(self.sizes[: self.first_pass])

    def ordered(self, values: npt.NDArray[np.float32], stage: str) -> npt.NDArray[np.float32]:
        """Return a stage with tokens and keys in canonical order; ``values`` has the recorded rows."""
        if np.array_equal(self.order, np.arange(len(self.order))):
            return values
        axes = STAGES[stage].axes
        if "tokens" in axes and values.ndim == len(axes):
            values = values.take(self.order[self.unseen :] - self.unseen, axes.index("tokens"))
        return values.take(self.order, -1) if stage in SQUARES else values


def plain_rows(tokens: int) -> RecordedRows:
    """Return the rows of a recording of ``tokens`` tokens, whatever they are, that were computed at once."""
    return RecordedRows(
        tokens=(0,) * tokens,
        sizes=(tokens,),
        first_pass=0,
        order=np.arange(tokens),
        passes=Passes.whole(tokens),
        row=0,
    )


def named_array(dump: Dump, name: str, said: MappingFile, key: str) -> ForeignArray:
    """Return the array that a key of the mapping names.

    Raises:
        TraceError: there is none of that name.

    """
    try:
        return dump[name]
    except KeyError:
        raise TraceError(
            f"{key}: there is no array {name!r}",
            where=said.path,
            expected=f"one of the {len(dump)} arrays of the recording",
            remedy=nearest(name, dump),
        ) from None


def said_tokens(said: MappingFile, dump: Dump) -> tuple[int, ...] | None:
    """Return the token ids that the mapping or the recording says, padding included."""
    if not isinstance(said.tokens, str):
        return said.tokens
    return tuple(_numbers(named_array(dump, said.tokens, said, "tokens"), said, "tokens", "token ids"))


def _numbers(array: ForeignArray, said: MappingFile, key: str, what: str) -> list[int]:
    """Return an array of one axis of whole numbers; of a batch its row."""
    shape, kinds = array.shape, (*WHOLE, "bool") if key == "padding" else WHOLE
    row = said.row if said.row is not None and len(shape) == 2 else None
    count = shape[-1] if row is not None else math.prod(shape)
    if key == "tokens" and row is None and array.kind in kinds and len(shape) == 2 and shape[0] > 1:
        raise PassesError(
            f"{array.name!r} holds the token ids of {shape[0]} rows of a batch",
            where=said.path,
            expected="`row: N`: the row that is to be compared",
        )
    if array.kind not in kinds or shape[-1:] != (count,) or count > MOST_TOKENS:
        raise TraceError(
            f"{array.name!r} holds no {what}: {array.kind} {list(shape)}",
            where=said.path,
            expected=f"at most {MOST_TOKENS} whole numbers in one axis",
        )
    values = array.load().reshape(shape)
    if row is not None:
        if row >= shape[0]:
            raise PassesError(
                f"row {row} of a batch of {shape[0]}", where=said.path, expected=f"0 to {shape[0] - 1}"
            )
        values = values[row]
    return [int(value) for value in values.reshape(-1)]


def _numbers_of(value: tuple[int, ...] | str | None, said: MappingFile, dump: Dump, key: str) -> list[int]:
    if not isinstance(value, str):
        return list(value or ())
    return _numbers(named_array(dump, value, said, key), said, key, key)


def recorded_rows(target: Target, said: MappingFile, dump: Dump, tokens: tuple[int, ...]) -> RecordedRows:
    """Return how the rows of a recording are its tokens.

    Args:
        target: what was recorded; passes that the user gave count where the mapping says none.
        said: the mapping.
        dump: the arrays.
        tokens: the token ids as the port has them, padding included.

    Raises:
        PassesError: passes that do not add up, positions or padding that cannot be.
        TraceError: an array that is not there, or holds something else.

    """
    count = len(tokens)
    try:
        sizes = _sizes(target, said, dump, count)
        sizes, first = _recorded(said, dump, sizes, count)
        pads = _pads(said, dump, tokens)
        order = np.concatenate((np.flatnonzero(pads), np.flatnonzero(~pads)))
        positions = _numbers_of(said.positions, said, dump, "positions")
        if positions and len(positions) != count:
            positions = _of_recorded(positions, sum(sizes[first:]), count)
        passes = Passes(
            sizes=_canonical_sizes(sizes, pads),
            positions=tuple(positions[at] for at in order) if positions else (),
            padding=int(np.count_nonzero(pads)),
            unseen=sum(sizes[:first]),
        )
    except PassesError as error:
        raise error.at(said.path) from None
    return RecordedRows(
        tokens=tuple(tokens[at] for at in order),
        sizes=sizes,
        first_pass=first,
        order=order,
        passes=passes,
        row=said.row or 0,
    )


def _of_recorded(positions: list[int], recorded: int, count: int) -> list[int]:
    """Return positions of all tokens from those of the recorded ones alone: the earlier ones precede them."""
    if len(positions) != recorded:
        raise PassesError(f"{len(positions)} positions for {count} tokens", expected="one a token")
    return [*range(count - recorded), *positions]


def _canonical_sizes(sizes: Sequence[int], pads: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    """Return the sizes of the passes once all padding has moved to the first of them."""
    ends = list(itertools.accumulate(sizes))
    own = [int(np.count_nonzero(~pads[end - size : end])) for size, end in zip(sizes, ends, strict=True)]
    kept = [size for size in own if size]
    if not kept:
        raise PassesError("every token is padding", expected="a token that is none")
    kept[0] += int(np.count_nonzero(pads))
    return tuple(kept)


def _sizes(target: Target, said: MappingFile, dump: Dump, count: int) -> tuple[int, ...]:
    own = tuple(_numbers_of(said.passes, said, dump, "passes"))
    given = target.passes
    if own and given and own != given:
        raise PassesError(
            f"it ran in passes of {list(own)} tokens, as its mapping says",
            expected=f"{list(given)}, as the command line says",
            remedy="leave --passes out",
        )
    sizes = own or given or (count,)
    check_sum(sizes, count)
    return sizes


def _recorded(
    said: MappingFile, dump: Dump, sizes: tuple[int, ...], count: int
) -> tuple[tuple[int, ...], int]:
    """Return the sizes of the passes, and the first one of which there is anything."""
    by_pass = [row for row in said.stages if row.by_pass]
    if by_pass and said.passes is None and len(sizes) == 1:
        raise PassesError(
            f"stages.{by_pass[0].stage} is there for each pass, and nothing says which they are",
            expected="passes: [13, 1, 1], the tokens of each",
        )
    held = [_held_passes(row, dump, len(sizes)) for row in by_pass]
    firsts = {passes.start for passes in held if passes}
    if len(firsts) > 1:
        raise PassesError(
            f"some stages were recorded from pass {min(firsts)} on, some from pass {max(firsts)} on",
            expected="all stages of a pass, or none",
        )
    if firsts:
        return sizes, firsts.pop()
    rows = next((n for row in said.stages if (n := _rows_of(row, dump)) is not None), count)
    if rows == 1 < count and len(sizes) == 1:
        return (count - 1, 1), 1  # the last token alone, whose keys are those of all
    for first in range(len(sizes)):
        if sum(sizes[first:]) == rows:
            return sizes, first
    return sizes, 0  # the shapes of the arrays will tell


def _held_passes(row: StageMap, dump: Dump, count: int) -> range | None:
    """Return which passes a stage was recorded of, in whatever layer; it may lack the first ones alone."""
    layers = range(1 << 10)
    layer = next((n for n in layers for p in range(count) if name_of(row.names[0], n, p) in dump), None)
    if layer is None:
        return None
    held = [index for index in range(count) if name_of(row.names[0], layer, index) in dump]
    if held != list(range(held[0], count)):
        missing = next(index for index in range(held[0], count) if index not in held)
        raise PassesError(
            f"there is no {name_of(row.names[0], layer, missing)!r}, pass {missing} of {row.stage}",
            expected=f"{count} passes; the first ones alone may be left out",
        )
    if name_of(row.names[0], layer, count) in dump:
        raise PassesError(
            f"{name_of(row.names[0], layer, count)!r} is of pass {count}",
            expected=f"the passes 0 to {count - 1} that are said",
        )
    return range(held[0], count)


def _rows_of(row: StageMap, dump: Dump) -> int | None:
    """Return how many rows the arrays of a stage have, ``None`` where that does not show."""
    axes = row.axes[0]
    if "tokens" not in axes or "tokens" not in STAGES[row.stage].axes or Layout.LAST_TOKEN in row.layout:
        return None
    array = next((array for n in range(1 << 10) if (array := dump.get(_name(row, n))) is not None), None)
    if array is None or len(array.shape) not in (len(axes), len(axes) + 1):
        return None
    if len(array.shape) > len(axes):
        axes = (BATCH, *axes)
    return array.shape[axes.index("tokens")]


def _name(row: StageMap, layer: int) -> str:
    return name_of(row.names[0], layer, 0)


def _pads(said: MappingFile, dump: Dump, tokens: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Return which tokens are padding."""
    padding, count = said.padding, len(tokens)
    if padding is None:
        return np.zeros(count, dtype=np.bool_)
    if padding.mask is not None:
        values = _numbers(named_array(dump, padding.mask, said, "padding"), said, "padding", "mask")
        if len(values) != count:
            raise PassesError(f"a mask of {len(values)} tokens", expected=f"{count}, one a token")
        return np.equal(np.asarray(values, dtype=np.int64), 0)
    pads = padding.count if padding.count is not None else _run_of_padding(said, padding.side, tokens)
    if pads >= count:
        raise PassesError(f"{pads} of {count} tokens are said to be padding", expected="a token that is none")
    found = np.zeros(count, dtype=np.bool_)
    found[:pads] = True
    return found if padding.side == "left" else found[::-1]


def shown_padding(tokens: tuple[int, ...], stages: Mapping[Key, StageArray]) -> int:
    """Return how many tokens at the start are padding as the recording itself shows it, 0 for none.

    They are one and the same token, at least twice, and no head of any layer gives any of them the least
    weight from the first other token on: no softmax does that to keys which it sees.
    """
    run = sum(1 for _ in itertools.takewhile(lambda token: token == tokens[0], tokens))
    weights = [
        array.data for key, array in stages.items() if key.stage == "attn_softmax" and not array.layout
    ]
    square = (len(tokens), len(tokens))
    if not 2 <= run < len(tokens) or not weights or any(each.shape[-2:] != square for each in weights):
        return 0
    return 0 if any(np.any(each[:, run:, :run]) for each in weights) else run


def _run_of_padding(said: MappingFile, side: str, tokens: tuple[int, ...]) -> int:
    ids = tokens if side == "left" else tokens[::-1]
    pad = said.pad_token
    if pad is None and len(ids) > 1 and ids[0] != ids[1]:
        raise PassesError(
            f"padding: {side} does not say how many tokens are padding, and their ids do not",
            expected=f"padding: {{{side}: N}}, or pad_token: ID",
        )
    return sum(1 for _ in itertools.takewhile(lambda token: token == (ids[0] if pad is None else pad), ids))


def with_context(target: Target, said: MappingFile, dump: Dump, ids: tuple[int, ...]) -> tuple[int, ...]:
    """Return the ids of the whole sequence where a recording of its last passes says its own alone.

    Raises:
        TokensError: its scores have more keys than there are ids, and nothing says the others.

    """
    known = target.tokens or (None if target.reference is None else target.reference.tokens)
    if known is not None and len(ids) < len(known) and known[-len(ids) :] == ids:
        return known
    keys = next((n for row in said.stages if (n := _keys_of(row, dump)) is not None), len(ids))
    if keys <= len(ids):
        return ids
    raise TokensError(
        f"its scores have {keys} keys, and {len(ids)} token ids are said",
        where=said.path,
        expected=f"the ids of all {keys} tokens, those of earlier passes too",
        remedy="--tokens 1,2,3, or `tokens` of the mapping",
    )


def _keys_of(row: StageMap, dump: Dump) -> int | None:
    """Return how many keys scores or weights have that are no square, ``None`` where that does not show."""
    if row.stage not in SQUARES or row.by_pass or Layout.PADDED_KEYS in row.layout:
        return None
    array = next((array for n in range(1 << 10) if (array := dump.get(_name(row, n))) is not None), None)
    axes = row.axes[0]
    if array is None or len(array.shape) != len(axes) or "keys" not in axes or "tokens" not in axes:
        return None
    rows, keys = array.shape[axes.index("tokens")], array.shape[axes.index("keys")]
    return keys if rows < keys else None
