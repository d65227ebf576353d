"""What makes k and v of a latent, which llama.cpp's conversion parts: put together as checkpoints hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from apr_falsify.formats.tensors import FloatArray, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysAndValues:
    """``W_kvb`` [heads * (k's dims + v's), latent] of its two parts, head by head first k's rows, then v's.

    Attributes:
        name: what it is called in a file that holds it whole.
        k: [heads, latent, k's dims]: turned, as llama.cpp multiplies q with it.
        v: [heads, v's dims, latent].

    """

    name: str
    k: Tensor
    v: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole."""
        heads, latent, dims = self.k.shape
        return (heads * (dims + self.v.shape[1]), latent)

    @property
    def type(self) -> str:
        """The number format of k's part; conversion gives both the same."""
        return self.k.type

    def rows(self, start: int, stop: int) -> FloatArray:
        """Return rows ``start`` to ``stop``."""
        each = self.shape[0] // self.k.shape[0]
        first, last = start // each, -(-stop // each)
        parts = (self.k.rows(first, last).swapaxes(1, 2), self.v.rows(first, last))
        whole = np.concatenate(parts, axis=1).reshape(-1, self.shape[1])
        return np.ascontiguousarray(whole[start - first * each : stop - first * each])


def with_whole_latents(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a GGUF file, both parts of ``attn_kv_b`` as one where they fit each other."""
    found = dict(tensors)
    for name, k in tensors.items():
        stem, part, _ = name.partition("attn_k_b.weight")
        v = tensors.get(f"{stem}attn_v_b.weight")
        if part and v is not None and _fit(k.shape, v.shape):
            del found[name], found[v.name]
            found[f"{stem}attn_kv_b.weight"] = KeysAndValues(name=f"{stem}attn_kv_b.weight", k=k, v=v)
    return found


def _fit(k: tuple[int, ...], v: tuple[int, ...]) -> bool:
    return len(k) == len(v) == 3 and (k[0], k[1]) == (v[0], v[2])
