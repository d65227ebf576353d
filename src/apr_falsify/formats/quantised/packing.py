"""Codes of a few bits out of words: the lowest bits hold the first code, and words are little-endian."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[Any]
Codes = npt.NDArray[np.uint8]

CODES_A_BLOCK = 32
"""So many codes begin and end with a word of 32 bits, whatever their width."""


def unpacked(words: Words, bits: int) -> Codes:
    """Return the codes of ``bits`` bits in ``words`` [..., n]: [..., 8 * itemsize * n / bits].

    The words of a row are one stream of bits, so that a code of 3 bits may begin in one word and end in the
    next.
    """
    octets = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return octets
    if bits == 4:
        both = np.stack((octets & 15, octets >> 4), axis=-1)
        return both.reshape(*octets.shape[:-1], -1)
    stream = np.unpackbits(octets, axis=-1, bitorder="little").reshape(*octets.shape[:-1], -1, bits)
    places = (1 << np.arange(bits)).astype(np.uint8)
    return np.asarray((stream * places).sum(axis=-1, dtype=np.uint8))


def unpacked_columns(words: Words, bits: int, start: int, stop: int) -> Codes:
    """Return codes ``start`` to ``stop`` of each row of ``words`` [rows, n], without reading the others."""
    first, last = start // CODES_A_BLOCK, -(-stop // CODES_A_BLOCK)
    per_block = CODES_A_BLOCK * bits // (8 * words.dtype.itemsize)
    codes = unpacked(words[:, first * per_block : last * per_block], bits)
    return codes[:, start - first * CODES_A_BLOCK : stop - first * CODES_A_BLOCK]
