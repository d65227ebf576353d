"""What token ids a run has: random ones, a natural text's, one repeated, runs of repeats, nearly equal rows.

Rounding is the same where inputs are the same. So a comparison that takes equal tokens for independent
ones is right on random ids and wrong on a text that repeats itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PASSAGE = Path(__file__).parents[1] / "data" / "passage.txt"
"""The first page of *Alice's Adventures in Wonderland* (Carroll 1865), in the public domain."""

Ids = tuple[int, ...]
Draw = Callable[[np.random.Generator, int, int, Sequence[int]], Ids]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamText:
    """A kind of text.

    Attributes:
        name: what tables call it.
        draw: gives ids, from a generator, a length, the size of the vocabulary, and a natural text's ids.
        rows: how the model's embedding rows are made: ``""`` as drawn, ``near`` one row with small noise.
        rows_where_fixed: the same for a host that fixes its prompt, ``None`` where it cannot have this text.

    """

    name: str
    draw: Draw
    rows: str = ""
    rows_where_fixed: str | None = None

    def ids(self, seed: int, length: int, vocab: int, natural: Sequence[int]) -> Ids:
        """Return ``length`` ids below ``vocab``, chosen by ``seed``."""
        return self.draw(np.random.default_rng(seed), length, vocab, natural)


def _random(rng: np.random.Generator, length: int, vocab: int, natural: Sequence[int]) -> Ids:
    return tuple(rng.integers(1, vocab, size=length).tolist())


def _natural(rng: np.random.Generator, length: int, vocab: int, natural: Sequence[int]) -> Ids:
    start = int(rng.integers(len(natural)))
    return tuple(natural[(start + at) % len(natural)] for at in range(length))


def _repeated(rng: np.random.Generator, length: int, vocab: int, natural: Sequence[int]) -> Ids:
    return (int(rng.integers(1, vocab)),) * length


def _runs(rng: np.random.Generator, length: int, vocab: int, natural: Sequence[int]) -> Ids:
    """Repeat ids of a handful, each for up to a third of the text."""
    handful = rng.integers(1, vocab, size=4)
    ids: list[int] = []
    while len(ids) < length:
        ids += [int(rng.choice(handful))] * int(rng.integers(1, 2 + length // 3))
    return tuple(ids[:length])


def _led(rng: np.random.Generator, length: int, vocab: int, natural: Sequence[int]) -> Ids:
    """Repeat an id after another one: later rows differ by what they still see of the first."""
    first, other = (int(at) for at in rng.integers(1, vocab, size=2))
    return (first, *[other] * (length - 1))


TEXTS: Mapping[str, ExamText] = {
    text.name: text
    for text in (
        ExamText(name="random", draw=_random),
        ExamText(name="natural", draw=_natural, rows_where_fixed=""),
        ExamText(name="one token repeated", draw=_repeated, rows_where_fixed="same"),
        ExamText(name="runs of repeats", draw=_runs),
        ExamText(name="one token, then another repeated", draw=_led),
        ExamText(name="nearly equal rows", draw=_random, rows="near", rows_where_fixed="near"),
    )
}
"""Name -> kind of text."""

NEAR = (-6.0, -2.0)
"""Powers of ten between which nearly equal embedding rows differ, each by its own."""


def embedding_rows(rows: str, table: np.typing.NDArray[np.float32]) -> np.typing.NDArray[np.float32]:
    """Return ``table`` [V, E] with all rows the ``same``, or ``near`` each other."""
    base = np.broadcast_to(table[5], table.shape)
    if rows == "same":
        return np.ascontiguousarray(base)
    rng = np.random.default_rng(len(table))
    sizes = 10.0 ** rng.uniform(*NEAR, size=(len(table), 1))
    noise = rng.standard_normal(table.shape)
    return (base * (1 + sizes * noise)).astype(np.float32)
