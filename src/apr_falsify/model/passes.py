"""How a run computed its tokens: which of them together, at which positions, and which are padding.

A prompt at once, then token by token with a cache of keys and values; in chunks; or as one row of a padded
batch. In canonical form a run is its whole sequence, passes laid end to end, padding first. A token meets the
keys up to the end of its own pass: beyond them there are none, and whatever stands there is no data.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import PassesError
from apr_falsify.reading import items, whole

Mask = npt.NDArray[np.bool_]

FARTHEST = 1 << 31
"""No position of any model is as large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """How a run of S tokens was computed.

    Attributes:
        sizes: how many tokens each pass computed; they add up to S.
        positions: the position of each token; empty for 0 to S - 1, counted after the padding.
        padding: how many of the first tokens are padding, which no other token may see.
        unseen: how many of the first tokens were computed before anything was recorded, as those before a
            decode step that was recorded alone: only their keys and values play a part.

    """

    sizes: tuple[int, ...]
    positions: tuple[int, ...] = ()
    padding: int = 0
    unseen: int = 0

    def __post_init__(self) -> None:
        for size in self.sizes:
            if whole(size, "the size of a pass") < 1:
                raise PassesError(f"a pass of {size} tokens", expected="at least one token in each pass")
        if self.positions and len(self.positions) != self.tokens:
            raise PassesError(
                f"{len(self.positions)} positions for {self.tokens} tokens", expected="one a token"
            )
        for position in self.positions:
            if not 0 <= whole(position, "a position") < FARTHEST:
                raise PassesError(f"a token at position {position}", expected="whole numbers from 0")
        if not 0 <= self.padding < max(self.tokens, 1):
            raise PassesError(
                f"{self.padding} of {self.tokens} tokens are padding", expected="a token that is none"
            )
        if self.unseen not in (0, *self.starts):
            raise PassesError(f"{self.unseen} tokens before the recording", expected="whole passes of them")
        if self.positions == self._counted():
            object.__setattr__(self, "positions", ())

    @classmethod
    def whole(cls, tokens: int) -> Passes:
        """Return one pass of ``tokens`` tokens."""
        return cls(sizes=(tokens,) if tokens else ())

    @property
    def tokens(self) -> int:
        """S, the number of tokens."""
        return sum(self.sizes)

    @property
    def plain(self) -> bool:
        """Whether it is one pass of tokens at positions 0, 1, 2 ... without padding."""
        return len(self.sizes) <= 1 and not self.positions and not self.padding and not self.unseen

    @property
    def rows(self) -> int:
        """How many tokens were recorded, the last ones."""
        return self.tokens - self.unseen

    @property
    def at(self) -> npt.NDArray[np.float64]:
        """The position of each token: [S]."""
        return np.asarray(self.positions or self._counted(), dtype=np.float64)

    @property
    def ends(self) -> npt.NDArray[np.intp]:
        """For each token the number of keys that its pass has: [S]."""
        return np.repeat(np.cumsum(self.sizes, dtype=np.intp), self.sizes)

    @property
    def starts(self) -> tuple[int, ...]:
        """The first token of each pass."""
        return tuple(itertools.accumulate((0, *self.sizes[:-1])))

    def spans(self, tokens: int) -> Iterator[slice]:
        """Yield the rows of each pass among the last ``tokens`` tokens."""
        left_out = self.tokens - tokens
        for start, size in zip(self.starts, self.sizes, strict=True):
            if start + size > left_out:
                yield slice(max(start - left_out, 0), start + size - left_out)

    def first(self, count: int) -> Passes:
        """Return the first ``count`` passes, of which only the last is seen: what a run with a cache does."""
        sizes = self.sizes[:count]
        tokens = sum(sizes)
        return Passes(
            sizes=sizes,
            positions=tuple(int(position) for position in self.at[:tokens]),
            padding=min(self.padding, tokens - 1),
            unseen=tokens - sizes[-1],
        )

    def rows_held(self) -> Mask:
        """Return which tokens are data: those that are no padding, [S]."""
        return np.arange(self.tokens) >= self.padding

    def visible(self, window: int | None, chunk: int | None = None) -> Mask:
        """Return which key (column) each token (row) may see: [S, S].

        Token i sees j <= i, with a sliding window only the last ``window`` of those, with chunks only those
        of its own ``chunk`` tokens, and no padding unless it is padding itself. Chunks begin after padding.
        """
        back = np.arange(self.tokens)[:, None] - np.arange(self.tokens)[None, :]
        seen = (back >= 0) & (back < (self.tokens if window is None else window))
        if chunk is not None:
            of = (np.arange(self.tokens) - self.padding) // chunk
            seen &= of[:, None] == of[None, :]
        seen[self.padding :, : self.padding] = False
        return np.asarray(seen)

    def met(self) -> Mask:
        """Return which keys each token's pass has: [S, S]; beyond them there are none."""
        return np.asarray(np.arange(self.tokens)[None, :] < self.ends[:, None])

    def computed(self) -> Mask:
        """Return where a row of scores is data: [S, S].

        Those are the keys up to the end of its pass; padding is none, as row or as key.
        """
        held = self.met()
        held[: self.padding] = False
        held[:, : self.padding] = False
        return held

    def weighted(self) -> Mask:
        """Return where a row of attention weights is data: as of scores, and weight on padding is a fault."""
        held = self.computed()
        held[self.padding :, : self.padding] = True
        return held

    def to_json(self) -> dict[str, Any]:
        """Return what a trace says of it; nothing of what is so in every plain run."""
        said: dict[str, Any] = {}
        if not self.plain:
            said["passes"] = list(self.sizes)
        if self.positions:
            said["positions"] = list(self.positions)
        if self.padding:
            said["padding"] = self.padding
        if self.unseen:
            said["unseen"] = self.unseen
        return said

    @classmethod
    def from_json(cls, data: Mapping[str, Any], tokens: int) -> Passes:
        """Read what :meth:`to_json` wrote of a run of ``tokens`` tokens; what is not said is plain.

        Raises:
            PassesError: passes that do not add up to the tokens, or positions that are none.
            ValueError: a value of another type.

        """
        sizes = [whole(size, "the size of a pass") for size in items(data.get("passes", [tokens]), "passes")]
        check_sum(sizes, tokens)
        positions = items(data.get("positions", []), "positions")
        return cls(
            sizes=tuple(sizes),
            positions=tuple(whole(position, "a position") for position in positions),
            padding=whole(data.get("padding", 0), "padding"),
            unseen=whole(data.get("unseen", 0), "unseen"),
        )

    def _counted(self) -> tuple[int, ...]:
        """Return the positions of a run that counts its tokens, but for its padding."""
        return tuple(max(token - self.padding, 0) for token in range(self.tokens))


def check_sum(sizes: Sequence[int], tokens: int) -> None:
    """Check that passes of ``sizes`` hold ``tokens`` tokens.

    Raises:
        PassesError: they do not.

    """
    if sum(sizes) != tokens or any(size < 1 for size in sizes):
        raise PassesError(
            f"passes of {', '.join(map(str, sizes))} tokens hold {sum(sizes)}, and {tokens} were run",
            expected=f"sizes from 1 that add up to {tokens}",
        )
