"""The token ids that a user says were run, of any kind of list or array."""

from __future__ import annotations

import operator
from typing import Any

from apr_falsify.errors import TokensError

_ABOVE_IDS = 1 << 31
"""No vocabulary has as many tokens."""


def token_ids(tokens: Any) -> tuple[int, ...]:
    """Return the ids of one sequence.

    Args:
        tokens: whole numbers in a list or in an array of any framework, of one axis or as a batch of one row.

    Raises:
        TokensError: there are none, or they are no ids.

    """
    if tokens is None:
        raise TokensError(
            "nothing says which tokens are run",
            where="record(...)",
            expected="tokens=[1, 2, 3], the ids that the model is given",
        )
    try:
        ids = _whole_numbers(tokens)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: torch, of a tensor without values
        raise TokensError(
            f"not token ids: {tokens!r:.80}", where="tokens", expected="whole numbers, one sequence of them"
        ) from error
    if not ids or min(ids) < 0 or max(ids) >= _ABOVE_IDS:
        raise TokensError(
            f"not token ids: {list(ids)!r:.80}",
            where="tokens",
            expected=f"at least one, none below 0, none from {_ABOVE_IDS} on",
        )
    return ids


def _whole_numbers(tokens: Any) -> tuple[int, ...]:
    """Return whole numbers of a sequence, or of a batch that holds one sequence.

    Raises:
        TypeError: it holds anything else.

    """
    found = _listed(tokens)
    if isinstance(found, (list, tuple)) and len(found) == 1:
        only = _listed(found[0])
        found = only if isinstance(only, (list, tuple)) else [only]
    if isinstance(found, (str, bytes, bytearray)):
        raise TypeError("a text holds no ids")
    numbers = [_listed(token) for token in found]
    if any(isinstance(number, bool) for number in numbers):
        raise TypeError("true and false are no ids")
    return tuple(operator.index(number) for number in numbers)


def _listed(values: Any) -> Any:
    """Return the values of an array of any framework as those of Python."""
    return values.tolist() if hasattr(values, "tolist") else values
