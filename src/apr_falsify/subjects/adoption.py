"""What a recording does not say itself and takes from the other side: model, geometry and token ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import TokensError, TraceError
from apr_falsify.formats.tensors import Tensor
from apr_falsify.formats.weights import Model
from apr_falsify.model.passes import Passes
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import Layout
from apr_falsify.subjects.interface import Target
from apr_falsify.traces.identity import name_of

TOKEN_COSINE_MARGIN = 1e-3
"""How much nearer another row of the embedding table must be before a token id is refused.

Rows of a 4-bit table lie within some 1e-2 of the original row, distinct rows are almost orthogonal.
"""


def adopted_model(target: Target) -> str:
    """Return the name of the other side's model, empty where it is none that was opened."""
    return "" if target.model is None else name_of(target.model.path, target.model.files)


def adopted_geometry(target: Target) -> tuple[Geometry, bool]:
    """Return the other side's geometry, and whether its weights hold interleaved rotary pairs.

    Raises:
        TraceError: there is no other side that says.

    """
    if target.model is not None:
        return target.model.geometry, target.model.weights.interleaved
    if target.reference is not None:
        interleaved = any(Layout.INTERLEAVED in array.layout for array in target.reference.stages.values())
        return target.reference.geometry, interleaved
    raise TraceError(
        "nothing says which model was run",
        where=target.path,
        remedy="name the model: --oracle MODEL (bisect) or --weights MODEL (compare)",
    )


def adopted_tokens(target: Target, embedding: npt.NDArray[Any] | None, geometry: Geometry) -> tuple[int, ...]:
    """Return the token ids that the user or the other side names.

    Raises:
        TokensError: neither does; the ids whose rows are nearest to ``embedding`` are offered.

    """
    known = target.tokens or (target.reference.tokens if target.reference is not None else None)
    if known is not None:
        return known
    hint = "--tokens 1,2,3"
    table = _embedding_table(target)
    if embedding is not None and table is not None and embedding.size % geometry.hidden == 0:
        ids, _ = nearest_tokens(embedding.reshape(-1, geometry.hidden), table)
        hint = (
            f"--tokens {','.join(str(token) for token in ids)} "
            "(the rows of `embedding` are nearest to these; check them against the run's own output)"
        )
    raise TokensError(
        "nothing says which tokens were run",
        where=target.path,
        expected="the ids that the run printed (apr: `Token ids: [...]`)",
        remedy=hint,
    )


def _embedding_table(target: Target) -> Tensor | None:
    return None if target.model is None else target.model.weights.tensor("embed")


def nearest_tokens(
    rows: npt.NDArray[np.float32], table: Tensor
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return, for each row [S, E], the id of the table's row with the highest cosine, and that cosine.

    A row without a direction (zero or not finite) has cosine NaN.
    """
    step = max(1, (1 << 22) // table.shape[1])
    unit = _unit(rows)
    best = np.full(len(rows), -np.inf)
    ids = np.zeros(len(rows), dtype=np.int64)
    for start in range(0, table.shape[0], step):
        cosines = unit @ _unit(table.rows(start, min(table.shape[0], start + step))).T
        cosines[np.isnan(cosines)] = -np.inf
        at = np.argmax(cosines, axis=1)
        value = cosines[np.arange(len(rows)), at]
        better = value > best
        best[better], ids[better] = value[better], at[better] + start
    return ids, np.where(np.isfinite(best), best, np.nan)


def _without_positions(target: Target, rows: npt.NDArray[Any], passes: Passes) -> npt.NDArray[Any]:
    """Take the learned rows of positions off, where the family adds them to the tokens' own."""
    if target.model is None or not target.model.geometry.positions:
        return rows
    at = [min(int(position), target.model.geometry.positions - 1) for position in passes.at[-len(rows) :]]
    return np.asarray(rows - _learned(target.model)[at])


def _learned(model: Model) -> npt.NDArray[Any]:
    return np.asarray(model.weights.tensor("positions").rows(0, model.geometry.positions))


def _at_other_positions(target: Target, rows: npt.NDArray[Any], claimed: npt.NDArray[Any]) -> bool:
    """Whether the rows are those of the given tokens, at other learned positions than they should be.

    Then the ids are right, and what is wrong is the run's embedding.
    """
    if target.model is None or not target.model.geometry.positions:
        return False
    scale = target.model.geometry.embed_scale
    rest = rows - claimed * scale
    alone = np.linalg.norm(rest, axis=1) <= TOKEN_COSINE_MARGIN * np.linalg.norm(rows, axis=1)
    nearest = np.max(_unit(rest) @ _unit(_learned(target.model)).T, axis=1)
    return bool(np.all(alone | (nearest >= 1 - TOKEN_COSINE_MARGIN)))


def _unit(rows: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):  # casting a signalling NaN warns
        values = rows.astype(np.float64)
        unit: npt.NDArray[np.float64] = values / np.linalg.norm(values, axis=-1, keepdims=True)
    return unit


def verify_tokens(
    target: Target,
    rows: npt.NDArray[Any] | None,
    tokens: tuple[int, ...],
    passes: Passes | None = None,
) -> bool:
    """Check the token ids against the recorded embedding rows [S, E].

    Rows of padding are none; learned positions are those of ``passes``, or any where these do not fit.

    Returns:
        Whether they were checked: ``False`` where there is no table, or not one finite row for each.

    Raises:
        TokensError: a row is another token's.

    """
    table, passes = _embedding_table(target), passes or Passes.whole(len(tokens))
    if table is None or rows is None or len(rows) != passes.rows:
        return False
    first = max(passes.padding, passes.unseen)
    given, tokens = rows[first - passes.unseen :], tokens[first:]
    rows = _without_positions(target, given, passes)
    claimed = np.stack([table.rows(token, token + 1)[0] for token in tokens])
    own = np.sum(_unit(rows) * _unit(claimed), axis=1)
    if np.all(own >= 1 - TOKEN_COSINE_MARGIN):  # no other row of a large table can be nearer
        return True
    ids, best = nearest_tokens(rows, table)
    wrong = [index for index in range(len(tokens)) if own[index] < best[index] - TOKEN_COSINE_MARGIN]
    if wrong and _at_other_positions(target, given, claimed):
        return True
    if wrong:
        at = wrong[0]
        raise TokensError(
            f"token {at + first} is given as {tokens[at]}, but its row of `embedding` is that of {ids[at]}",
            where=target.path,
            expected=f"ids that match the rows: {','.join(str(token) for token in ids)}",
            remedy="pass the ids that the run printed, and the model that it ran; if both are right, the "
            "rows of the subject's embedding table are out of order",
        )
    return bool(np.all(np.isfinite(own)))
