"""The options that say which tokens are computed together, and at which positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from apr_falsify.errors import PassesError, UsageError

if TYPE_CHECKING:
    from apr_falsify.model.passes import Passes


def whole_numbers(value: str, digits: int) -> tuple[int, ...] | None:
    """Return whole numbers separated by commas, of so many digits at most; ``None`` for anything else."""
    parts = [part.strip() for part in value.strip("[] ").split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) <= digits for part in parts):
        return None
    return tuple(int(part) for part in parts)


class Numbers(click.ParamType[tuple[int, ...]]):
    """Whole numbers separated by commas."""

    name = "13,1,1"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the numbers."""
        if isinstance(value, tuple):
            return value
        numbers = whole_numbers(value, digits=9)
        if numbers is None:
            where = None if param is None else param.opts[0]
            raise PassesError(f"not whole numbers: {value!r}", where=where, expected="e.g. 13,1,1,1")
        return numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedPasses:
    """What the user asked for, before it is known how many tokens there are.

    Attributes:
        sizes: how many tokens each pass computes; empty where that is not said.
        decode: how many tokens at the end are computed one by one, after the others at once.
        chunks: how many tokens are computed together, chunk after chunk.
        positions: the position of each token; empty for 0, 1, 2 ...

    """

    sizes: tuple[int, ...] = ()
    decode: int | None = None
    chunks: int | None = None
    positions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        said = [name for name, value in self._ways().items() if value]
        if len(said) > 1:
            raise UsageError(f"{' and '.join(said)} say the same thing twice", remedy="give one of them")

    def _ways(self) -> Mapping[str, object]:
        return {"--passes": self.sizes, "--decode": self.decode, "--chunks": self.chunks}

    @property
    def asked(self) -> bool:
        """Whether anything was asked for."""
        return bool(self.positions or any(self._ways().values()))

    def of(self, tokens: int) -> Passes | None:
        """Return the passes of a run of ``tokens`` tokens, ``None`` where nothing was asked for.

        Raises:
            PassesError: they do not add up to the tokens, or are more than there are.

        """
        from apr_falsify.model.passes import Passes, check_sum

        if not self.asked:
            return None
        where = next((name for name, value in self._ways().items() if value), "--positions")
        try:
            sizes = self._sizes(tokens)
            check_sum(sizes, tokens)
            return Passes(sizes=sizes, positions=self.positions)
        except PassesError as error:
            raise error.at("--positions" if "position" in error.what else where) from None

    def _sizes(self, tokens: int) -> tuple[int, ...]:
        if self.decode:
            if self.decode >= tokens:
                raise PassesError(
                    f"{self.decode} tokens one by one of {tokens}", expected=f"at most {tokens - 1}"
                )
            return (tokens - self.decode, *(1,) * self.decode)
        if self.chunks:
            whole, rest = divmod(tokens, self.chunks)
            return (*(self.chunks,) * whole, *((rest,) if rest else ()))
        return self.sizes or (tokens,)


passes = click.option(
    "--passes",
    type=Numbers(),
    default=(),
    show_default=False,
    help="How many tokens are computed together, pass by pass, with a KV cache.  [default: all at once]",
)
decode = click.option(
    "--decode",
    type=click.IntRange(min=1),
    metavar="N",
    help="The last N tokens one by one, after the others at once.",
)
chunks = click.option(
    "--chunks", type=click.IntRange(min=1), metavar="N", help="N tokens at a time, with a KV cache."
)
positions = click.option(
    "--positions", type=Numbers(), default=(), help="The position of each token.  [default: 0,1,2,...]"
)
OPTIONS = (passes, decode, chunks, positions)


def asked(given: dict[str, Any]) -> AskedPasses:
    """Take the options out of ``given`` and return what they ask for."""
    return AskedPasses(
        sizes=given.pop("passes"),
        decode=given.pop("decode"),
        chunks=given.pop("chunks"),
        positions=given.pop("positions"),
    )
