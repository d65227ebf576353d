"""What the bits of small floats stand for: OCP's FP8, FP4, and the powers of two that scale MX formats."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]


def _table(exponent_bits: int, mantissa_bits: int, bias: int) -> F32:
    """Return the values of all patterns of sign, exponent and mantissa, without infinities and NaN."""
    codes = np.arange(1 << (1 + exponent_bits + mantissa_bits))
    mantissa = (codes & ((1 << mantissa_bits) - 1)) / 2.0**mantissa_bits
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    size = np.where(exponent > 0, 1 + mantissa, 2 * mantissa) * 2.0 ** (exponent - bias)
    sign = np.where(codes >> (exponent_bits + mantissa_bits), -1.0, 1.0)
    return np.asarray(sign * size, dtype=np.float32)


def _e4m3() -> F32:
    table = _table(4, 3, 7)
    table[[0x7F, 0xFF]] = np.nan  # the only ones: the format has no infinities
    return table


def _e5m2() -> F32:
    table = _table(5, 2, 15)
    table[[0x7C, 0xFC]] = np.inf, -np.inf
    table[[0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF]] = np.nan
    return table


FP8 = {"F8_E4M3": _e4m3(), "F8_E5M2": _e5m2()}
"""Name of a format in safetensors -> the value of each byte (OCP 8-bit floating point, the variant "fn")."""

FP4_E2M1: F32 = _table(2, 1, 1)
"""The value of each code of OCP's FP4: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives."""


def powers_of_two(octets: npt.NDArray[np.uint8]) -> F32:
    """Return the scales that bytes of E8M0 stand for: 2 ** (byte - 127), NaN for 255."""
    values = np.ldexp(np.float32(1), np.minimum(octets, 254).astype(np.int32) - 127)
    return np.where(octets == 255, np.float32(np.nan), values)
