"""Attention as torch computes it, in one kernel or step by step, right or with one thing wrong inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from apr_falsify.compare.attempts import Attempts
from apr_falsify.compare.judge import Judged, judge, replayer_of
from apr_falsify.compare.search import Search
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import Key
from apr_falsify.traces.provenance import Provenance
from apr_falsify.traces.trace import StageArray, Trace

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
ATTENTION = Key(0, "attention")
BLOCK = 8
"""Keys that the online softmax takes at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """How attention is computed.

    Attributes:
        way: ``sdpa``, torch's own kernel; ``online``, the softmax over blocks of keys; ``steps``, one by one.
        dtype: the format of q, k, v and the result.
        scale: what the scores are multiplied with.
        cap: the soft-cap, ``None`` for none.
        mask: which key a token sees, [S, S].
        sinks: the score of one more key in each head's sum, ``None`` for none.

    """

    way: str
    dtype: torch.dtype
    scale: float
    cap: float | None
    mask: torch.Tensor
    sinks: torch.Tensor | None = None

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Return [H, S, D] of q, k and v [H, S, D]."""
        q, k, v = (x.to(self.dtype) for x in (q, k, v))
        if self.way == "sdpa" and self.cap is None and self.sinks is None:
            kernel = torch.nn.functional.scaled_dot_product_attention
            return kernel(q[None], k[None], v[None], attn_mask=self.mask, scale=self.scale)[0].float()
        if self.way == "steps":
            scores = self._masked(q @ k.transpose(1, 2) * self.scale, slice(None))
            return (torch.softmax(scores, -1, dtype=torch.float32).to(self.dtype) @ v).float()
        return self._online(q.float(), k.float(), v.float())

    def _masked(self, scores: torch.Tensor, keys: slice) -> torch.Tensor:
        capped = scores if self.cap is None else torch.tanh(scores / self.cap) * self.cap
        return capped.masked_fill(~self.mask[:, keys], float("-inf"))

    def _online(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        top = torch.full((*q.shape[:2], 1), -1e30)
        total, mixed = torch.zeros_like(top), torch.zeros_like(q)
        for first in range(0, k.shape[1], BLOCK):
            keys = slice(first, first + BLOCK)
            scores = self._masked(q @ k[:, keys].transpose(1, 2) * self.scale, keys)
            above = torch.maximum(top, scores.amax(-1, keepdim=True))
            raised, before = torch.exp(scores - above), torch.exp(top - above)
            total = total * before + raised.sum(-1, keepdim=True)
            mixed = mixed * before + raised.to(self.dtype).float() @ v[:, keys]
            top = above
        if self.sinks is not None:
            total = total + torch.exp(self.sinks[:, None, None] - top)
        return (mixed / total).to(self.dtype).float()


def kernel(geometry: Geometry, tokens: int, way: str, dtype: str) -> Kernel:
    """Return the right one."""
    back = torch.arange(tokens)[:, None] - torch.arange(tokens)
    window = geometry.windows[0] or tokens
    return Kernel(
        way=way,
        dtype=DTYPES[dtype],
        scale=geometry.attn_scale_at(0),
        cap=geometry.attn_softcap,
        mask=(back >= 0) & (back < window),
    )


def heads(geometry: Geometry, tokens: int, dtype: str, seed: int = 0) -> list[torch.Tensor]:
    """Return q, k and v [heads, S, D] of arbitrary values, those of k with an offset as biases make it."""
    values = np.random.default_rng(seed)
    counts = (geometry.heads, geometry.kv_heads, geometry.kv_heads)
    q, k, v = (
        torch.tensor(values.standard_normal((count, tokens, geometry.head_dim)), dtype=torch.float32)
        for count in counts
    )
    k = 1.5 * k + torch.tensor(values.standard_normal((len(k), 1, geometry.head_dim)), dtype=torch.float32)
    return [x.to(DTYPES[dtype]).float() for x in (1.5 * q, k, v)]


def for_queries(x: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    return x.repeat_interleave(geometry.heads // geometry.kv_heads, 0)


def flat(x: torch.Tensor) -> npt.NDArray[np.float32]:
    """Return [heads, S, D] as [S, heads * D]."""
    return np.ascontiguousarray(x.transpose(0, 1).reshape(x.shape[1], -1).numpy())


def trace_of(
    geometry: Geometry,
    parts: list[torch.Tensor],
    attention: torch.Tensor,
    dtype: str = "f32",
    more: Mapping[str, torch.Tensor] | None = None,
    **said: str,
) -> Trace:
    """Return a run of one layer of which q, k, v and the result were captured, and ``more``."""
    q, k, v = map(flat, parts)
    fused = "qkv_bias" if geometry.qkv_bias else "qkv_matmul"
    values = {
        "q_post_rope": q,
        "k_post_rope": k,
        fused: np.concatenate([q, k, v], axis=1),
        "attention": flat(attention),
        **{name: x.numpy() for name, x in (more or {}).items()},
    }
    return Trace(
        provenance=replace(Provenance(runtime="port", dtype=dtype), **said),
        geometry=geometry,
        tokens=tuple(range(len(q))),
        stages={Key(0, name): StageArray(data=data, layout=()) for name, data in values.items()},
    )


def judged(trace: Trace, key: Key = ATTENTION, arithmetic: str | None = None) -> Judged:
    return judge(trace, None, [key], arithmetic)[key]


def cause(trace: Trace, key: Key = ATTENTION) -> tuple[str, str] | None:
    """Return the name and the words of what is wrong with a stage in error; no hypothesis may break down."""
    attempts = Attempts()
    _, found = Search(replayer_of(trace, None), attempts).explained(judged(trace, key))
    assert attempts.noted == []
    return found
