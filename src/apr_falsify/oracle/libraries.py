"""torch and transformers, imported in one place, and the words for their devices and number formats."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import DeviceError, MissingDependencyError
from apr_falsify.numerics.arithmetic import format_named


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Put the garbage collector off: what an import makes stays, and looking through it costs time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


try:
    with _nothing_collected():
        import torch
        import transformers as _transformers
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
except ImportError as error:
    raise MissingDependencyError(
        f"the oracle cannot import {error.name or 'torch'} ({error})",
        expected="torch and transformers",
        remedy="pip install 'apr-falsify[oracle]'",
    ) from error

transformers: Any = _transformers
"""Untyped on purpose: its annotations cover only a part of what it exports."""

attention_functions: Any = ALL_ATTENTION_FUNCTIONS
"""The process-wide table, by name, from which every attention module takes its function."""

__all__ = [
    "attention_functions",
    "cuda_devices",
    "device_named",
    "dtype_named",
    "kernel_facts",
    "torch",
    "transformers",
]


def kernel_facts(
    operands: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]],
) -> dict[str, str]:
    """Return which kernels torch computes with here, and a digest of what it makes of fixed ``operands``."""
    found = hashlib.sha256()
    for x, w in ((torch.from_numpy(a), torch.from_numpy(b)) for a, b in operands):
        product = torch.nn.functional.linear(x, w)
        low = torch.nn.functional.linear(x.bfloat16(), w.bfloat16()).float()
        for made in (product, low, torch.softmax(x, -1), torch.nn.functional.silu(x), x.square().mean(-1)):
            found.update(made.contiguous().numpy().tobytes())
    return {
        "torch": torch.backends.cpu.get_cpu_capability(),
        "torch_threads": str(torch.get_num_threads()),
        "torch_digest": found.hexdigest()[:12],
    }


_DTYPES: Mapping[str, torch.dtype] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
}
_DEVICES = ("cpu", "cuda")


def dtype_named(name: str) -> torch.dtype:
    """Return torch's type for one of ``arithmetic.FORMATS``.

    Raises:
        UsageError: no format has that name.

    """
    return _DTYPES[format_named(name).name]


def device_named(name: str) -> torch.device:
    """Return the device called ``name``; another one is never put in its place.

    Raises:
        DeviceError: an unknown device, or CUDA without a usable GPU.

    """
    if name not in _DEVICES:
        raise DeviceError(f"unknown device {name!r}", expected=" or ".join(_DEVICES))
    if name == "cuda" and not torch.cuda.is_available():
        build = f"torch {torch.__version__} is built " + (
            f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        )
        raise DeviceError(
            f"CUDA is not available: {build}",
            expected="an NVIDIA GPU, its driver, and a CUDA build of torch",
            remedy="--device cpu, or see `apr-falsify doctor`",
        )
    return torch.device(name)


def cuda_devices() -> tuple[str, ...]:
    """Return the names of the GPUs that torch can use."""
    if not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
