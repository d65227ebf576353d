"""An array of any framework as its bytes: torch, NumPy, JAX, MLX, and what has ``__array__`` or DLPack."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from apr_falsify.errors import UsageError
from apr_falsify.formats.safetensors_writer import PlainArray, plain_of_numpy

_EXPECTED = "plain numbers on the CPU: floats of 16 to 64 bits, whole numbers"


def plain_array(name: str, array: Any) -> PlainArray:
    """Return ``array`` as its bytes; bf16 stays bf16.

    Raises:
        UsageError: it is no array, holds no plain numbers, or lies where its values cannot be read.

    """
    try:
        plain = _plain(array)
    except Exception as error:  # of a framework's own kind
        raise UsageError(
            f"its values cannot be read: {type(error).__name__}: {error!s:.200}",
            where=f"rec({name!r}, ...)",
            expected=_EXPECTED,
            remedy="bring it to the CPU and to f32 first",
        ) from error
    if plain is None:
        raise UsageError(
            f"{_told(array)} is no array of plain numbers", where=f"rec({name!r}, ...)", expected=_EXPECTED
        )
    return plain


def _plain(array: Any) -> PlainArray | None:
    home = _home(array)
    if home == "torch":
        from apr_falsify.oracle.watched import is_tensor, plain_of_tensor

        return plain_of_tensor(array) if is_tensor(array) else None
    if home == "mlx":
        return _of_mlx(array)
    if hasattr(array, "__array__") or isinstance(array, (list, tuple, int, float, memoryview)):
        return plain_of_numpy(np.asarray(array))
    if hasattr(array, "__dlpack__"):
        return plain_of_numpy(np.from_dlpack(array))
    return None


def _home(array: Any) -> str:
    """Return the framework that a type, or one that it is made from, comes from."""
    homes = {kind.__module__.partition(".")[0] for kind in type(array).__mro__}
    return next((home for home in ("torch", "mlx") if home in homes), "")


def _of_mlx(array: Any) -> PlainArray | None:
    mlx = sys.modules["mlx.core"]
    if array.dtype != mlx.bfloat16:
        return plain_of_numpy(np.array(array))
    bits = plain_of_numpy(np.array(array.view(mlx.uint16)))
    return None if bits is None else PlainArray(dtype="BF16", shape=bits.shape, data=bits.data)


def _told(array: Any) -> str:
    dtype = getattr(array, "dtype", None)
    return f"{type(array).__name__}{'' if dtype is None else f' of {dtype}'}"
