"""What goes wrong in the embedding: other rows of the table, other learned positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from apr_falsify.compare.variations.case import F64, Case, Guess, Variation
from apr_falsify.compare.variations.positions import position_words, run_on_words
from apr_falsify.compare.variations.projected import MOST_VALUES
from apr_falsify.formats.tensors import Tensor


def other_rows(case: Case) -> Iterator[Guess]:
    """Yield the embedding with rows beside the right ones."""
    table, tokens = case.weights.tensor("embed"), case.replayer.trace.tokens
    for shift in (1, -1):
        rows = [min(max(token + shift, 0), table.shape[0] - 1) for token in tokens]
        yield case.guess(f"the rows of token id {'+' if shift > 0 else '-'} 1", _embedded(case, table, rows))
    if int(np.prod(table.shape)) <= MOST_VALUES:
        yield _nearest_rows(case, table)
        if table.shape[0] >= case.geometry.hidden:
            flat = table.rows(0, table.shape[0]).reshape(table.shape[1], table.shape[0])
            values = flat[:, list(tokens)].T.astype(np.float64) * case.geometry.embed_scale
            yield case.guess("the table read as [E, V]", values + _positions(case), name="transposed")


def _embedded(case: Case, table: Tensor, rows: Sequence[int]) -> F64:
    """Return the embedding made of these rows, as the family scales it and adds positions."""
    values = np.stack([table.rows(row, row + 1)[0] for row in rows]).astype(np.float64)
    return values * case.geometry.embed_scale + _positions(case)[-len(rows) :]


def _positions(case: Case) -> F64:
    """Return what learned positions add to the tokens' rows, zeros where a family has none: [S, E]."""
    passes = case.replayer.trace.passes
    if not case.geometry.positions:
        return np.zeros((passes.rows, case.geometry.hidden))
    return _learned(case)[passes.at[passes.unseen :].astype(np.intp)]


def _learned(case: Case) -> F64:
    """Return the rows of all learned positions: [positions, E]."""
    return case.weights.tensor("positions").rows(0, case.geometry.positions).astype(np.float64)


def other_learned_positions(case: Case) -> Iterator[Guess]:
    """Yield the tokens' rows without learned positions, then with those that are left of the subject.

    Each token's position is the row that is nearest to what its own row leaves.
    """
    if not case.geometry.positions:
        return
    passes = case.replayer.trace.passes
    bare = case.expected - _positions(case)
    yield case.guess("no learned positions added", bare)
    first = max(passes.padding - passes.unseen, 0)
    rest, learned = np.nan_to_num(case.subject[first:] - bare[first:]), _learned(case)
    distance = np.sum(np.square(learned), axis=1) - 2 * (rest @ learned.T)
    right = passes.at[passes.unseen + first :]
    found = np.argmin(distance, axis=1).astype(np.float64)
    if not np.array_equal(right, found):
        values = case.expected.copy()
        values[first:] = bare[first:] + learned[found.astype(np.intp)]
        says, instead = position_words(right, found), run_on_words(right, found, passes)
        yield case.guess(says, values, instead=instead or "token t stands at position t")


def _nearest_rows(case: Case, table: Tensor) -> Guess:
    """Return the rows that are nearest to the subject's."""
    energy, product = [], []
    bare = (case.subject - _positions(case)[-len(case.subject) :]) / case.geometry.embed_scale
    subject = np.nan_to_num(bare)
    step = max(1, (1 << 20) // table.shape[1])
    for start in range(0, table.shape[0], step):
        rows = table.rows(start, start + step).astype(np.float64)
        energy.append(np.sum(np.square(rows), axis=1))
        product.append(subject @ rows.T)
    nearest = np.argmin(np.concatenate(energy) - 2 * np.concatenate(product, axis=1), axis=1)
    values = _embedded(case, table, [int(row) for row in nearest])
    tokens = np.asarray(case.replayer.trace.tokens)[-len(nearest) :]
    wrong = np.flatnonzero(nearest != tokens)
    at = ", ".join(f"{tokens[t]} (token {t}): row {nearest[t]}" for t in wrong[:4])
    return case.guess(f"other rows of the table: for id {at}", values)


OF_THE_EMBEDDING = (
    Variation(name="position", stages=("embedding",), guesses=other_learned_positions),
    Variation(name="other-row", stages=("embedding",), guesses=other_rows),
)
"""Rows of the table of causes."""
