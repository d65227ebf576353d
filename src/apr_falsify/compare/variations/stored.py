"""What becomes of right values that are stored wrongly: in fewer bits, or clipped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from apr_falsify.compare.variations.case import F64, Case, Guess

_BITS: Mapping[int, str] = {
    11: "f16 (11 bits of precision)",
    8: "bf16 (8 bits of precision)",
    4: "an 8-bit float (4 bits of precision)",
    3: "an 8-bit float (3 bits of precision)",
}
_FINEST = 20
"""More bits of precision than this are f32, in which some values end in zeros by chance."""


def fewer_bits(case: Case) -> Iterator[Guess]:
    """Yield the replay, rounded to as many bits as the subject's values have, where those are few.

    Which way a value near a tie was rounded does not matter: it may be off by half a unit of that precision.
    """
    finite = case.subject[np.isfinite(case.subject)]
    bits = next((bits for bits in range(2, _FINEST) if np.array_equal(_rounded(finite, bits), finite)), None)
    if bits is None or not np.any(finite) or 2.0**-bits <= case.replayer.store:
        return
    half = np.abs(case.expected) * 2.0**-bits
    says = f"the right values stored as {_BITS.get(bits, f'{bits} bits of precision')}"
    sigma = case.sigma + half * (1 + 2.0**-bits) / case.limit
    yield Guess(says=says, values=case.expected, sigma=sigma)


def _rounded(values: F64, bits: int) -> F64:
    mantissa, exponent = np.frexp(values)
    rounded: F64 = np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits)
    return rounded


_CLIPPED = 2
"""One value that is too small is no sign of clipping."""


def clipped(case: Case) -> Iterator[Guess]:
    """Yield the replay clipped at the subject's largest and smallest value."""
    low, high = float(np.nanmin(case.subject)), float(np.nanmax(case.subject))
    right = case.shaped(case.expected)
    below, above = (case.subject == low) & (right < low), (case.subject == high) & (right > high)
    if np.count_nonzero(below | above) < _CLIPPED:
        return
    yield Guess(says=f"values clipped to {low:.6g} ... {high:.6g}", values=np.clip(case.expected, low, high))
