"""Which faults of the catalogue can be patched into a torch model: their names, for whoever only plans."""

from __future__ import annotations

PATCHED_IN_PASSES = frozenset(
    (
        "later-position-next",
        "later-position-before",
        "later-position-zero",
        "key-stale",
        "keys-exchanged",
        "keys-shifted",
        "key-evicted",
        "key-of-another-request",
        "value-stale",
        "values-exchanged",
        "values-shifted",
        "value-evicted",
        "value-of-another-request",
        "chunk-mask-missing",
        "chunk-mask-from-first-key",
        "cache-not-read",
        "step-hides-itself",
        "first-cached-hidden",
        "cache-one-shorter",
    )
)
"""Those of runs in passes."""

PATCHED = PATCHED_IN_PASSES | frozenset(
    (
        "embedding-scaled",
        "embedding-one-token",
        "attn-norm-scaled",
        "attn-norm-one-channel",
        "ffn-norm-skipped",
        "final-norm-skipped",
        "rope-from-one",
        "rope-skipped",
        "rope-backwards",
        "rope-narrow",
        "q-norm-skipped",
        "k-norm-skipped",
        "scores-unscaled",
        "scores-scaled-twice",
        "scores-by-hidden",
        "mask-missing",
        "mask-one-ahead",
        "attention-one-head",
        "heads-not-transposed",
        "attention-one-token",
        "o-one-channel",
        "o-doubled",
        "attention-residual-omitted",
        "gelu-for-silu",
        "relu-for-silu",
        "hard-silu",
        "activation-skipped",
        "swiglu-one-token",
        "down-one-channel",
        "down-halved",
        "ffn-residual-omitted",
        "layer-one-channel",
        "head-scaled",
        "head-soft-capped",
    )
)
"""The keys of ``oracle.faulted.PATCHES``, which costs an import of torch."""
