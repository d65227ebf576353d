"""The settings of llama.cpp that a user may hand over, named as its own command line names them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_falsify.subjects.interface import RuntimeSetting

CACHE_TYPES: Mapping[str, int] = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "iq4_nl": 20,
    "bf16": 30,
}
"""Types of a KV cache: their numbers in ``enum ggml_type`` of ggml.h."""

FLASH: Mapping[str, int] = {"auto": -1, "off": 0, "on": 1}
"""``enum llama_flash_attn_type`` of llama.h."""

SCALING: Mapping[str, int] = {"none": 0, "linear": 1, "yarn": 2, "longrope": 3}
"""``enum llama_rope_scaling_type`` of llama.h."""

SWITCH: Mapping[str, bool] = {"on": True, "off": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """Where a setting goes.

    Attributes:
        owner: ``model`` or ``context``, whose parameters it is among; ``ours`` where it is the adapter's.
        fields: the fields that it sets.
        setting: how its value is read.

    """

    owner: str
    fields: tuple[str, ...]
    setting: RuntimeSetting


def _choice(values: Mapping[str, Any]) -> RuntimeSetting:
    return RuntimeSetting(read=values.__getitem__, expected=", ".join(values))


def _whole(least: int) -> RuntimeSetting:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and least <= int(text) < 2**31):
            raise ValueError(text)
        return int(text)

    return RuntimeSetting(read=read, expected=f"a whole number from {least}")


def _number(valid: Callable[[float], bool], expected: str) -> RuntimeSetting:
    def read(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and valid(value)):
            raise ValueError(text)
        return value

    return RuntimeSetting(read=read, expected=expected)


def _path(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".npz":
        raise ValueError(text)
    return path


def _positive(value: float) -> bool:
    return value > 0


_POSITIVE = _number(_positive, "a number above 0")
_ANY = _number(math.isfinite, "a number")

PARAMETERS: Mapping[str, Parameter] = {
    "rope-freq-base": Parameter(owner="context", fields=("rope_freq_base",), setting=_POSITIVE),
    "rope-freq-scale": Parameter(owner="context", fields=("rope_freq_scale",), setting=_POSITIVE),
    "rope-scaling": Parameter(owner="context", fields=("rope_scaling_type",), setting=_choice(SCALING)),
    "yarn-orig-ctx": Parameter(owner="context", fields=("yarn_orig_ctx",), setting=_whole(1)),
    "yarn-ext-factor": Parameter(owner="context", fields=("yarn_ext_factor",), setting=_ANY),
    "yarn-attn-factor": Parameter(owner="context", fields=("yarn_attn_factor",), setting=_ANY),
    "yarn-beta-slow": Parameter(owner="context", fields=("yarn_beta_slow",), setting=_ANY),
    "yarn-beta-fast": Parameter(owner="context", fields=("yarn_beta_fast",), setting=_ANY),
    "cache-type-k": Parameter(owner="context", fields=("type_k",), setting=_choice(CACHE_TYPES)),
    "cache-type-v": Parameter(owner="context", fields=("type_v",), setting=_choice(CACHE_TYPES)),
    "flash-attn": Parameter(owner="context", fields=("flash_attn_type",), setting=_choice(FLASH)),
    "threads": Parameter(owner="context", fields=("n_threads", "n_threads_batch"), setting=_whole(1)),
    "ctx-size": Parameter(owner="context", fields=("n_ctx",), setting=_whole(1)),
    "batch-size": Parameter(owner="context", fields=("n_batch",), setting=_whole(1)),
    "ubatch-size": Parameter(owner="context", fields=("n_ubatch",), setting=_whole(1)),
    "swa-full": Parameter(owner="context", fields=("swa_full",), setting=_choice(SWITCH)),
    "kv-offload": Parameter(owner="context", fields=("offload_kqv",), setting=_choice(SWITCH)),
    "op-offload": Parameter(owner="context", fields=("op_offload",), setting=_choice(SWITCH)),
    "gpu-layers": Parameter(owner="model", fields=("n_gpu_layers",), setting=_whole(0)),
    "repack": Parameter(owner="model", fields=("use_extra_bufts",), setting=_choice(SWITCH)),
    "python": Parameter(
        owner="ours",
        fields=("python",),
        setting=RuntimeSetting(read=Path, expected="the Python that has the package"),
    ),
    "raw-capture": Parameter(
        owner="ours",
        fields=("raw_capture",),
        setting=RuntimeSetting(read=_path, expected="FILE.npz, not there yet"),
    ),
}
"""``--subject-option`` -> where it goes; ``raw-capture`` keeps the nodes in a file that can be read again,
``python`` runs llama.cpp in another environment than this one's."""

SETTINGS: Mapping[str, RuntimeSetting] = {name: row.setting for name, row in PARAMETERS.items()}

LEAST_CONTEXT = 512
"""Tokens that a context has room for at least."""

_KEY_BLOCK = 256
"""llama.cpp rounds the length of its KV cache up to a multiple of this."""


def parameters(options: Mapping[str, str], tokens: int) -> dict[str, dict[str, Any]]:
    """Return what llama.cpp is started with, by owner, for a prompt of ``tokens`` tokens.

    Where the user does not say otherwise it runs on the CPU, in one batch, and without flash attention,
    which would leave no scores to look at.
    """
    room = max(LEAST_CONTEXT, tokens + -tokens % _KEY_BLOCK)
    offload = int(options.get("gpu-layers", "0")) > 0
    found: dict[str, dict[str, Any]] = {
        "model": {"n_gpu_layers": 0},
        "context": {
            "n_ctx": room,
            "n_batch": room,
            "n_ubatch": room,
            "flash_attn_type": FLASH["off"],
            "offload_kqv": offload,
            "op_offload": offload,
        },
        "ours": {},
    }
    for name, text in options.items():
        row = PARAMETERS[name]
        found[row.owner] |= dict.fromkeys(row.fields, row.setting.read(text))
    return found
