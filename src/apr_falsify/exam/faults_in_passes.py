"""Seeded faults of runs in passes: positions, caches of keys and values, masks, and formats of a cache."""

from __future__ import annotations

from typing import Any

from apr_falsify.exam.fault import EVERY, Fault, fault
from apr_falsify.exam.phases import CACHED, CHUNKS, DECODE, PADDED
from apr_falsify.exam.seeding import caches as c

_QK = "q_post_rope k_post_rope"
_TURNED: Any = {"needs": ("rope",), **EVERY}
_STEPS: Any = {"phases": DECODE}
_LATER: Any = {"phases": tuple(dict.fromkeys((*DECODE, *CHUNKS)))}
_ALL_LATER: Any = {"phases": CACHED}
_INT8 = "int8 cache, a scale per token and head"
_INT8_HEAD = "int8 cache, a scale per head"
_FP8 = "fp8 cache, a scale per tensor"

# fmt: off
IN_PASSES: tuple[Fault, ...] = (
    # positions
    fault("later-position-next", _QK, "tokens after the prompt stand one too far", r"at positions? \d",
          formula=c.placed(c.moved(1)), **_TURNED, **_ALL_LATER),
    fault("later-position-before", _QK, "tokens after the prompt stand one too near", r"at positions? \d",
          formula=c.placed(c.moved(-1)), **_TURNED, **_ALL_LATER),
    fault("later-position-zero", _QK, "each pass begins at position 0",
          r"begin again at 0|at position 0|positions? 0 to",
          formula=c.placed(c.restarted), **_TURNED, **_ALL_LATER),
    fault("decode-position-stands", _QK, "the position of decode steps is never advanced",
          r"stand elsewhere|at position \d", formula=c.placed(c.standing), **_TURNED,
          phases=("decode", "left padding and decode", "chunks and decode")),
    fault("later-q-position-next", "q_post_rope", "q of a later pass stands one ahead of its key",
          r"at positions? \d", formula=c.placed(c.moved(1), "q"), **_TURNED, **_ALL_LATER),
    fault("later-k-position-next", "k_post_rope", "keys are cached one position too far",
          r"at positions? \d", formula=c.placed(c.moved(1), "k"), **_TURNED, **_ALL_LATER),
    fault("step-position-next", _QK, "a decode step alone stands one too far", r"at position \d",
          formula=c.placed(c.moved(1)), **_TURNED, phases=("the last step alone",)),
    fault("step-position-zero", _QK, "a decode step alone stands at 0", r"at position 0",
          formula=c.placed(c.restarted), **_TURNED, phases=("the last step alone",)),
    fault("padding-counted", _QK, "positions run on through left padding", r"run on through",
          formula=c.placed(c.run_on), **_TURNED, phases=PADDED),
    fault("padding-counted-later", _QK, "positions of later passes count left padding",
          r"stand elsewhere|at positions? \d", formula=c.placed(c.run_on_later), **_TURNED,
          phases=("left padding and decode", "left padding in chunks")),
    fault("last-chunk-as-if-full", _QK, "the last chunk is placed as if it were full",
          r"stand elsewhere|at positions? \d", formula=c.placed(c.as_if_full), **_TURNED,
          phases=("chunks", "left padding in chunks")),
    # cached keys
    fault("key-stale", "attn_scores", "a cached key is another position's",
          r"another cached key|position \d+ with", formula=c.keys(c.stale), **_LATER),
    fault("keys-exchanged", "attn_scores", "two cached keys are exchanged", r"exchanged|another cached key",
          formula=c.keys(c.exchanged), **_LATER),
    fault("keys-shifted", "attn_scores", "the cache of keys is shifted by one",
          r"shifted by 1|another cached key", formula=c.keys(c.shifted), **_LATER),
    fault("key-evicted", "attn_scores", "the first cached key was evicted", r"no cached key at position",
          formula=c.keys(c.first_evicted), **_LATER),
    fault("keys-evicted-beyond-4", "attn_scores", "all but the last 4 cached keys were evicted",
          r"no cached key at position", formula=c.keys(c.evicted_beyond(4)), needs=("no window",), **_LATER),
    fault("key-of-another-request", "attn_scores", "a cached key is another request's",
          r"key \d|cached key", formula=c.keys(c.foreign), **_LATER),
    fault("keys-not-written", "attn_scores", "a pass reads its own keys before they are written",
          r"no cached key", formula=c.keys(c.not_written), **_LATER),
    fault("key-overwritten", "attn_scores", "a decode step's key overwrites the prompt's last",
          r"position \d+ with that of \d+", formula=c.keys(c.overwritten), **_LATER),
    fault("keys-wrapped-around", "attn_scores", "the ring of cached keys is too small",
          r"with that of|shifted|exchanged|with the keys", formula=c.keys(c.wrapped_around), **_LATER),
    fault("cached-heads-exchanged", "attn_scores", "cached keys have their heads in another order",
          r"head|cached key", formula=c.keys(c.heads_exchanged), needs=("groups",), **_LATER),
    fault("cached-keys-turned-on", "attn_scores", "cached keys are rotated once more, by one position",
          r"turned for other positions", formula=c.keys(c.turned(1)), needs=("rope",), **_LATER),
    fault("cached-key-unturned", "attn_scores", "a key was cached before its rotation",
          r"turned for other positions|no rotation", formula=c.keys(c.one_unturned), needs=("rope",),
          **_LATER),
    fault("keys-of-another-row", "attn_scores", "a row reads the keys of another row of the batch",
          r"row 1 of the batch", formula=c.keys_of_another_row, batch=True, **_ALL_LATER),
    fault("keys-of-another-prefix", "attn_scores", "a cache of prefixes hands out another prompt's keys",
          r"key", formula=c.keys(c.prefix_of_another_prompt), batch=True, **_LATER),
    # cached values
    fault("value-stale", "attention", "a cached value is another position's", r"another cached value|value",
          formula=c.values(c.stale), **_LATER),
    fault("values-exchanged", "attention", "two cached values are exchanged", r"exchanged|value",
          formula=c.values(c.exchanged), **_LATER),
    fault("values-shifted", "attention", "the cache of values is shifted by one", r"shifted by 1|value",
          formula=c.values(c.shifted), **_LATER),
    fault("value-evicted", "attention", "the first cached value was evicted", r"with no value|value",
          formula=c.values(c.first_evicted), **_LATER),
    fault("value-of-another-request", "attention", "a cached value is another request's",
          r"none of this run's|value", formula=c.values(c.foreign), **_LATER),
    fault("values-not-written", "attention", "a pass reads its own values before they are written",
          r"value", formula=c.values(c.not_written), **_LATER),
    fault("value-overwritten", "attention", "a decode step's value overwrites the prompt's last",
          r"with that of|value", formula=c.values(c.overwritten), **_LATER),
    fault("values-wrapped-around", "attention", "the ring of cached values is too small", r"value",
          formula=c.values(c.wrapped_around), **_LATER),
    fault("keys-for-values", "attention", "the cache of values holds keys", r"value|k for v|\bk\b",
          formula=c.keys_for_values, **_LATER),
    fault("values-of-another-row", "attention", "a row reads the values of another row of the batch",
          r"row 1 of the batch", formula=c.values_of_another_row, batch=True, **_ALL_LATER),
    # masks
    fault("padding-seen", "attn_softmax", "tokens see the padding", r"see the padding",
          formula=c.masked(c.padding_seen), phases=PADDED),
    fault("last-of-padding-seen", "attn_softmax", "one token of padding too few is masked",
          r"last token of padding", formula=c.masked(c.last_of_padding_seen), phases=PADDED),
    fault("chunk-mask-from-first-key", "attn_softmax", "a chunk's mask is aligned to the first key",
          r"aligned to the first key|another mask", formula=c.masked(c.from_first_key), phases=CHUNKS),
    fault("chunk-mask-missing", "attn_softmax", "no mask among the tokens of a chunk",
          r"no mask|another mask", formula=c.masked(c.none_in_a_pass), phases=CHUNKS),
    fault("cache-not-read", "attn_softmax", "a later pass does not read the cache",
          r"only the keys of the pass itself|window|itself", formula=c.masked(c.own_pass_alone), **_LATER),
    fault("step-hides-itself", "attn_softmax", "a later token does not see itself",
          r"itself|hides|mask|token", formula=c.masked(c.without_self), **_LATER),
    fault("cache-one-shorter", "attn_softmax", "the cache is taken to be one token shorter",
          r"mask|hides|see|key", formula=c.masked(c.without_last_cached), **_LATER),
    fault("first-cached-hidden", "attn_softmax", "the first key is hidden once it is cached",
          r"hides the first|mask|key", formula=c.masked(c.without_first_cached), **_LATER),
    fault("window-forgotten-later", "attn_softmax", "later passes forget the window", r"window|mask",
          formula=c.masked(c.windowless_later), needs=("window",), **_ALL_LATER, **EVERY),
    fault("window-longer-later", "attn_softmax", "later passes keep one key more than the window",
          r"window|mask", formula=c.masked(c.window_longer_later), needs=("window",), **_ALL_LATER, **EVERY),
    # number formats that nobody stated
    *(fault(f"{name}-key-cache", "attn_scores", f"keys are cached as {rule}, which nobody stated",
            r"fits|cache|stored", formula=c.held_as(scores=rule), arithmetic=True, settings=("f32",),
            **_ALL_LATER, **EVERY)
      for name, rule in (("f16", "f16 k"), ("bf16", "bf16 k"), ("fp8", "fp8 e4m3 k cache"),
                         ("int8", "int8 k cache, a scale per token and head"))),
    *(fault(f"{name}-value-cache", "attention", f"values are cached as {rule}, which nobody stated",
            r"fits|cache|stored", formula=c.held_as(mix=rule), arithmetic=True, settings=("f32",),
            **_ALL_LATER, **EVERY)
      for name, rule in (("f16", "f16 v"), ("fp8", "fp8 e4m3 v cache"),
                         ("int8", "int8 v cache, a scale per head"))),
    # scales of an 8-bit cache
    fault("key-scale-doubled", "attn_scores", "cached keys come back with twice their scale", r"x 2\b",
          formula=c.keys_scaled(c.doubled), settings=(_FP8, _INT8), **_LATER),
    fault("key-scale-of-next-head", "attn_scores", "cached keys come back with the scale of the head beside",
          r"head|factor|x \d", formula=c.keys_scaled(c.of_next_head, "head"), needs=("groups",),
          settings=(_INT8_HEAD,), **_LATER),
    fault("key-scale-of-token-before", "attn_scores", "cached keys have the scale of the token before",
          r"key|token|x \d", formula=c.keys_scaled(c.of_token_before), settings=(_INT8,), **_LATER),
    fault("key-scale-of-last-token", "attn_scores", "all cached keys come back with the newest scale",
          r"key|token|x \d", formula=c.keys_scaled(c.of_last_token), settings=(_INT8,), **_LATER),
    fault("key-scale-left-out", "attn_scores", "cached keys come back as their codes",
          r"x \d|factor|key", formula=c.keys_scaled(c.left_out, "head"), settings=(_INT8_HEAD,), **_LATER),
    fault("value-scale-doubled", "attention", "cached values come back with twice their scale", r"x 2\b",
          formula=c.values_scaled(c.doubled), settings=(_FP8, _INT8), **_LATER),
    fault("value-scale-of-next-head", "attention", "cached values have the scale of the head beside",
          r"head|factor|x \d", formula=c.values_scaled(c.of_next_head, "head"), needs=("groups",),
          settings=(_INT8_HEAD,), **_LATER),
    fault("value-scale-of-token-before", "attention", "cached values have the scale of the token before",
          r"value|token|x \d", formula=c.values_scaled(c.of_token_before), settings=(_INT8,), **_LATER),
)
# fmt: on
"""Faults of a run in passes, or of a padded row."""
